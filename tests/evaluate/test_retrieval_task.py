"""Retrieval against naive loops, with several captions a picture and several pictures a caption."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from troth.errors import UserError
from troth.evaluate import retrieval
from troth.geometry import Sphere

SPHERE = Sphere()


def points(count: int, seed: int = 0, dims: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return SPHERE.project(torch.randn(count, dims, generator=generator, dtype=torch.float64))


def naive_ranks(queries: torch.Tensor, others: torch.Tensor, groups: list[int], answers: list[int]) -> list[int]:
    ranks = []
    for query, group in zip(queries.tolist(), groups, strict=True):
        scores = [sum(a * b for a, b in zip(query, other, strict=True)) for other in others.tolist()]
        order = sorted(range(len(scores)), key=lambda j: -scores[j])
        ranks.append(min(place for place, j in enumerate(order) if answers[j] == group))
    return ranks


@given(seed=st.integers(0, 10_000), num_groups=st.integers(1, 12), data=st.data())
@settings(max_examples=25, deadline=None)
def test_it_equals_the_naive_loop(seed: int, num_groups: int, data: st.DataObject) -> None:
    extra = st.lists(st.integers(0, num_groups - 1), max_size=10)
    images = [*range(num_groups), *data.draw(extra)]
    texts = [*range(num_groups), *data.draw(extra)]
    image, text = points(len(images), seed), points(len(texts), seed + 1)
    result = retrieval(image, text, torch.tensor(images), torch.tensor(texts), SPHERE, k=(1, 2, 3))
    recalls = []
    for name, ranks, count in (
        ("image_to_text", naive_ranks(image, text, images, texts), len(texts)),
        ("text_to_image", naive_ranks(text, image, texts, images), len(images)),
    ):
        np.testing.assert_array_equal(result.details[f"{name}/rank"], ranks)
        for k in (1, 2, 3):
            if k < count or k == 1:
                recalls.append(sum(rank < k for rank in ranks) / len(ranks))
                assert result.metrics[f"{name}/recall@{k}"] == pytest.approx(recalls[-1])
            else:
                assert f"{name}/recall@{k}" not in result.metrics
        assert result.metrics[f"{name}/median_rank"] == statistics.median(ranks) + 1
        assert result.metrics[f"{name}/mrr"] == pytest.approx(statistics.fmean(1 / (1 + r) for r in ranks))
    assert result.metrics["mean_recall"] == pytest.approx(statistics.fmean(recalls))


@given(seed=st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_neither_order_nor_group_numbers_matter(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    image, text = points(12, seed), points(24, seed + 1)
    image_group, text_group = torch.arange(12), torch.arange(24) % 12
    rows, columns = torch.randperm(12, generator=generator), torch.randperm(24, generator=generator)
    new_number = torch.randperm(12, generator=generator) * 7 - 3
    plain = retrieval(image, text, image_group, text_group, SPHERE)
    shuffled = retrieval(
        image[rows], text[columns], new_number[image_group[rows]], new_number[text_group[columns]], SPHERE
    )
    assert shuffled.metrics == pytest.approx(plain.metrics)
    assert shuffled.standard_errors == pytest.approx(plain.standard_errors)


def test_five_identical_captions_are_not_five_independent_queries() -> None:
    image, text = points(40), points(40, seed=1)
    group = torch.arange(40)
    once = retrieval(image, text, group, group, SPHERE, k=(5,))
    five = retrieval(image, text.repeat(5, 1), group, group.repeat(5), SPHERE, k=(5,))
    assert five.metrics["text_to_image/recall@5"] == pytest.approx(once.metrics["text_to_image/recall@5"])
    assert five.standard_errors["text_to_image/recall@5"] == pytest.approx(
        once.standard_errors["text_to_image/recall@5"]
    )


def test_the_standard_errors_cover_the_truth_about_as_often_as_they_should() -> None:
    """Draw 200 test sets of one noisy model; the spread of a metric is what its standard error said."""
    generator = torch.Generator().manual_seed(0)
    found: dict[str, list[float]] = {"mean_recall": [], "text_to_image/median_rank": [], "image_to_text/mrr": []}
    claimed: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(200):
        text = SPHERE.project(torch.randn(60, 8, generator=generator))
        image = SPHERE.project(text + 0.6 * torch.randn(60, 8, generator=generator))
        result = retrieval(image, text, torch.arange(60), torch.arange(60), SPHERE, k=(1, 5))
        for name in found:
            found[name].append(result.metrics[name])
            claimed[name].append(result.standard_errors[name])
    for name in found:
        ratio = float(np.mean(claimed[name])) / float(np.std(found[name]))
        assert 0.7 < ratio < 1.5, (name, ratio)


def test_a_perfect_model_and_its_notes() -> None:
    image = points(4)
    result = retrieval(image, image, torch.arange(4), torch.arange(4), SPHERE, k=(1, 3, 10))
    assert result.metrics["mean_recall"] == 1.0
    assert result.metrics["image_to_text/median_rank"] == 1.0
    assert result.notes == (
        "image_to_text: k = 10 left out: there are only 4 captions.",
        "text_to_image: k = 10 left out: there are only 4 pictures.",
    )


def test_a_query_without_an_answer_is_refused() -> None:
    image, text = points(3), points(3, seed=1)
    with pytest.raises(UserError, match="image_group: 1 pictures have no caption of their group, first: group 7"):
        retrieval(image, text, torch.tensor([0, 1, 7]), torch.tensor([0, 1, 1]), SPHERE)
    with pytest.raises(UserError, match="text_group: 2 captions have no picture of their group, first: group 5"):
        retrieval(image, text, torch.tensor([0, 0, 0]), torch.tensor([0, 5, 6]), SPHERE)
    with pytest.raises(UserError, match="image_group: expected shape"):
        retrieval(image, text, torch.tensor([0, 1]), torch.tensor([0, 1, 1]), SPHERE)
