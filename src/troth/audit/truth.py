"""How well scores find the wrong pairs, where the truth is known because the noise was injected."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.metrics import average_precision_score

from troth.audit.scores import Float64, Int64Array, check_scores
from troth.errors import UserError

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Truth:
    """How the scores stand against the known mask.

    Attributes:
        num_pairs: all pairs.
        num_mismatched: wrong ones.
        auroc: the probability that a wrong pair scores lower than a right one (ties half): 0.5 is chance, 1 perfect.
            None if all pairs are right, or all wrong.
        auroc_standard_error: by DeLong et al. 1988; None if unknown.
        average_precision: of the list of pairs, most suspicious first; chance is the true rate. None as ``auroc``.
        true_rate: share of wrong pairs.
        estimated_rate: what was estimated without the mask, if given and known.
    """

    num_pairs: int
    num_mismatched: int
    auroc: float | None
    auroc_standard_error: float | None
    average_precision: float | None
    true_rate: float
    estimated_rate: float | None


def against_truth(scores: npt.ArrayLike, mismatched: npt.ArrayLike, *, estimated_rate: float | None = None) -> Truth:
    """Score the suspicion (low score first) against the mask of truly wrong pairs.

    Args:
        scores: ``(N,)`` similarities.
        mismatched: ``(N,)`` bool, True where the caption belongs to another picture.
        estimated_rate: share of wrong pairs estimated without the mask; NaN counts as unknown.

    Raises:
        UserError: for no pairs, a mask of another length or not bool, and scores that are not finite.
    """
    checked, wrong = check_scores(scores), _check_mask(mismatched, scores)
    if not checked.size:
        raise UserError("no pairs", where="scores")
    auroc, error = _delong(checked[wrong], checked[~wrong])
    precision = None if auroc is None else float(average_precision_score(wrong, -checked))
    known = estimated_rate is not None and math.isfinite(estimated_rate)
    return Truth(
        num_pairs=int(checked.size),
        num_mismatched=int(wrong.sum()),
        auroc=auroc,
        auroc_standard_error=error,
        average_precision=precision,
        true_rate=float(wrong.mean()),
        estimated_rate=estimated_rate if known else None,
    )


@dataclass(frozen=True)
class SimilarityHistogram:
    """How many right and wrong pairs fall into each interval of the score.

    Attributes:
        edges: ``(bins + 1,)`` ascending.
        right: ``(bins,)`` counts of right pairs.
        wrong: ``(bins,)`` counts of wrong pairs.
    """

    edges: Float64
    right: Int64Array
    wrong: Int64Array


def similarity_histogram(
    scores: npt.ArrayLike,
    mismatched: npt.ArrayLike,
    *,
    bins: int = 60,
    limits: tuple[float, float] | None = None,
) -> SimilarityHistogram:
    """Count right and wrong pairs by score; every pair is counted, those beyond ``limits`` in the outermost bins.

    Args:
        scores: ``(N,)`` similarities.
        mismatched: ``(N,)`` bool mask of wrong pairs.
        bins: number of intervals.
        limits: lowest and highest edge; those of the scores if None (give them to compare two models).

    Raises:
        UserError: as :func:`against_truth`.
    """
    checked, wrong = check_scores(scores), _check_mask(mismatched, scores)
    if not checked.size:
        raise UserError("no pairs", where="scores")
    low, high = limits if limits is not None else (float(checked.min()), float(checked.max()))
    if not low < high:
        low, high = low - 0.5, low + 0.5
    edges = np.linspace(low, high, bins + 1)
    held = np.clip(checked, low, high)
    return SimilarityHistogram(
        edges=edges,
        right=np.histogram(held[~wrong], edges)[0].astype(np.int64),
        wrong=np.histogram(held[wrong], edges)[0].astype(np.int64),
    )


def _check_mask(mismatched: npt.ArrayLike, scores: npt.ArrayLike) -> BoolArray:
    mask = np.asarray(mismatched)
    if mask.dtype != np.bool_ or mask.shape != np.shape(scores):
        raise UserError(
            f"expected a bool mask of shape {np.shape(scores)}, got {mask.dtype} of shape {mask.shape}",
            where="mismatched",
        )
    return mask


def _delong(wrong: Float64, right: Float64) -> tuple[float | None, float | None]:
    """Return P(wrong < right) + P(equal) / 2 and its standard error, from each score's placement in the other group."""
    if not wrong.size or not right.size:
        return None, None
    placed_wrong = 1.0 - _share_below(right, wrong)
    placed_right = _share_below(wrong, right)
    auroc = float(placed_wrong.mean())
    if min(wrong.size, right.size) < 2:
        return auroc, None
    variance = placed_wrong.var(ddof=1) / wrong.size + placed_right.var(ddof=1) / right.size
    return auroc, math.sqrt(float(variance))


def _share_below(others: Float64, values: Float64) -> Float64:
    """Return, for each value, the share of ``others`` below it, equal ones counted half."""
    ordered = np.sort(others)
    below = np.searchsorted(ordered, values, side="left")
    not_above = np.searchsorted(ordered, values, side="right")
    share: Float64 = (below + not_above) / (2.0 * others.size)
    return share
