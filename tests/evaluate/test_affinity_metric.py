"""Affinity consistency is the mean correlation of two rows of cosines, with and without the sample itself."""

import pytest
import torch
import torch.nn.functional as F

from troth.errors import UserError
from troth.evaluate.affinity import affinity_consistency


def points(size: int, dim: int, seed: int) -> torch.Tensor:
    return torch.randn(size, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def correlation(first: list[float], second: list[float]) -> float:
    """Equation 3 of the SaCo paper."""
    mean_first, mean_second = sum(first) / len(first), sum(second) / len(second)
    covariance = sum((u - mean_first) * (v - mean_second) for u, v in zip(first, second, strict=True))
    spread = sum((u - mean_first) ** 2 for u in first) * sum((v - mean_second) ** 2 for v in second)
    return covariance / spread**0.5


def test_the_metric_is_the_papers_loop_with_and_without_the_self_entry() -> None:
    image, text = points(12, 4, 0), points(12, 6, 1)
    with_self, without_self = [], []
    for i in range(12):
        rows = [F.cosine_similarity(side[i : i + 1], side).tolist() for side in (image, text)]
        with_self.append(correlation(*rows))
        without_self.append(correlation(*([x for j, x in enumerate(row) if j != i] for row in rows)))
    result = affinity_consistency(image, text)
    assert result.metrics["with_self"] == pytest.approx(sum(with_self) / 12, abs=1e-12)
    assert result.metrics["without_self"] == pytest.approx(sum(without_self) / 12, abs=1e-12)
    assert result.details["without_self"].tolist() == pytest.approx(without_self, abs=1e-12)
    assert result.num_queries == 12


def test_the_self_entry_flatters_embeddings_that_have_nothing_to_do_with_each_other() -> None:
    result = affinity_consistency(points(300, 64, 0).float(), points(300, 64, 1).float())
    assert abs(result.metrics["without_self"]) < 0.05
    assert result.metrics["with_self"] > 0.15


def test_turned_and_stretched_embeddings_are_consistent_and_collapsed_ones_are_not() -> None:
    image = points(20, 8, 0).float()
    turn = torch.linalg.qr(points(8, 8, 1).float())[0]
    turned = affinity_consistency(image, 5 * image @ turn)
    assert turned.metrics["without_self"] == pytest.approx(1, abs=1e-6)
    collapsed = affinity_consistency(image, image[:1].expand(20, -1))
    assert collapsed.metrics == {"with_self": 0.0, "without_self": 0.0}


def test_what_cannot_be_correlated_is_refused() -> None:
    with pytest.raises(UserError, match="at least 3 samples, got 2"):
        affinity_consistency(points(2, 4, 0), points(2, 4, 1))
    with pytest.raises(UserError, match="5 images and 4 captions"):
        affinity_consistency(points(5, 4, 0), points(4, 4, 1))
    with pytest.raises(UserError, match="not finite"):
        affinity_consistency(points(5, 4, 0), points(5, 4, 1) / 0)
