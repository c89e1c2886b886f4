"""How well each caption fits its own picture, and how likely it is the wrong one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from troth.errors import UserError
from troth.geometry import Geometry
from troth.mixture import MINIMUM_VALUES, fit_two_gaussians

Float64 = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]

#: Pairs compared at a time: bounds the (rows, D) product that a paired similarity forms.
_ROWS = 65_536

#: Ashman, Bird and Zepf 1994: two Gaussians closer than this many (root mean square) widths are not told apart.
CLEAR_SEPARATION = 2.0


@torch.no_grad()
def pair_scores(image: Float[Tensor, "N D"], text: Float[Tensor, "N E"], geometry: Geometry) -> Float64:
    """Return the ``(N,)`` similarity of every picture to its own caption (the cosine, on the sphere).

    Args:
        image: one projected point a pair.
        text: likewise, of the caption the pair was *given*.
        geometry: of the points; it says whether the two may differ in width (FILIP's may, by their tokens).

    Raises:
        UserError: for tensors of different length, points that the geometry cannot compare, or scores that are not
            finite.
    """
    if image.ndim != 2 or text.ndim != 2 or len(image) != len(text):
        raise UserError(
            f"expected two (pairs, dimensions) tensors of one length, got {tuple(image.shape)} and {tuple(text.shape)}",
            where="pair_scores",
        )
    parts = [
        geometry.paired_similarity(image[start : start + _ROWS], text[start : start + _ROWS]).double().cpu().numpy()
        for start in range(0, len(image), _ROWS)
    ]
    return check_scores(np.concatenate(parts) if parts else np.empty(0))


def check_scores(scores: npt.ArrayLike) -> Float64:
    """Return scores as ``(N,)`` float64.

    Raises:
        UserError: for another shape, or values that are not finite.
    """
    checked = np.asarray(scores, dtype=np.float64)
    if checked.ndim != 1:
        raise UserError(f"expected one score a pair, got shape {checked.shape}", where="scores")
    bad = np.flatnonzero(~np.isfinite(checked))
    if bad.size:
        raise UserError(
            f"{bad.size} scores are not finite, first: pair {bad[0]}",
            where="scores",
            remedy="the model diverged or overflowed; see its loss",
        )
    return checked


def percentile_quality(scores: npt.ArrayLike) -> Float64:
    """Return each pair's quality in (0, 1): the share of pairs that score lower, equal ones counted half.

    Needs no calibration: 0.02 reads "98% of the pairs fit better". Low is bad.
    """
    checked = check_scores(scores)
    if not checked.size:
        return checked
    _, which, count = np.unique(checked, return_inverse=True, return_counts=True)
    below = np.cumsum(count) - count
    quality: Float64 = (below[which] + 0.5 * count[which]) / checked.size
    return quality


@dataclass(frozen=True)
class Mixture:
    """Two Gaussians fitted to the similarities of all pairs: the lower is read as the wrong pairs.

    Attributes:
        separated: whether two Gaussians describe the scores better (BIC) than one. If not, the rest is not known.
        p_mismatch: ``(N,)`` the posterior that a pair came from the lower one; never rises with the score. NaN if not
            separated.
        noise_rate: the lower one's weight: the estimated share of wrong pairs. NaN if not separated.
        means: of the lower and the higher.
        deviations: standard deviations of the lower and the higher.
        note: why the estimate should not be trusted, if so; empty otherwise.
    """

    separated: bool
    p_mismatch: Float64
    noise_rate: float
    means: tuple[float, float]
    deviations: tuple[float, float]
    note: str

    @property
    def separation(self) -> float:
        """Ashman's D: the distance of the means in root-mean-square widths; below 2 the two overlap heavily."""
        spread = math.sqrt((self.deviations[0] ** 2 + self.deviations[1] ** 2) / 2)
        return (self.means[1] - self.means[0]) / spread if self.separated else 0.0


def fit_mixture(scores: npt.ArrayLike, *, seed: int = 0) -> Mixture:
    """Estimate from the similarities alone how many pairs are wrong, and which.

    A mixture of two Gaussians (expectation-maximisation, scikit-learn, 4 starts), as Li et al. 2020, "DivideMix",
    section 3.1, and Huang et al. 2021, "Learning with noisy correspondence", section 3.2, fit to losses; fitted here
    to the similarity, where wrong pairs are near-Gaussian around that of unrelated pictures and captions. It is an
    estimate, not a calibrated probability: right pairs with vague captions fall into the lower component, and a model
    that has learnt the wrong captions by heart moves them into the higher.

    Args:
        scores: ``(N,)`` similarities.
        seed: of the starting points.
    """
    checked = check_scores(scores)
    fitted = fit_two_gaussians(checked, seed=seed)
    if fitted is None:
        distinct = np.unique(checked).size
        if distinct < MINIMUM_VALUES:
            return _unseparated(checked, f"only {distinct} different scores: too few to fit")
        return _unseparated(checked, "one Gaussian describes the scores as well as two: no sign of wrong pairs")
    note = ""
    if fitted.separation < CLEAR_SEPARATION:
        note = f"the two groups overlap (separation {fitted.separation:.1f} < {CLEAR_SEPARATION:g}): a rough estimate"
    return Mixture(
        separated=True,
        p_mismatch=fitted.lower_posterior(torch.from_numpy(checked)).numpy(),
        noise_rate=fitted.lower_weight,
        means=(fitted.lower_mean, fitted.upper_mean),
        deviations=(fitted.lower_deviation, fitted.upper_deviation),
        note=note,
    )


def _unseparated(scores: Float64, note: str) -> Mixture:
    mean, deviation = (float(scores.mean()), float(scores.std())) if scores.size else (math.nan, math.nan)
    unknown = np.full(scores.shape, np.nan)
    return Mixture(False, unknown, math.nan, (mean, mean), (deviation, deviation), note)
