"""Scores, the mixture, and how they stand against a known truth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from troth.audit import (
    against_truth,
    fit_mixture,
    pair_scores,
    percentile_quality,
    similarity_histogram,
)
from troth.errors import UserError
from troth.geometry import FILIP, Sphere

SPHERE = Sphere()


def noisy_scores(count: int, rate: float, gap: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    wrong = np.zeros(count, dtype=bool)
    wrong[: int(rate * count)] = True
    generator.shuffle(wrong)
    return generator.normal(np.where(wrong, 0.0, gap), np.where(wrong, 0.1, 0.15)), wrong


def test_a_pair_s_score_is_its_own_cosine() -> None:
    image, text = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    found = pair_scores(SPHERE.project(image), SPHERE.project(text), SPHERE)
    for score, a, b in zip(found, image.numpy(), text.numpy(), strict=True):
        assert score == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    with pytest.raises(UserError, match="of one length"):
        pair_scores(image, text[:3], SPHERE)
    with pytest.raises(UserError, match="4 and 3 dimensions cannot be compared"):
        pair_scores(image, text[:, :3], SPHERE)
    with pytest.raises(UserError, match="2 scores are not finite, first: pair 1"):
        pair_scores(image.index_fill(0, torch.tensor([1, 4]), torch.nan), text, SPHERE)
    with pytest.raises(UserError, match="one score a pair"):
        percentile_quality(np.zeros((2, 2)))


def test_pairs_of_different_numbers_of_tokens_have_scores() -> None:
    filip = FILIP(sub_dim=2)
    image, text = (filip.project(torch.randn(5, width, dtype=torch.float64)) for width in (6, 4))
    torch.testing.assert_close(torch.from_numpy(pair_scores(image, text, filip)), filip.similarity(image, text).diag())


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=20))
@settings(max_examples=40, deadline=None)
def test_quality_is_the_share_of_worse_pairs(scores: list[int]) -> None:
    quality = percentile_quality(scores)
    for score, value in zip(scores, quality, strict=True):
        expected = sum((other < score) + 0.5 * (other == score) for other in scores) / len(scores)
        assert value == pytest.approx(expected)
    assert 0 < quality.min() <= quality.max() < 1


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5])
def test_the_mixture_finds_the_rate_of_well_separated_noise(rate: float) -> None:
    scores, wrong = noisy_scores(3000, rate, gap=0.6)
    mixture = fit_mixture(scores)
    assert mixture.separated
    assert mixture.note == ""
    assert mixture.separation > 4
    assert mixture.noise_rate == pytest.approx(rate, abs=0.02)
    assert mixture.means == pytest.approx((0.0, 0.6), abs=0.02)
    assert mixture.deviations == pytest.approx((0.1, 0.15), abs=0.02)
    assert ((mixture.p_mismatch > 0.5) == wrong).mean() > 0.98


def test_the_probability_never_rises_with_the_score_even_where_the_lower_group_is_wider() -> None:
    generator = np.random.default_rng(0)
    scores = np.concatenate([generator.normal(0, 1.0, 500), generator.normal(1.5, 0.1, 500)])
    mixture = fit_mixture(scores)
    ordered = mixture.p_mismatch[np.argsort(scores)]
    assert (np.diff(ordered) <= 1e-12).all()
    assert ordered[0] > 0.95
    assert mixture.p_mismatch[scores.argmax()] == mixture.p_mismatch.min()


def test_scores_on_any_scale_give_the_same_estimate() -> None:
    scores, _ = noisy_scores(1000, 0.3, gap=0.6)
    small = fit_mixture(0.9 + 1e-5 * scores)
    assert small.noise_rate == pytest.approx(fit_mixture(scores).noise_rate, abs=0.01)
    assert small.separated


@pytest.mark.parametrize(
    ("scores", "note"),
    [
        (np.zeros(100), "only 1 different scores"),
        (np.arange(10.0), "only 10 different scores"),
        (np.empty(0), "only 0 different scores"),
        (np.random.default_rng(0).normal(size=1000), "one Gaussian describes the scores as well"),
    ],
)
def test_where_nothing_can_be_estimated_nothing_is_claimed(scores: np.ndarray, note: str) -> None:
    mixture = fit_mixture(scores)
    assert not mixture.separated
    assert note in mixture.note
    assert np.isnan(mixture.noise_rate)
    assert np.isnan(mixture.p_mismatch).all()
    assert mixture.p_mismatch.shape == scores.shape
    assert mixture.separation == 0.0


def test_overlapping_groups_carry_a_warning() -> None:
    generator = np.random.default_rng(1)
    skewed = generator.gamma(2.0, 1.0, 3000)
    mixture = fit_mixture(skewed)
    assert mixture.separated
    assert "a rough estimate" in mixture.note


@given(seed=st.integers(0, 1000), ties=st.booleans())
@settings(max_examples=25, deadline=None)
def test_auroc_is_scikit_learn_s(seed: int, ties: bool) -> None:
    scores, wrong = noisy_scores(50, 0.3, gap=0.15, seed=seed)
    if ties:
        scores = scores.round(1)
    assert against_truth(scores, wrong).auroc == pytest.approx(roc_auc_score(wrong, -scores))


def test_the_truth_s_numbers() -> None:
    scores = np.array([0.1, 0.2, 0.3, 0.4])
    truth = against_truth(scores, np.array([True, False, True, False]), estimated_rate=0.4)
    assert truth.auroc == pytest.approx(3 / 4)
    assert truth.average_precision == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert (truth.true_rate, truth.estimated_rate, truth.num_pairs, truth.num_mismatched) == (0.5, 0.4, 4, 2)
    assert against_truth(scores, np.zeros(4, dtype=bool), estimated_rate=float("nan")) == type(truth)(
        4, 0, None, None, None, 0.0, None
    )


def test_the_auroc_s_standard_error_is_its_spread_over_draws() -> None:
    draws = [against_truth(*noisy_scores(200, 0.3, gap=0.15, seed=seed)) for seed in range(150)]
    spread = np.std([draw.auroc for draw in draws])
    claimed = np.mean([draw.auroc_standard_error for draw in draws])
    assert claimed == pytest.approx(spread, rel=0.2)


def test_histograms_count_every_pair_once() -> None:
    scores, wrong = noisy_scores(500, 0.3, gap=0.4)
    histogram = similarity_histogram(scores, wrong, bins=20, limits=(0.0, 0.3))
    assert histogram.right.sum() == (~wrong).sum()
    assert histogram.wrong.sum() == wrong.sum()
    assert histogram.wrong[0] == (wrong & (scores < histogram.edges[1])).sum()
    same = similarity_histogram(np.ones(3), np.array([True, False, False]), bins=4)
    assert (same.right.sum(), same.wrong.sum(), same.edges[0], same.edges[-1]) == (2, 1, 0.5, 1.5)


@pytest.mark.parametrize("mask", [np.zeros(3, dtype=bool), np.zeros(4, dtype=int)])
def test_a_mask_that_does_not_fit_is_refused(mask: np.ndarray) -> None:
    with pytest.raises(UserError, match=r"mismatched: expected a bool mask of shape \(4,\)"):
        against_truth(np.arange(4.0), mask)
    with pytest.raises(UserError, match="no pairs"):
        similarity_histogram(np.empty(0), np.empty(0, dtype=bool))
