"""The class of multimodal contrastive losses whose theory is worked out."""

from __future__ import annotations

import math
from dataclasses import field
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor

from troth.objectives.base import About, Objective
from troth.similarity import Pairs
from troth.state import State
from troth.types import STRICT


@dataclass(frozen=True, config=STRICT)
class MMCL(Objective):
    """Two increasing functions, an offset and a weight make a family that InfoNCE and the linear loss belong to.

    .. code-block:: text

        loss_i = 1/2 phi( sum_j eps_ij psi(l_ij - nu l_ii) ) + 1/2 phi( sum_j eps_ij psi(l_ji - nu l_ii) )
        eps_ij = 1 for j != i,   eps_ii = eps

    ============================  ========  ========  ===  ===
    member                        phi       psi       nu   eps
    ============================  ========  ========  ===  ===
    InfoNCE                       log       exp       1    1
    decoupled InfoNCE             log       exp       1    0
    linear (averaged)             identity  identity  1    0
    pairwise logistic (averaged)  identity  softplus  1    0
    hinge with margin 1           identity  hinge     1    0
    ============================  ========  ========  ===  ===

    Whatever the member, one gradient step is an SVD of a weighted cross-covariance of the two modalities; with wrong
    pairs the linear member's is ``(1 - p)`` times the right one. ``psi`` works on logits, which hold the scale, so that
    the theory's ``tau log`` and ``exp(v / tau)`` are ``log`` and ``exp`` here, ``tau`` times smaller. The theory's
    regulariser ``rho/2 ||G1' G2||_F^2`` of linear encoders is not part of the loss: a geometry that normalises bounds
    the embeddings instead.

    Source: Nakada et al. 2023, "Understanding multimodal contrastive learning and incorporating unpaired data"; the
    form is reconstructed from its abstract, its public notebooks and related work.

    Attributes:
        phi: the outer function.
        psi: the inner function; ``hinge`` is ``max(0, 1 + v)``.
        nu: how much of the positive's logit is subtracted from each.
        eps: the weight of the positive's own term.
        average: divide the inner sum by the sum of the weights, ``N - 1 + eps``.
    """

    kind: Literal["mmcl"] = field(default="mmcl", kw_only=True)
    phi: Literal["log", "identity"] = "identity"
    psi: Literal["exp", "identity", "softplus", "hinge"] = "identity"
    nu: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    eps: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    average: bool = True
    about: ClassVar[About] = About(
        equation="φ(Σⱼ εᵢⱼ ψ(lᵢⱼ − ν lᵢᵢ)), both ways, halved",
        inputs="nothing more",
        state="nothing",
        cost="4 products",
        when="theory; a loss linear in the logits, which symmetric noise does not bias",
        relation="(log, exp, 1, 1): infonce; (id, id, 1, 0): linear, the expectation of gamma_weights at b = 0",
        citation="Nakada et al., Understanding multimodal contrastive learning and incorporating unpaired data, 2023",
    )

    @classmethod
    def infonce(cls) -> MMCL:
        """Return the member that is InfoNCE."""
        return cls(phi="log", psi="exp", nu=1.0, eps=1.0, average=False)

    @classmethod
    def linear(cls) -> MMCL:
        """Return the linear member: the mean negative logit less the positive."""
        return cls(phi="identity", psi="identity", nu=1.0, eps=0.0, average=True)

    @model_validator(mode="after")
    def _increasing_and_finite(self) -> MMCL:
        if self.phi == "log" and self.psi != "exp":
            raise ValueError(f'phi="log" goes with psi="exp" only: the sum of a "{self.psi}" may vanish')
        if self.nu == 0 and self.eps == 0:
            raise ValueError("nu=0 and eps=0 leave no positive in the loss: set nu=1, or eps above 0")
        if self.phi == "identity" and self.psi == "exp":
            raise ValueError('phi="identity" with psi="exp" overflows at useful scales: use phi="log", or kind="decl"')
        return self

    def __call__(self, pairs: Pairs, state: State) -> Float[Tensor, " B"]:
        """Return ``(B,)`` losses.

        Raises:
            ValueError: for a batch of one pair.
        """
        count = pairs.num_pairs - 1 + self.eps if self.average else 1.0
        if self.psi == "exp":
            image, text = (
                self._log_of_exponentials(negatives, positive) - math.log(count)
                for negatives, positive in zip(pairs.log_negatives(), pairs.positive_logits(), strict=True)
            )
        else:
            image, text = (each / count for each in pairs.margin_sums(self.psi, self.nu, self.eps))
        return 0.5 * (image + text)

    def _log_of_exponentials(self, negatives: Tensor, positive: Tensor) -> Tensor:
        if self.eps > 0:
            negatives = torch.logaddexp(negatives, negatives.new_tensor(math.log(self.eps)))
        return negatives if self.nu == 1 else negatives + (1 - self.nu) * positive
