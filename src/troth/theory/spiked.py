"""The spiked model: two modalities that share a signal of few dimensions, with noise of their own and wrong pairs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from troth.errors import UserError

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PairedSample:
    """Images and captions in rows; row i of one was given with row i of the other.

    Attributes:
        x: images, ``(n, d1)``, float64.
        y: captions, ``(n, d2)``.
        right: ``(n,)`` whether they really belong together.
    """

    x: Tensor
    y: Tensor
    right: Tensor


@dataclass(frozen=True, slots=True)
class EdgeSample:
    """Images and captions of which each may have several partners.

    Attributes:
        x: images, ``(n, d1)``, float64.
        y: captions, ``(m, d2)``.
        edges: ``(n, m)`` which were given as belonging together.
        truth: ``(n, m)`` which really do.
    """

    x: Tensor
    y: Tensor
    edges: Tensor
    truth: Tensor


@dataclass(frozen=True, slots=True)
class UnpairedSample:
    """Images and captions in orders of their own.

    Attributes:
        x: images, ``(n, d1)``, float64.
        y: captions, ``(n, d2)``.
        partner: ``(n,)`` the row of ``y`` that belongs to each row of ``x``; for judging only.
    """

    x: Tensor
    y: Tensor
    partner: Tensor


@dataclass(frozen=True, slots=True)
class SpikedModel:
    """Pairs of vectors that share a signal, each with noise of its own.

    .. code-block:: text

        x = U1 z + xi,   y = U2 z + xi',   z ~ N(0, I_r),   xi_k ~ N(0, noise^2 w_k),   w_k = exp(h g_k) / mean

    U1 and U2 are the first columns of Haar-distributed orthogonal matrices, and ``g`` standard normal, all drawn from
    ``seed``. Heterogeneity ``h`` is the standard deviation of the noise's log-variance; it leaves the total variance as
    it is. With ``rotated_noise`` the noise is uneven over random directions instead of coordinates, so that different
    coordinates' noise is correlated. Samples are functions of (seed, draw); different draws are independent.

    Source: Nakada et al. 2023, the model of the theory and (with ``h = 0``) of the synthetic experiment.

    Attributes:
        image_dim: dimension d1 of x.
        text_dim: dimension d2 of y.
        rank: dimension r of the signal.
        noise: root mean square of the noise's standard deviations over coordinates.
        heterogeneity: h.
        rotated_noise: turn the noise by a random rotation of each modality.
        seed: of the model and its samples.

    Raises:
        UserError: for dimensions below 1, a rank above them, or negative noise or heterogeneity.
    """

    image_dim: int = 40
    text_dim: int = 39
    rank: int = 10
    noise: float = 0.3
    heterogeneity: float = 0.0
    rotated_noise: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        least = min(self.image_dim, self.text_dim)
        if not 0 < self.rank <= least:
            raise UserError(f"{self.rank} is not between 1 and the smaller dimension, {least}", where="rank")
        for name in ("noise", "heterogeneity"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{getattr(self, name)} is not a finite number from 0 on", where=name)
        if self.seed < 0:
            raise UserError(f"{self.seed} is below 0", where="seed")

    def bases(self) -> tuple[Tensor, Tensor]:
        """Return U1 ``(d1, r)`` and U2 ``(d2, r)``, whose columns are orthonormal."""
        image, text = (
            torch.from_numpy(haar_columns(self._draws(0, side), dim, self.rank))
            for side, dim in enumerate((self.image_dim, self.text_dim))
        )
        return image, text

    def noise_levels(self) -> tuple[Tensor, Tensor]:
        """Return the noise's standard deviations, ``(d1,)`` and ``(d2,)``, before a rotation."""
        image, text = (
            torch.from_numpy(self._levels(side, dim)) for side, dim in enumerate((self.image_dim, self.text_dim))
        )
        return image, text

    def sample(self, count: int, *, wrong: float = 0.0, draw: int = 0) -> PairedSample:
        """Draw pairs, a fraction of which exchanged their captions.

        Args:
            count: n.
            wrong: fraction of the captions that move to another image; none of them stays where it was.
            draw: which independent sample.

        Raises:
            UserError: for a fraction outside [0, 1], or no pairs.
        """
        _check_counts(count=count)
        if not 0 <= wrong <= 1:
            raise UserError(f"{wrong} is not a fraction between 0 and 1", where="wrong")
        draws = self._draws(2, draw)
        x, y = self._views(draws, draws.standard_normal((count, self.rank)))
        moved = draws.permutation(count)[: round(wrong * count)]
        right = torch.ones(count, dtype=torch.bool)
        if len(moved) > 1:  # one caption has nowhere to go
            y[moved] = y[np.roll(moved, 1)]
            right[moved] = False
        return PairedSample(torch.from_numpy(x), torch.from_numpy(y), right)

    def unpaired(self, count: int, *, draw: int = 0) -> UnpairedSample:
        """Draw ``count`` images, and their captions in an order of their own.

        Raises:
            UserError: for a count below 1.
        """
        _check_counts(count=count)
        draws = self._draws(3, draw)
        x, y = self._views(draws, draws.standard_normal((count, self.rank)))
        order = draws.permutation(count)
        return UnpairedSample(*(torch.from_numpy(each) for each in (x, y[order], np.argsort(order))))

    def many_to_many(
        self, classes: int, images: int, texts: int, *, spread: float = 0.0, flip: float = 0.0, draw: int = 0
    ) -> EdgeSample:
        """Draw classes of images and captions that all fit each other.

        A class has a signal ``z ~ N(0, I)``; each of its images and captions adds ``N(0, spread^2 I)`` of its own. Then
        each of the edges and non-edges is flipped with probability ``flip``, so that, for edges of probability
        ``1 / classes``, most of what was given may be wrong at small ``flip`` already.

        Args:
            classes: how many.
            images: of each class.
            texts: of each class.
            spread: standard deviation of the signal within a class.
            flip: the probability that an edge is missing, or a non-edge is given as one.
            draw: which independent sample.

        Raises:
            UserError: for a probability outside [0, 1], or counts below 1.
        """
        _check_counts(classes=classes, images=images, texts=texts)
        if not 0 <= flip <= 1:
            raise UserError(f"{flip} is not a probability", where="flip")
        draws = self._draws(4, draw)
        centres = draws.standard_normal((classes, self.rank))
        image_class, text_class = np.repeat(np.arange(classes), images), np.repeat(np.arange(classes), texts)
        signals = [
            centres[label] + spread * draws.standard_normal((len(label), self.rank))
            for label in (image_class, text_class)
        ]
        x, y = self._views(draws, *signals)
        truth = image_class[:, None] == text_class
        edges = truth ^ (draws.random(truth.shape) < flip)
        return EdgeSample(*(torch.from_numpy(each) for each in (x, y, edges, truth)))

    def _views(
        self, draws: np.random.Generator, image: Float64, text: Float64 | None = None
    ) -> tuple[Float64, Float64]:
        """Return both views of signals ``(n, r)``, with noise."""
        views = []
        for side, signal in enumerate((image, image if text is None else text)):
            basis, level = self.bases()[side].numpy(), self.noise_levels()[side].numpy()
            noise = level * draws.standard_normal((len(signal), len(level)))
            if self.rotated_noise:
                noise = noise @ haar_columns(self._draws(5, side), len(level), len(level)).T
            views.append(signal @ basis.T + noise)
        return views[0], views[1]

    def _levels(self, side: int, dim: int) -> Float64:
        weights = np.exp(self.heterogeneity * self._draws(1, side).standard_normal(dim))
        return np.asarray(self.noise * np.sqrt(weights / weights.mean()))

    def _draws(self, purpose: int, number: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, purpose, number])


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise UserError(f"{count} is below 1", where=name)


def haar_columns(draws: np.random.Generator, dim: int, rank: int) -> Float64:
    """Draw the first ``rank`` columns of a Haar-distributed orthogonal matrix, ``(dim, rank)``.

    The Q of a Gaussian matrix is Haar-distributed only where the diagonal of R is made positive (Mezzadri 2007, "How to
    generate random matrices from the classical compact groups").
    """
    orthogonal, triangular = np.linalg.qr(draws.standard_normal((dim, rank)))
    return np.asarray(orthogonal * np.where(np.diagonal(triangular) < 0, -1.0, 1.0))
