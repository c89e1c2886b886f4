"""What an audit takes from a run's judge, and from a model's similarities."""

from pathlib import Path

import numpy as np
import pytest

from troth.audit import estimates_by_similarity, estimates_of_run, mixture_of
from troth.errors import UserError
from troth.train import JUDGEMENT_NAME, MismatchEstimates


def test_an_audit_gets_the_probabilities_of_those_that_were_judged() -> None:
    estimates = MismatchEstimates(np.array([4, 0]), np.array([0.5, -2.0]), 0.375, np.array([0.25, 0.75]))
    mixture = mixture_of(estimates, np.array([0, 1, 4]))
    assert mixture is not None
    np.testing.assert_array_equal(mixture.p_mismatch, [0.75, np.nan, 0.25])
    assert mixture.noise_rate == 0.375


def test_without_probabilities_there_is_nothing_for_an_audit() -> None:
    estimates = MismatchEstimates(np.array([0]), np.array([1.0]), float("nan"), np.array([np.nan]))
    assert mixture_of(estimates, np.array([0])) is None


def test_a_models_similarities_tell_two_groups_apart() -> None:
    random = np.random.default_rng(0)
    scores = np.concatenate([random.normal(0.1, 0.05, 300), random.normal(0.6, 0.05, 700)])
    ids = np.arange(1000)[::-1].copy()
    estimates = estimates_by_similarity(ids, scores)
    assert abs(estimates.noise_rate - 0.3) < 0.02
    assert estimates.p_mismatch[:300].min() > 0.9
    assert estimates.p_mismatch[300:].max() < 0.1
    assert estimates.score.tolist() == scores.tolist()
    assert estimates.id.tolist() == ids.tolist()


def test_a_run_without_a_judge_has_left_nothing(tmp_path: Path) -> None:
    assert estimates_of_run(tmp_path, 1) is None
    MismatchEstimates(np.array([0]), np.array([1.0]), 0.0, np.array([0.5])).write(tmp_path / JUDGEMENT_NAME)
    found = estimates_of_run(tmp_path, 1)
    assert found is not None
    assert found.score.tolist() == [1.0]


def test_what_to_do_about_a_bad_one_is_said(tmp_path: Path) -> None:
    (tmp_path / JUDGEMENT_NAME).write_text("cut off")
    with pytest.raises(UserError, match=r"judgement.parquet: not a judgement: .*remove it, and the model's own"):
        estimates_of_run(tmp_path, 1)
