"""What one modality alone can learn: principal components, and contrastive learning of masked views."""

from __future__ import annotations

import torch
from torch import Tensor

from troth.errors import UserError


def principal_components(x: Tensor, rank: int) -> Tensor:
    """Return the leading principal components of ``x`` ``(..., n, d)``, in rows: ``(..., rank, d)``.

    Also what linear contrastive learning finds when both views of a sample are the sample itself.

    Raises:
        UserError: for a rank above the dimension, or fewer than two samples.
    """
    return _leading(_covariance(x, rank), rank)


def unimodal_contrastive(x: Tensor, rank: int) -> Tensor:
    """Return the encoder that the linear contrastive loss learns from masked views of one modality.

    .. code-block:: text

        views A x and (I - A) x, A a diagonal of fair coins;    E[A C (I - A)] = 1/4 offdiagonal(C)

    for the sample covariance C, so that the expected contrastive cross-covariance is C without its diagonal, and the
    encoder its leading eigenvectors. Noise that differs between coordinates stays out of it in expectation; so does the
    signal's own diagonal, which biases the subspace the more the fewer coordinates carry it.

    Source: Ji et al. 2021, "The power of contrast for feature learning: a theoretical analysis"; the comparison is that
    of Nakada et al. 2023.

    Args:
        x: ``(..., n, d)``.
        rank: r.

    Returns:
        ``(..., rank, d)``, orthonormal rows.

    Raises:
        UserError: for a rank above the dimension, or fewer than two samples.
    """
    covariance = _covariance(x, rank)
    return _leading(covariance - torch.diag_embed(covariance.diagonal(dim1=-2, dim2=-1)), rank)


def _covariance(x: Tensor, rank: int) -> Tensor:
    count, dim = x.shape[-2:]
    if not 0 < rank <= dim:
        raise UserError(f"{rank} is not between 1 and {dim}", where="rank")
    if count < 2:
        raise UserError("a single sample has no covariance", where="x", remedy="two at least")
    centred = x - x.mean(-2, keepdim=True)
    return centred.mT @ centred / (count - 1)


def _leading(symmetric: Tensor, rank: int) -> Tensor:
    vectors: Tensor = torch.linalg.eigh(symmetric).eigenvectors
    return vectors[..., -rank:].flip(-1).mT
