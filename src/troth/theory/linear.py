"""Linear encoders, and how far the subspaces that they read are from the true ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from troth.errors import UserError


@dataclass(frozen=True, slots=True)
class LinearEncoders:
    """Two linear maps into a common space, ``x -> G1 x`` and ``y -> G2 y``.

    Attributes:
        image: G1, ``(..., r, d1)``; leading dimensions are independent encoders, side by side.
        text: G2, ``(..., r, d2)``.
    """

    image: Tensor
    text: Tensor

    @classmethod
    def random(cls, rank: int, image_dim: int, text_dim: int, *, size: float = 0.1, seed: int = 0) -> LinearEncoders:
        """Draw Gaussian entries of standard deviation ``size / sqrt(d)``, float64."""
        generator = torch.Generator().manual_seed(seed)
        image, text = (
            torch.randn(rank, dim, generator=generator, dtype=torch.float64) * size / dim**0.5
            for dim in (image_dim, text_dim)
        )
        return cls(image, text)

    @property
    def product(self) -> Tensor:
        """``G1' G2``, ``(..., d1, d2)``: all that similarities depend on."""
        return self.image.mT @ self.text

    def similarity(self, x: Tensor, y: Tensor) -> Tensor:
        """Return ``<G1 x_i, G2 y_j>``, ``(..., n, m)``, of ``x`` ``(..., n, d1)`` and ``y`` ``(..., m, d2)``."""
        return (x @ self.image.mT) @ (y @ self.text.mT).mT


def sin_theta(found: Tensor, true: Tensor, norm: Literal["frobenius", "spectral"] = "frobenius") -> Tensor:
    """Return the sin-theta distance of two subspaces.

    .. code-block:: text

        || sin Theta(A, B) || = || (I - P_A) Q_B ||        P_A the projection onto span A, Q_B a basis of span B

    From 0 (equal) to ``sqrt(r)`` (orthogonal; ``frobenius``) or 1 (``spectral``), without a unit. Computed from the
    residual, not from cosines, so that small angles keep their digits.

    Args:
        found: A, ``(..., d, r)``, one subspace's basis in columns (of encoders, ``image.mT``); of full column rank.
        true: B, ``(..., d, r)``.
        norm: the root of the sum of all squared sines, or the largest sine.

    Returns:
        ``(...)`` distances.

    Raises:
        UserError: if the shapes differ.
    """
    if found.shape[-2:] != true.shape[-2:]:
        raise UserError(
            f"subspaces of different shapes, {tuple(found.shape)} and {tuple(true.shape)}", remedy="both (d, r)"
        )
    a, b = torch.linalg.qr(found).Q, torch.linalg.qr(true).Q
    residual = b - a @ (a.mT @ b)
    distance: Tensor = torch.linalg.matrix_norm(residual, "fro" if norm == "frobenius" else 2)
    return distance
