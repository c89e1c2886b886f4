"""K-means against classes, and its jackknife against scikit-learn run once for each sample left out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score

from troth.errors import UserError
from troth.evaluate import clustering_quality, compare
from troth.evaluate.clustering import agreement_influences


def heaps(spread: float, count: int = 240, groups: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    centres = torch.randn(groups, 6, generator=draw)
    label = torch.arange(count) % groups
    return centres[label] + spread * torch.randn(count, 6, generator=draw), label


def test_heaps_that_are_the_classes_score_one_and_noise_scores_none() -> None:
    points, labels = heaps(0.01)
    result = clustering_quality(points, labels * 7 - 3)
    assert result.metrics == pytest.approx({"adjusted_rand_index": 1, "adjusted_mutual_information": 1})
    assert result.num_queries == 240
    chance = clustering_quality(torch.randn(240, 6, generator=torch.Generator().manual_seed(1)), labels)
    for name, value in chance.metrics.items():
        assert abs(value) < 0.05, name
        assert 0 < chance.standard_errors[name] < 0.05


def test_the_metrics_are_scikit_learn_s_of_clusters_of_directions() -> None:
    points, labels = heaps(0.8)
    result = clustering_quality(points, labels, seed=3)
    cluster = result.details["cluster"]
    assert result.metrics["adjusted_rand_index"] == adjusted_rand_score(labels.numpy(), cluster)
    assert result.metrics["adjusted_mutual_information"] == adjusted_mutual_info_score(labels.numpy(), cluster)
    assert 0.1 < result.metrics["adjusted_rand_index"] < 0.95
    lengths = torch.rand(len(points), 1, generator=torch.Generator().manual_seed(2)) + 0.1
    assert clustering_quality(points * lengths, labels, seed=3).metrics == pytest.approx(result.metrics, abs=0.02)
    assert len(np.unique(clustering_quality(points, labels, 9).details["cluster"])) == 9


@pytest.mark.parametrize("groups", [2, 5])
def test_the_standard_errors_are_the_jackknife_s(groups: int) -> None:
    draw = np.random.default_rng(0)
    truth = draw.integers(0, groups, 80)
    cluster = np.where(draw.random(80) < 0.6, truth % groups, draw.integers(0, groups, 80))
    found = agreement_influences(truth, cluster)
    scores = {"adjusted_rand_index": adjusted_rand_score, "adjusted_mutual_information": adjusted_mutual_info_score}
    for name, score in scores.items():
        left = np.array([score(np.delete(truth, i), np.delete(cluster, i)) for i in range(80)])
        expected = 79 / 80 * (left.mean() - left)
        # The chance level of the mutual information is held, which moves it by a few percent.
        tolerance = 1e-12 if name == "adjusted_rand_index" else 0.1 * np.abs(expected).max()
        np.testing.assert_allclose(found[name], expected, rtol=0, atol=tolerance)
        assert found[name].sum() == pytest.approx(0, abs=1e-12)
        assert np.linalg.norm(found[name]) == pytest.approx(np.linalg.norm(expected), rel=0.05)


def test_the_jackknife_is_about_the_spread_over_samples() -> None:
    draw = np.random.default_rng(0)
    values, errors = [], []
    for _ in range(60):
        truth = draw.integers(0, 3, 300)
        cluster = np.where(draw.random(300) < 0.5, truth, draw.integers(0, 3, 300))
        values.append(adjusted_rand_score(truth, cluster))
        influence = agreement_influences(truth, cluster)["adjusted_rand_index"]
        errors.append(np.sqrt(300 / 299 * np.square(influence).sum()))
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.3)


def test_a_class_of_one_picture_takes_part() -> None:
    truth, cluster = np.array([9, 0, 0, 0, 1, 1, 1]), np.array([2, 0, 0, 1, 1, 1, 2])
    left = np.array([adjusted_rand_score(np.delete(truth, i), np.delete(cluster, i)) for i in range(7)])
    found = agreement_influences(truth, cluster)["adjusted_rand_index"]
    np.testing.assert_allclose(found, 6 / 7 * (left.mean() - left), rtol=0, atol=1e-12)


def test_divisions_that_leave_nothing_to_compare_are_no_crash() -> None:
    for truth, cluster in (([0, 1], [0, 0]), ([0, 1], [0, 1]), ([0, 1, 1], [0, 0, 0]), ([0, 1, 2], [0, 1, 2])):
        for influence in agreement_influences(np.array(truth), np.array(cluster)).values():
            assert np.isfinite(influence).all()


def test_two_models_can_be_compared() -> None:
    labels = heaps(0.4)[1]
    good, bad = (clustering_quality(heaps(spread)[0], labels) for spread in (0.4, 2.0))
    difference = compare(bad, good, "adjusted_rand_index")
    assert difference.value > 0.2
    assert difference.is_clear


def test_what_cannot_be_scored_is_refused() -> None:
    points, labels = heaps(0.4)
    with pytest.raises(UserError, match="one class"):
        clustering_quality(points, torch.zeros_like(labels))
    with pytest.raises(UserError, match="clusters"):
        clustering_quality(points, labels, 1000)
    with pytest.raises(UserError, match="labels"):
        clustering_quality(points, labels[1:])
