"""How likely pairs are wrong: by the judge that a run had, or by a model's own similarities."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from troth.audit.scores import Float64, Int64Array, Mixture, fit_mixture
from troth.train.mismatch_estimates import JUDGEMENT_NAME, MismatchEstimates

_REMEDY = "remove it, and the model's own similarities are taken, or train the run again"


def estimates_of_run(folder: Path, num_pairs: int) -> MismatchEstimates | None:
    """Return what a run's judge left beside its weights; None if it had none.

    Raises:
        UserError: if what it left cannot be used.
    """
    path = folder / JUDGEMENT_NAME
    return MismatchEstimates.read(path, num_pairs, remedy=_REMEDY) if path.is_file() else None


def estimates_by_similarity(ids: Int64Array, scores: Float64) -> MismatchEstimates:
    """Return what a model's ``(Q,)`` similarities of the pairs ``ids`` say, by :func:`fit_mixture`."""
    mixture = fit_mixture(scores)
    return MismatchEstimates(ids, scores, mixture.noise_rate, mixture.p_mismatch)


def mixture_of(estimates: MismatchEstimates, ids: Int64Array) -> Mixture | None:
    """Return the probabilities of some samples as an audit takes them, NaN for those that were not judged.

    None if no probability is known.
    """
    if np.isnan(estimates.p_mismatch).all():
        return None
    places = {int(sample): row for row, sample in enumerate(estimates.id)}
    rows = np.array([places.get(int(sample), -1) for sample in ids], dtype=np.int64)
    probability = np.append(estimates.p_mismatch, np.nan)[rows]  # the last one is nobody's
    unknown = (float("nan"), float("nan"))
    return Mixture(True, probability, estimates.noise_rate, means=unknown, deviations=unknown, note="not judged")
