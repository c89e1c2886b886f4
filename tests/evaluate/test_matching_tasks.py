"""Matching against naive loops."""

import math

import pytest
import torch

from troth.errors import UserError
from troth.evaluate import class_matching, compare, matching, retrieval
from troth.geometry import Sphere

SPHERE = Sphere()


def points(count: int, seed: int, dim: int = 5) -> torch.Tensor:
    return SPHERE.project(torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


def test_class_matching_equals_the_naive_loop() -> None:
    image, text = points(30, 0), points(40, 1)
    image_class, text_class = torch.arange(30) % 4, torch.arange(40) % 5  # no image is of class 4
    result = class_matching(image, text, image_class, text_class, SPHERE, k=(1, 3))
    for name, queries, others, own, theirs in (
        ("image_to_text", image, text, image_class, text_class),
        ("text_to_image", text, image, text_class, image_class),
    ):
        for k in (1, 3):
            right = []
            for query, label in zip(queries, own, strict=True):
                nearest = sorted(range(len(others)), key=lambda j: -float(query @ others[j]))[:k]
                right.append(any(theirs[j] == label for j in nearest))
            share = sum(right) / len(right)
            assert result.metrics[f"{name}/top{k}"] == pytest.approx(share)
            expected = math.sqrt(share * (1 - share) / (len(right) - 1))
            assert result.standard_errors[f"{name}/top{k}"] == pytest.approx(expected)
    assert result.num_queries == 70


def test_a_class_without_candidates_is_wrong_and_a_perfect_model_is_right() -> None:
    image = points(6, 0)
    classes = torch.tensor([0, 0, 1, 1, 2, 2])
    perfect = class_matching(image, image, classes, classes, SPHERE)
    assert perfect.metrics == {"image_to_text/top1": 1.0, "text_to_image/top1": 1.0}
    lonely = class_matching(image, image, classes, torch.tensor([0, 0, 1, 1, 3, 3]), SPHERE)
    assert lonely.metrics["image_to_text/top1"] == pytest.approx(4 / 6)
    with pytest.raises(UserError, match="image_class"):
        class_matching(image, image, classes[:5], classes, SPHERE)


def test_a_collapsed_model_does_not_match() -> None:
    same = points(1, 0).expand(12, -1)
    result = class_matching(same, same, torch.arange(12), torch.arange(12), SPHERE)
    assert result.metrics["image_to_text/top1"] == 0.0


def test_matching_is_the_recall_of_ones_own_text() -> None:
    image = points(25, 0)
    text = SPHERE.project(image + 0.8 * points(25, 1))
    groups = torch.arange(25)
    found = matching(retrieval(image, text, groups, groups, SPHERE, (1, 5), task="m"))
    similarity = image @ text.T
    assert found.metrics["image_to_text/top1"] == pytest.approx(
        float((similarity.argmax(dim=1) == groups).double().mean())
    )
    assert found.metrics["text_to_image/top1"] == pytest.approx(
        float((similarity.argmax(dim=0) == groups).double().mean())
    )
    top5 = (similarity.topk(5, dim=1).indices == groups[:, None]).any(dim=1)
    assert found.metrics["image_to_text/top5"] == pytest.approx(float(top5.double().mean()))
    assert 0 < found.metrics["image_to_text/top1"] < 1
    assert found.standard_errors.keys() == found.metrics.keys()
    worse = matching(retrieval(image, points(25, 2), groups, groups, SPHERE, (1, 5), task="m"))
    assert compare(worse, found, "image_to_text/top1").value > 0
