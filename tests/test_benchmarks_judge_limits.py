"""The weights that the judge's limits are measured with."""

import numpy as np
import pytest
from benchmarks.judge_limits import KINDS, weights


def test_calibrated_weights_are_the_share_of_right_pairs_and_never_fall_with_the_score() -> None:
    rng = np.random.default_rng(0)
    wrong = rng.random(4000) < 0.4
    score = rng.normal(size=4000) - 1.5 * wrong
    found = weights("calibrated", score, np.zeros(4000), wrong)
    assert (np.diff(found[score.argsort()]) >= 0).all()
    assert found.mean() == pytest.approx((~wrong).mean())
    for low, high in ((0.1, 0.3), (0.3, 0.6), (0.6, 0.9)):
        near = (found > low) & (found < high)
        assert near.sum() > 100
        assert found[near].mean() == pytest.approx((~wrong)[near].mean(), abs=0.05)


def test_the_other_weights_are_one_the_judges_and_the_answers() -> None:
    wrong, p_mismatch = np.array([True, False]), np.array([0.75, 0.25])
    found = [weights(kind, np.zeros(2), p_mismatch, wrong).tolist() for kind in KINDS if kind != "calibrated"]
    assert found == [[1, 1], [0.25, 0.75], [0, 1]]
