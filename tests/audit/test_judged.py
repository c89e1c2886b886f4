"""What an audit takes from a judge's scores, and from a model's."""

import numpy as np

from troth.audit import fit_mixture, judged_by_similarity, judged_mixture
from troth.train import Judged


def test_an_audit_gets_the_probabilities_of_those_that_were_judged() -> None:
    judged = Judged(np.array([4, 0]), np.array([0.5, -2.0]), 0.375, np.array([0.25, 0.75]))
    mixture = judged_mixture(judged, np.array([0, 1, 4]))
    assert mixture is not None
    np.testing.assert_array_equal(mixture.p_mismatch, [0.75, np.nan, 0.25])
    assert mixture.noise_rate == 0.375


def test_without_probabilities_there_is_nothing_for_an_audit() -> None:
    judged = Judged(np.array([0]), np.array([1.0]), float("nan"), np.array([np.nan]))
    assert judged_mixture(judged, np.array([0])) is None


def test_a_models_similarities_are_judged_by_their_mixture() -> None:
    random = np.random.default_rng(0)
    scores = np.concatenate([random.normal(0.1, 0.05, 300), random.normal(0.6, 0.05, 700)])
    judged = judged_by_similarity(np.arange(1000)[::-1].copy(), scores)
    assert judged.noise_rate == fit_mixture(scores).noise_rate
    assert abs(judged.noise_rate - 0.3) < 0.02
    assert judged.p_mismatch[:300].min() > 0.9
    assert judged.p_mismatch[300:].max() < 0.1
    assert judged.id[0] == 999
