"""From a score to the probability that a pair is wrong, without a label: what wrong pairs score is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]

#: The share of wrong pairs is read where these shares of re-paired scores lie below.
_QUANTILES = np.linspace(0.1, 0.5, 9)


@dataclass(frozen=True)
class Mismatch:
    """Attributes:
    p_mismatch: ``(N,)`` the probability that each pair is wrong; it never rises with the score.
    noise_rate: the estimated share of wrong pairs, in [0, 1].
    """

    p_mismatch: Float64
    noise_rate: float


def mismatch(given: Float64, repaired: Float64, weights: Float64 | None = None) -> Mismatch:
    """Hold the scores of the given pairs against those of pairs that are wrong for certain.

    .. code-block:: text

        f_given = (1 - e) f_right + e f_wrong                                    f: densities of the score
        P(wrong | s) = e f_wrong(s) / f_given(s)
        e            = min over low scores q of F_given(q) / F_wrong(q) + standard error     F: distributions

    ``f_wrong`` needs no labels and no Gaussian: captions moved on purpose have it, at random or among like
    ones. The ratio of densities is fitted as a monotone function of the score (isotonic regression of "given" against
    "re-paired"). The share ``e`` is what is left where no right pair is: right pairs that score as low as random ones
    are counted wrong, so that with many pairs it is an upper bound; with few, the least of several noisy ratios is too
    small, which one standard error of the counts only partly mends. Wrong captions of another kind than those moved on
    purpose, as of the same category where these are anyone's, do not look like them and are not counted; the estimate
    is then too low.

    Source: mixture proportion estimation with a known component (Blanchard et al. 2010, "Semi-supervised novelty
    detection"; Elkan and Noto 2008), applied to re-paired samples.

    Args:
        given: ``(N,)`` scores of the given pairs, larger fits better.
        repaired: ``(M,)`` scores of re-paired samples, made as the given ones.
        weights: ``(N,)`` how much the given pairs count, in [0, 1]; None: all alike. Probability and share are then of
            what these leave: of pairs that are not wrong in another way.
    """
    from sklearn.isotonic import IsotonicRegression  # takes a second to import

    values = np.concatenate([given, repaired])
    is_given = np.concatenate([np.ones(len(given)), np.zeros(len(repaired))])
    counts = np.ones(len(given)) if weights is None else np.maximum(weights, 1e-6)
    weight = np.concatenate([counts / counts.sum(), np.full(len(repaired), 1 / len(repaired))])
    fitted = IsotonicRegression(out_of_bounds="clip").fit(values, is_given, sample_weight=weight)
    probability = fitted.predict(given)
    ratio = (1 - probability) / np.maximum(probability, 1e-9)
    thresholds = np.quantile(repaired, _QUANTILES)
    rate = min(1.0, *(_share_below(given, counts, repaired, threshold) for threshold in thresholds))
    return Mismatch(np.clip(rate * ratio, 0.0, 1.0), rate)


def _share_below(given: Float64, counts: Float64, repaired: Float64, threshold: float) -> float:
    """Return how much rarer the given pairs are than the re-paired ones below a score, plus one standard error."""
    ours, theirs = float(counts[given <= threshold].sum()), int((repaired <= threshold).sum())
    share = max(ours, 1.0) / counts.sum() / (theirs / len(repaired))  # no pair at all is no proof that there is none
    return float(share * (1 + np.sqrt(1 / max(ours, 1.0) + 1 / theirs)))
