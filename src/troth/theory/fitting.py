"""Two ways to fit linear encoders: gradient descent, and the SVD that each of its steps amounts to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from troth.errors import UserError
from troth.theory.covariance import contrastive_cross_covariance, gradient, objective
from troth.theory.linear import LinearEncoders
from troth.theory.losses import ContrastiveLoss

#: What is noted of the encoders after every step.
Measure = Callable[[LinearEncoders], float]

#: Relative differences of the loss that are rounding.
_ROUNDING = 1e-14


@dataclass(frozen=True, slots=True)
class Fit:
    """Fitted encoders.

    Attributes:
        encoders: as they are after the last step.
        trace: what ``measure`` said before the first step and after each; empty without a measure.
    """

    encoders: LinearEncoders
    trace: tuple[float, ...] = ()


def spectral_step(covariance: Tensor, rank: int, rho: float = 1.0) -> LinearEncoders:
    """Minimise ``-tr(G1 S G2') + rho/2 ||G1' G2||_F^2`` over all encoders of a rank.

    .. code-block:: text

        G1' G2 = SVD_r(S) / rho,      G1 = (Sigma_r / rho)^(1/2) U_r',      G2 = (Sigma_r / rho)^(1/2) V_r'

    The minimiser is unique up to ``G1 -> A G1, G2 -> A^-T G2``; this one is balanced, ``G1 G1' = G2 G2'``.

    Source: Nakada et al. 2023.

    Args:
        covariance: S, ``(..., d1, d2)``.
        rank: r.
        rho: weight of the regulariser.

    Raises:
        UserError: for a rank above the smaller dimension, or ``rho`` that is not above 0.
    """
    if not 0 < rank <= min(covariance.shape[-2:]):
        raise UserError(f"{rank} is not between 1 and {min(covariance.shape[-2:])}", where="rank")
    if not rho > 0:
        raise UserError(f"{rho} leaves the minimum unbounded", where="rho", remedy="above 0")
    left, values, right = torch.linalg.svd(covariance, full_matrices=False)
    scale = (values[..., :rank] / rho).sqrt()[..., None]
    return LinearEncoders(scale * left[..., :rank].mT, scale * right[..., :rank, :])


def fit_spectral(
    x: Tensor,
    y: Tensor,
    loss: ContrastiveLoss,
    rank: int,
    *,
    rho: float = 1.0,
    steps: int = 500,
    tolerance: float = 1e-10,
    measure: Measure | None = None,
) -> Fit:
    """Alternate the weights of the cross-covariance and its SVD until both agree.

    .. code-block:: text

        M <- SVD_r( (1 - mu) M + mu S(beta(M)) / rho ),        M = G1' G2

    From ``M = 0``, where the weights of every member with ``nu = 1`` are those of the plain cross-covariance, up to a
    factor. With ``mu = 1`` this is :func:`spectral_step`. The linear member's weights never change, and one step is the
    whole fit; the weights of others move as the encoders do, and full steps may overshoot and never settle: ``mu`` is
    halved where a step would raise the regularised loss, and grows again by half where it does not.

    Where this settles, the regularised loss is stationary: M consists of r singular triples of ``S(beta(M)) / rho``.
    They need not be the largest. What is learnt shrinks in S to fit M, what is not stays as it was, and with strong
    noise or many wrong pairs it may be the larger: a full step would then leave the stationary point.

    Args:
        x: images, ``(n, d1)``.
        y: captions, ``(n, d2)``.
        loss: the member.
        rank: r.
        rho: weight of the regulariser.
        steps: how many at most, tried ones included.
        tolerance: stop where a step changes M by less than ``mu`` times this, relative to itself.
        measure: what to note before the first step and after every one that was kept.

    Raises:
        UserError: if captions and images do not match in number, or for an impossible rank or ``rho``.
    """
    encoders = LinearEncoders(x.new_zeros(rank, x.shape[-1]), y.new_zeros(rank, y.shape[-1]))
    trace = [measure(encoders)] if measure else []
    target = contrastive_cross_covariance(x, y, encoders, loss) / rho
    value, mixing = objective(x, y, encoders, loss, rho), 1.0
    for _ in range(steps):
        tried = spectral_step(rho * ((1 - mixing) * encoders.product + mixing * target), rank, rho)
        new = objective(x, y, tried, loss, rho)
        change = torch.dist(tried.product, encoders.product) / mixing
        settled = bool(change <= tolerance * torch.linalg.matrix_norm(tried.product))
        if new > value + _ROUNDING * value.abs() and not settled:
            mixing *= 0.5
            continue
        encoders, value, mixing = tried, new, min(1.0, 1.5 * mixing)
        target = contrastive_cross_covariance(x, y, encoders, loss) / rho
        if measure:
            trace.append(measure(encoders))
        if settled:
            break
    return Fit(encoders, tuple(trace))


def fit_gradient_descent(
    x: Tensor,
    y: Tensor,
    loss: ContrastiveLoss,
    start: LinearEncoders,
    *,
    rho: float = 1.0,
    learning_rate: float = 0.1,
    steps: int = 500,
    measure: Measure | None = None,
) -> Fit:
    """Minimise the regularised loss by gradient descent with a constant rate.

    Args:
        x: images, ``(..., n, d1)``.
        y: captions, ``(..., n, d2)``.
        loss: the member.
        start: first encoders; at zero both gradients vanish, so not zero.
        rho: weight of the regulariser.
        learning_rate: of both encoders. A rate well below ``1 / ||S||`` does not diverge.
        steps: how many.
        measure: what to note before the first step and after every one.

    Raises:
        UserError: if captions and images do not match in number, or the iteration diverges.
    """
    encoders = start
    trace = [measure(encoders)] if measure else []
    for _ in range(steps):
        slope = gradient(x, y, encoders, loss, rho)
        encoders = LinearEncoders(
            encoders.image - learning_rate * slope.image, encoders.text - learning_rate * slope.text
        )
        if measure:
            trace.append(measure(encoders))
    if not (encoders.image.isfinite().all() and encoders.text.isfinite().all()):
        raise UserError("gradient descent diverged", where="learning_rate", remedy=f"less than {learning_rate:g}")
    return Fit(encoders, tuple(trace))
