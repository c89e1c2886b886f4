"""Generalised cross-entropy: a loss that a hopeless pair cannot dominate."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from troth.objectives.base import About, Objective
from troth.similarity import Pairs
from troth.state import State
from troth.types import STRICT


@dataclass(frozen=True, config=STRICT)
class GeneralizedCE(Objective):
    """InfoNCE with its logarithm replaced by a power, bounded where the logarithm is not.

    .. code-block:: text

        loss_i = 1/2 (1 - p_i^q) / q  +  1/2 (1 - r_i^q) / q,            0 < q <= 1        (nats as q -> 0)
        p_i    = exp(l_ii) / sum_j exp(l_ij),      r_i = exp(l_ii) / sum_j exp(l_ji)

    The gradient is InfoNCE's times ``p_i^q``: a pair the model finds impossible (a wrong caption, typically) pulls
    almost not at all. ``q -> 0`` is InfoNCE, ``q = 1`` the mean absolute error of the match probability, which
    tolerates symmetric noise but learns slowly.

    Source: Zhang and Sabuncu 2018, "Generalized cross entropy loss for training deep neural networks with noisy
    labels", equation 6, applied to the rows and columns of the contrastive softmax. RINCE (Chuang et al. 2022) takes
    the same power of the unnormalised scores, which overflow at CLIP's scales; this is its form on probabilities.

    Attributes:
        q: how far from the logarithm; the source's default for labels is 0.7, ours 0.5, not tuned on the data here.
    """

    kind: Literal["generalized_ce"] = field(default="generalized_ce", kw_only=True)
    q: Annotated[float, Field(gt=0, le=1)] = 0.5
    about: ClassVar[About] = About(
        equation="(1 − pᵢ^q) / q, both ways, halved; pᵢ = softmax of the pair",
        inputs="nothing more",
        state="nothing",
        cost="4 products",
        when="wrong captions, unknown which: a hopeless pair pulls almost not at all",
        relation="q → 0: infonce; q = 1: mean absolute error; RINCE is this power of unnormalised scores",
        citation=(
            "Zhang and Sabuncu, Generalized cross entropy loss for training deep neural networks with noisy labels, "
            "2018"
        ),
    )

    def __call__(self, pairs: Pairs, state: State) -> Float[Tensor, " B"]:
        """Return ``(B,)`` losses, between 0 and ``1 / q``."""
        surprise = pairs.cross_entropy()
        return 0.5 * (self._loss(-surprise.image) + self._loss(-surprise.text))

    def _loss(self, log_probability: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        # expm1 keeps the digits of a pair that is nearly certain, where 1 - p^q would cancel.
        return -torch.expm1(self.q * log_probability) / self.q
