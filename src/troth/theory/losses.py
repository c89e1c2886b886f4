"""The class of contrastive losses of the theory: two increasing functions, an offset and a weight."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from troth.errors import UserError

OuterFunction = Literal["identity", "log", "power"]
InnerFunction = Literal["identity", "exp", "softplus", "hinge"]


@dataclass(frozen=True, slots=True)
class ContrastiveLoss:
    """A member of the class of losses of multimodal contrastive learning.

    .. code-block:: text

        loss_i = 1/2 phi( sum_j eps_ij psi(s_ij - nu s_ii) ) + 1/2 phi( sum_j eps_ij psi(s_ji - nu s_ii) )
        eps_ij = 1 for j != i,   eps_ii = eps,        L = 1/n sum_i loss_i

        phi  identity v     log  tau log v     power  tau (1 - v^-q) / q
        psi  identity v     exp  exp(v / tau)  softplus  tau log(1 + exp(v / tau))     hinge  max(0, tau + v)

    ====================================  ========  ========  ===  ===
    member                                phi       psi       nu   eps
    ====================================  ========  ========  ===  ===
    InfoNCE, times tau                    log       exp       1    1
    generalised cross-entropy, times tau  power     exp       1    1
    linear (averaged)                     identity  identity  1    0
    pairwise logistic (averaged)          identity  softplus  1    0
    hinge with margin tau (averaged)      identity  hinge     1    0
    ====================================  ========  ========  ===  ===

    The similarities ``s`` are inner products without a scale; ``tau`` is a temperature. With ``psi = exp`` everything
    is computed in log space.

    Source: Nakada et al. 2023, "Understanding multimodal contrastive learning and incorporating unpaired data"; the
    form is reconstructed from its abstract, its public notebooks and related work. That generalised cross-entropy
    (Zhang and Sabuncu 2018) belongs to the class is this package's remark: its positive's probability is ``1 / v``.

    Attributes:
        phi: the outer function.
        psi: the inner function.
        nu: how much of the positive's similarity is subtracted from each.
        eps: the weight of the positive's own term.
        tau: the temperature, or the hinge's margin.
        q: exponent of ``power``; towards 0 it becomes ``log``.
        average: divide the inner sum by the sum of its weights, ``n - 1 + eps``.

    Raises:
        UserError: for members that are not defined, not increasing, or have no positive in them.
    """

    phi: OuterFunction = "identity"
    psi: InnerFunction = "identity"
    nu: float = 1.0
    eps: float = 0.0
    tau: float = 1.0
    q: float = 0.5
    average: bool = False

    def __post_init__(self) -> None:
        for name, choices in (("phi", get_args(OuterFunction)), ("psi", get_args(InnerFunction))):
            if getattr(self, name) not in choices:
                raise UserError(
                    f"unknown function {getattr(self, name)!r}", where=name, remedy=f"one of: {', '.join(choices)}"
                )
        for name, least in (("nu", 0.0), ("eps", 0.0)):
            if not least <= getattr(self, name) < math.inf:
                raise UserError(f"{getattr(self, name)} is not a finite number from 0 on", where=name)
        for name in ("tau", "q"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"{getattr(self, name)} is not a finite number above 0", where=name)
        if self.nu == 0 and self.eps == 0:
            raise UserError("no positive is in the loss", where="nu, eps", remedy="set nu=1, or eps above 0")
        if self.phi != "identity" and self.psi not in ("exp", "softplus"):
            raise UserError(
                f"phi={self.phi!r} needs a positive sum, and that of psi={self.psi!r} need not be",
                where="psi",
                remedy="exp or softplus",
            )

    @classmethod
    def infonce(cls, tau: float = 1.0) -> ContrastiveLoss:
        """Return the member that is InfoNCE, ``tau`` times."""
        return cls("log", "exp", eps=1.0, tau=tau)

    @classmethod
    def generalized_cross_entropy(cls, q: float = 0.5, tau: float = 1.0) -> ContrastiveLoss:
        """Return the member that is generalised cross-entropy, ``tau`` times: ``tau (1 - p_i^q) / q``."""
        return cls("power", "exp", eps=1.0, tau=tau, q=q)

    @classmethod
    def linear(cls) -> ContrastiveLoss:
        """Return the linear member: the mean negative similarity less the positive."""
        return cls(average=True)

    @classmethod
    def logistic(cls, tau: float = 1.0) -> ContrastiveLoss:
        """Return the pairwise logistic member."""
        return cls(psi="softplus", tau=tau, average=True)

    @classmethod
    def hinge(cls, margin: float = 1.0) -> ContrastiveLoss:
        """Return the hinge, ``max(0, margin + s_ij - s_ii)`` averaged over ``j``."""
        return cls(psi="hinge", tau=margin, average=True)

    def __call__(self, similarity: Tensor) -> Tensor:
        """Return each pair's loss.

        Args:
            similarity: ``(..., n, n)`` images by captions, pairs on the diagonal.

        Returns:
            ``(..., n)`` losses, in the unit of the similarities.

        Raises:
            UserError: if it is not square, or has fewer than two pairs.
        """
        _check(similarity)
        return 0.5 * (self._values(similarity) + self._values(similarity.mT))

    def weights(self, similarity: Tensor) -> tuple[Tensor, Tensor]:
        """Return how much the sums' terms count in the gradient.

        .. code-block:: text

            alpha_ij    = eps_ij phi'( sum_k eps_ik psi(s_ik - nu s_ii) ) psi'(s_ij - nu s_ii)
            alphabar_ij = the same with s_ji, s_ki

        Args:
            similarity: ``(..., n, n)`` images by captions, pairs on the diagonal.

        Returns:
            ``alpha`` and ``alphabar``, ``(..., n, n)``, without a unit.

        Raises:
            UserError: if it is not square, or has fewer than two pairs.
        """
        _check(similarity)
        return self._weights(similarity), self._weights(similarity.mT)

    def _values(self, similarity: Tensor) -> Tensor:
        margins, eps = self._margins(similarity)
        if self.psi == "exp":
            log_sum = torch.logsumexp(margins / self.tau + eps.log(), dim=-1)
            if self.phi == "log":
                return self.tau * log_sum
            if self.phi == "power":
                return -self.tau / self.q * torch.expm1(-self.q * log_sum)
            return log_sum.exp()
        total = (eps * self._inner(margins)).sum(-1)
        if self.phi == "log":
            return self.tau * total.log()
        return self.tau / self.q * (1 - total ** (-self.q)) if self.phi == "power" else total

    def _weights(self, similarity: Tensor) -> Tensor:
        margins, eps = self._margins(similarity)
        if self.psi == "exp":
            terms = margins / self.tau + eps.log()
            log_sum = torch.logsumexp(terms, dim=-1, keepdim=True)
            if self.phi == "log":
                return (terms - log_sum).exp()
            if self.phi == "power":
                return (terms - (1 + self.q) * log_sum).exp()
            return terms.exp() / self.tau
        slopes = eps * self._inner_slope(margins)
        if self.phi == "identity":
            return slopes
        total = (eps * self._inner(margins)).sum(-1, keepdim=True)
        return slopes * self.tau * total ** (-1 if self.phi == "log" else -1 - self.q)

    def _margins(self, similarity: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``s_ij - nu s_ii`` and the weights ``eps_ij``."""
        positives = similarity.diagonal(dim1=-2, dim2=-1)
        count = similarity.shape[-1]
        eps = similarity.new_ones(count, count).fill_diagonal_(self.eps)
        if self.average:
            eps = eps / (count - 1 + self.eps)
        return similarity - self.nu * positives[..., None], eps

    def _inner(self, margins: Tensor) -> Tensor:
        if self.psi == "softplus":
            return -self.tau * F.logsigmoid(-margins / self.tau)  # torch's softplus rounds, or overflows
        return (self.tau + margins).clamp(min=0) if self.psi == "hinge" else margins

    def _inner_slope(self, margins: Tensor) -> Tensor:
        if self.psi == "softplus":
            return torch.sigmoid(margins / self.tau)
        return (margins > -self.tau).to(margins) if self.psi == "hinge" else torch.ones_like(margins)


def _check(similarity: Tensor) -> None:
    if similarity.ndim < 2 or similarity.shape[-1] != similarity.shape[-2]:
        raise UserError(f"not square: {tuple(similarity.shape)}", where="similarity", remedy="one caption an image")
    if similarity.shape[-1] < 2:
        raise UserError("a single pair has no negatives", where="similarity", remedy="two pairs at least")
