"""The linear alignment of two frozen modalities in closed form: whiten each, then the SVD of what they share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class AffineMap:
    """``normalize((x - mean) matrix)``.

    Attributes:
        mean: ``(F,)`` float32.
        matrix: ``(F, r)`` float32.
    """

    mean: Float[Tensor, " F"]
    matrix: Float[Tensor, "F r"]

    def __call__(self, features: Float[Tensor, "N F"]) -> Float[Tensor, "N r"]:
        """Return unit vectors; zeros stay what they become, of length at most 1."""
        return F.normalize((features.to(self.matrix) - self.mean) @ self.matrix, dim=-1)


@dataclass(frozen=True)
class SpectralAlignment:
    """Two linear maps into one space.

    Attributes:
        image: of image features.
        text: of text features.
    """

    image: AffineMap
    text: AffineMap


@dataclass(frozen=True)
class _Side:
    """A modality's mean, and the eigenvectors and eigenvalues of its covariance, float64."""

    mean: Float[Tensor, " F"]
    vectors: Float[Tensor, "F F"]
    values: Float[Tensor, " F"]

    @classmethod
    def of(cls, features: Float[Tensor, "N F"]) -> _Side:
        mean = features.mean(dim=0, dtype=torch.float64)
        centred = features - mean.to(features)
        covariance = (centred.T @ centred).double() / len(features)
        values, vectors = torch.linalg.eigh(covariance)
        return cls(mean, vectors, values.clamp(min=0))

    def whitening(self, shrinkage: float) -> Float[Tensor, "F F"]:
        """Return ``(C + shrinkage mean(eigenvalues) I)^(-1/2)``."""
        return (self.vectors * (self.values + shrinkage * self.values.mean()).rsqrt()) @ self.vectors.T


class Whitened:
    """Both modalities' own statistics, and alignments by what any weighted set of pairs has in common.

    .. code-block:: text

        W_I = (Cov(x) + shrinkage mean_eigenvalue I)^(-1/2)          W_T likewise; from all samples, paired right or not
        M   = W_I  (sum_i w_i (x_i - m_x) (y_i - m_y)^T / sum_i w_i)  W_T      m: the weighted means
        M   = U S V^T
        u(x) = normalize( (x - m_x) W_I U_r S_r^(power / 2) )      v(y) = normalize( (y - m_y) W_T V_r S_r^(power / 2) )

    This is the one-step global minimiser of the linear contrastive loss, whose contrastive cross-covariance is plain
    cross-covariance, on whitened features: regularised canonical correlation analysis. A share p of wrongly matched
    pairs scales the expectation of ``M`` by ``1 - p`` and leaves its singular subspaces as they are, so that noise
    costs samples only. ``power = 1`` weights directions by their correlation, ``power = 0`` counts them all alike.

    Source: Nakada et al. 2023, "Understanding multimodal contrastive learning and incorporating unpaired data"
    (the spectral step); the ridge-regularised whitening is that of canonical ridge analysis (Vinod 1976).

    Args:
        image_features: ``(N, F)`` float32 unit rows.
        text_features: ``(N, G)`` float32, row ``i`` given with image ``i``.
    """

    def __init__(self, image_features: Float[Tensor, "N F"], text_features: Float[Tensor, "N G"]) -> None:
        self.image_features = image_features
        self.text_features = text_features
        self._image, self._text = _Side.of(image_features), _Side.of(text_features)
        self._whitenings: dict[float, tuple[Tensor, Tensor]] = {}

    def whitened_images(self, shrinkage: float) -> Float[Tensor, "N F"]:
        """Return the images' features about their mean, whitened and normalised: ``normalize((x - m_x) W_I)``."""
        centred = self.image_features - self._image.mean.to(self.image_features)
        return F.normalize(centred @ self._image.whitening(shrinkage).to(centred), dim=1)

    def cross_covariance(self, weights: Float[Tensor, " N"]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the weighted ``(F, G)`` cross-covariance of the given pairs and the two weighted means, float64."""
        share = (weights / weights.sum()).to(self.image_features)
        mean_image = (share.double() @ self.image_features.double()).to(self.image_features)
        mean_text = (share.double() @ self.text_features.double()).to(self.text_features)
        moment = (self.image_features - mean_image).T @ ((self.text_features - mean_text) * share.unsqueeze(1))
        return moment.double(), mean_image, mean_text

    def align(
        self, weights: Float[Tensor, " N"], dim: int | None = None, shrinkage: float = 0.3, power: float = 0.0
    ) -> SpectralAlignment:
        """Align by the pairs of positive weight.

        Args:
            weights: ``(N,)``, not negative, not all zero.
            dim: singular directions that are kept; None: all, ``min(F, G)``.
            shrinkage: in units of the mean eigenvalue of each covariance.
            power: of the singular values.
        """
        return self.aligned(self.cross_covariance(weights), dim, shrinkage, power)

    def aligned(
        self, moments: tuple[Tensor, Tensor, Tensor], dim: int | None, shrinkage: float, power: float
    ) -> SpectralAlignment:
        """Align by what :meth:`cross_covariance` returned: one sum over pairs serves several shrinkages."""
        if shrinkage not in self._whitenings:
            self._whitenings[shrinkage] = (self._image.whitening(shrinkage), self._text.whitening(shrinkage))
        moment, mean_image, mean_text = moments
        image, text = self._whitenings[shrinkage]
        left, values, right = singular_directions(image @ moment @ text)
        kept = slice(0, dim)
        strength = values[kept] ** (power / 2)
        return SpectralAlignment(
            AffineMap(mean_image.float(), (image @ left[:, kept] * strength).float()),
            AffineMap(mean_text.float(), (text @ right[:, kept] * strength).float()),
        )


def singular_directions(
    matrix: Float[Tensor, "F G"],
) -> tuple[Float[Tensor, "F r"], Float[Tensor, " r"], Float[Tensor, "G r"]]:
    """Return left directions, singular values (largest first) and right directions of a float64 matrix.

    By the eigenvectors of the smaller Gram matrix, which for 1280 x 384 is many times as fast as a full decomposition;
    directions whose singular value is lost in its rounding are left out.
    """
    if matrix.shape[0] < matrix.shape[1]:
        right, values, left = singular_directions(matrix.T)
        return left, values, right
    squares, vectors = torch.linalg.eigh(matrix.T @ matrix)
    squares, vectors = squares.flip(0), vectors.flip(1)
    kept = squares > squares[0] * 1e-12
    values = squares[kept].sqrt()
    return matrix @ vectors[:, kept] / values, values, vectors[:, kept]
