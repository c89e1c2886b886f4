"""The contrastive cross-covariance: what a gradient step of any member of the class sees of the data."""

from __future__ import annotations

import torch
from torch import Tensor

from troth.errors import UserError
from troth.theory.linear import LinearEncoders
from troth.theory.losses import ContrastiveLoss


def coefficients(loss: ContrastiveLoss, similarity: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``beta_i`` and ``beta_ij``, the coefficients of the contrastive cross-covariance.

    .. code-block:: text

        beta_ij = (alpha_ij + alphabar_ji) / 2,      beta_i = nu / 2 sum_j (alpha_ij + alphabar_ij)
        dL / ds_ij = (beta_ij - [i = j] beta_i) / n

    Args:
        loss: the member.
        similarity: ``(..., n, n)``, pairs on the diagonal.

    Returns:
        ``(..., n)`` and ``(..., n, n)``, without a unit.

    Raises:
        UserError: if the similarities are not square, or of fewer than two pairs.
    """
    image, text = loss.weights(similarity)
    return 0.5 * loss.nu * (image + text).sum(-1), 0.5 * (image + text.mT)


def contrastive_cross_covariance(x: Tensor, y: Tensor, encoders: LinearEncoders, loss: ContrastiveLoss) -> Tensor:
    """Return the contrastive cross-covariance at the given encoders.

    .. code-block:: text

        S(beta) = 1/n sum_i beta_i x_i y_i' - 1/n sum_ij beta_ij x_i y_j'

    For the linear member it is the unbiased sample cross-covariance, whatever the encoders. For InfoNCE, a pair counts
    the less the surer the model is of it, and a negative the more the closer it comes.

    Source: Nakada et al. 2023; derived from the loss in its general form.

    Args:
        x: images, ``(..., n, d1)``.
        y: captions, ``(..., n, d2)``; row i belongs to row i of ``x``.
        encoders: where the weights are taken.
        loss: the member.

    Returns:
        ``(..., d1, d2)``, in the unit of ``x`` times that of ``y``.

    Raises:
        UserError: if there are not as many captions as images, or fewer than two.
    """
    _check_pairs(x, y)
    one, two = coefficients(loss, encoders.similarity(x, y))
    return x.mT @ (one[..., None] * y - two @ y) / x.shape[-2]


def cross_covariance(x: Tensor, y: Tensor) -> Tensor:
    """Return the unbiased sample cross-covariance, which is the linear member's contrastive one: ``(..., d1, d2)``.

    If a fraction p of the pairs is replaced by independent ones, its expectation is ``(1 - p) Cov(x, y)``: weaker, with
    the same singular subspaces.

    Args:
        x: images, ``(..., n, d1)``.
        y: captions, ``(..., n, d2)``; row i belongs to row i of ``x``.

    Raises:
        UserError: if there are not as many captions as images, or fewer than two.
    """
    _check_pairs(x, y)
    return x.mT @ (y - y.mean(-2, keepdim=True)) / (x.shape[-2] - 1)


def edge_cross_covariance(x: Tensor, y: Tensor, edges: Tensor) -> Tensor:
    """Return the linear member's cross-covariance where images and captions may have several partners.

    .. code-block:: text

        S = 1/|E| sum_{(i, j) in E} x_i y_j' - mean(x) mean(y)'

    Args:
        x: images, ``(n, d1)``.
        y: captions, ``(m, d2)``.
        edges: ``(n, m)`` booleans, or weights: which belong together.

    Returns:
        ``(d1, d2)``, in the unit of ``x`` times that of ``y``.

    Raises:
        UserError: if there is no edge, or the shape is wrong.
    """
    if edges.shape != (len(x), len(y)):
        raise UserError(f"{tuple(edges.shape)} is not one row an image, one column a caption", where="edges")
    weights = edges.to(x)
    total = weights.sum()
    if total <= 0:
        raise UserError("no image has a caption", where="edges")
    return x.mT @ weights @ y / total - torch.outer(x.mean(0), y.mean(0))


def objective(x: Tensor, y: Tensor, encoders: LinearEncoders, loss: ContrastiveLoss, rho: float) -> Tensor:
    """Return the regularised loss, ``1/n sum_i loss_i + rho/2 ||G1' G2||_F^2``, ``(...)``."""
    return loss(encoders.similarity(x, y)).mean(-1) + 0.5 * rho * encoders.product.square().sum((-2, -1))


def gradient(x: Tensor, y: Tensor, encoders: LinearEncoders, loss: ContrastiveLoss, rho: float = 0.0) -> LinearEncoders:
    """Return the gradient of :func:`objective`, by the identity that the theory rests on.

    .. code-block:: text

        dL/dG1 = -G2 S' + rho G2 G2' G1,      dL/dG2 = -G1 S + rho G1 G1' G2

    which is that of ``-tr(G1 S G2') + rho/2 ||G1' G2||_F^2`` with ``S`` held fixed.

    Source: Nakada et al. 2023; derived from the loss in its general form.

    Args:
        x: images, ``(..., n, d1)``.
        y: captions, ``(..., n, d2)``.
        encoders: where.
        loss: the member.
        rho: weight of the regulariser.
    """
    gap = rho * encoders.product - contrastive_cross_covariance(x, y, encoders, loss)
    return LinearEncoders(encoders.text @ gap.mT, encoders.image @ gap)


def _check_pairs(x: Tensor, y: Tensor) -> None:
    if x.shape[-2] != y.shape[-2] or x.shape[-2] < 2:
        raise UserError(
            f"{x.shape[-2]} images and {y.shape[-2]} captions", remedy="one caption an image, and two pairs at least"
        )
