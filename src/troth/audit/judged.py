"""Between scores of pairs, by a model or by a judge, and the probabilities that a pair is wrong."""

from __future__ import annotations

import numpy as np

from troth.audit.scores import Float64, Int64Array, Mixture, fit_mixture
from troth.train.judged import Judged


def judged_by_similarity(ids: Int64Array, scores: Float64) -> Judged:
    """Return what a model's ``(Q,)`` similarities of the pairs ``ids`` say, by :func:`fit_mixture`."""
    mixture = fit_mixture(scores)
    return Judged(ids, scores, mixture.noise_rate, mixture.p_mismatch)


def judged_mixture(judged: Judged, ids: Int64Array) -> Mixture | None:
    """Return the probabilities of some samples as an audit takes them, NaN for those that were not judged.

    None if no probability is known.
    """
    if np.isnan(judged.p_mismatch).all():
        return None
    places = {int(sample): row for row, sample in enumerate(judged.id)}
    rows = np.array([places.get(int(sample), -1) for sample in ids], dtype=np.int64)
    probability = np.append(judged.p_mismatch, np.nan)[rows]  # the last one is nobody's
    unknown = (float("nan"), float("nan"))
    return Mixture(True, probability, judged.noise_rate, means=unknown, deviations=unknown, note="not judged")
