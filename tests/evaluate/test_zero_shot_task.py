"""Zero-shot classification against naive loops, scikit-learn, and the ways to get it wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import recall_score, top_k_accuracy_score

from troth.errors import UserError
from troth.evaluate import class_embedding, concept_test, zero_shot
from troth.geometry import Sphere

SPHERE = Sphere()


def points(count: int, dims: int = 8, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return SPHERE.project(torch.randn(count, dims, generator=generator, dtype=torch.float64))


def naive_top_k(images: torch.Tensor, labels: torch.Tensor, classes: torch.Tensor, k: int) -> float:
    right = 0
    for image, label in zip(images.tolist(), labels.tolist(), strict=True):
        scores = [sum(a * b for a, b in zip(image, row, strict=True)) for row in classes.tolist()]
        right += sum(score > scores[label] for score in scores) < k
    return right / len(images)


@given(seed=st.integers(0, 1000), count=st.integers(1, 30), num_classes=st.integers(6, 15))
@settings(max_examples=25, deadline=None)
def test_it_equals_the_naive_loop_and_scikit_learn(seed: int, count: int, num_classes: int) -> None:
    images, classes = points(count, seed=seed), points(num_classes, seed=seed + 1)
    labels = torch.randint(num_classes, (count,), generator=torch.Generator().manual_seed(seed))
    result = zero_shot(images, labels, classes, SPHERE)
    scores = (images @ classes.T).numpy()
    for k in (1, 5):
        assert result.metrics[f"top{k}"] == pytest.approx(naive_top_k(images, labels, classes, k))
        reference = top_k_accuracy_score(labels.numpy(), scores, k=k, labels=np.arange(num_classes))
        assert result.metrics[f"top{k}"] == pytest.approx(reference)
    np.testing.assert_array_equal(result.details["prediction"], scores.argmax(axis=1))


def test_mean_class_accuracy_is_the_balanced_accuracy() -> None:
    images, classes = points(40), points(6, seed=1)
    labels = torch.arange(40) % 5
    labels[:20] = 0
    result = zero_shot(images, labels, classes, SPHERE)
    truth, guess = labels.numpy(), (images @ classes.T).argmax(dim=1).numpy()
    expected = np.mean([(guess[truth == c] == c).mean() for c in np.unique(truth)])
    assert result.metrics["mean_class_accuracy"] == pytest.approx(expected)
    assert expected == pytest.approx(
        recall_score(truth, guess, labels=np.unique(truth), average="macro", zero_division=0)
    )


@given(seed=st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_the_order_of_pictures_and_of_classes_does_not_matter(seed: int) -> None:
    images, classes = points(20, seed=seed), points(7, seed=seed + 1)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(7, (20,), generator=generator)
    rows, columns = torch.randperm(20, generator=generator), torch.randperm(7, generator=generator)
    inverse = torch.argsort(columns)
    plain = zero_shot(images, labels, classes, SPHERE)
    shuffled = zero_shot(images[rows], inverse[labels[rows]], classes[columns], SPHERE)
    assert shuffled.metrics == pytest.approx(plain.metrics)
    assert shuffled.standard_errors == pytest.approx(plain.standard_errors)


def test_the_standard_error_of_an_accuracy_is_the_binomial_one() -> None:
    images = points(400)
    result = zero_shot(images, torch.zeros(400, dtype=torch.int64), points(3, seed=1), SPHERE, topk=(1,))
    p = result.metrics["top1"]
    assert 0 < p < 1
    assert result.standard_errors["top1"] == pytest.approx((p * (1 - p) / 399) ** 0.5)


def test_one_picture_a_class_still_has_an_error() -> None:
    result = zero_shot(points(30), torch.arange(30), points(30, seed=1), SPHERE, topk=(1, 10))
    assert result.metrics["mean_class_accuracy"] == pytest.approx(result.metrics["top1"])
    assert result.standard_errors["mean_class_accuracy"] == pytest.approx(result.standard_errors["top1"])


def test_cut_offs_that_mean_nothing_are_left_out_with_a_note() -> None:
    result = zero_shot(points(4), torch.arange(4) % 3, points(3, seed=1), SPHERE, topk=(1, 2, 3, 5))
    assert sorted(result.metrics) == ["mean_class_accuracy", "top1", "top2"]
    assert result.notes == ("k = 3, 5 left out: there are only 3 classes.",)


def test_a_collapsed_model_scores_chance_not_perfection() -> None:
    same = points(1).expand(50, -1)
    result = zero_shot(same, torch.arange(50) % 10, same[:10], SPHERE)
    assert result.metrics["top1"] == 0.0


def test_class_embeddings_are_the_projected_mean_of_the_prompts() -> None:
    prompts = points(12).reshape(4, 3, 8)
    built = class_embedding(prompts, SPHERE)
    for row, group in zip(built, prompts, strict=True):
        mean = sum(group) / 3
        torch.testing.assert_close(row, mean / mean.norm())
    with pytest.raises(UserError, match=r"text_embeddings: expected \(classes, prompts, dimensions\)"):
        class_embedding(points(4), SPHERE)


def test_the_concept_test_is_two_zero_shot_tests() -> None:
    classes = points(20, seed=1)
    held_out = torch.arange(20) % 2 == 1
    labels = torch.tensor([1, 3, 5, 19, 19])
    images = points(5)
    result = concept_test(images, labels, classes, held_out, SPHERE)
    narrow = zero_shot(images, labels // 2, classes[1::2], SPHERE)
    wide = zero_shot(images, labels, classes, SPHERE)
    assert result.metrics["held_out/top1"] == narrow.metrics["top1"]
    assert result.metrics["all/top5"] == wide.metrics["top5"]
    np.testing.assert_array_equal(result.details["held_out/prediction"], narrow.details["prediction"] * 2 + 1)
    assert (result.details["all/rank"] >= result.details["held_out/rank"]).all()
    with pytest.raises(UserError, match="1 pictures are of names that are not held out, first: row 0"):
        concept_test(images, torch.tensor([0, 1, 3, 5, 7]), classes, held_out, SPHERE)
    with pytest.raises(UserError, match=r"held_out: expected \(20,\) of bool"):
        concept_test(images, labels, classes, held_out.long(), SPHERE)


@pytest.mark.parametrize(
    ("images", "labels", "classes", "message"),
    [
        (points(2), torch.tensor([0, 7]), points(3), "label 7 of row 1 is not one of the 3 classes"),
        (points(2), torch.tensor([0, -1]), points(3), "label -1 of row 1"),
        (points(2), torch.tensor([0]), points(3), r"expected shape \(2,\)"),
        (points(2), torch.tensor([0.0, 1.0]), points(3), "expected whole numbers"),
        (points(2), torch.tensor([0, 1]), points(3, dims=4), "8 and 4 dimensions cannot be compared"),
        (points(0), torch.tensor([], dtype=torch.int64), points(3), "image_embeddings: expected a non-empty"),
        (points(2) * torch.nan, torch.tensor([0, 1]), points(3), "not finite"),
    ],
)
def test_wrong_input_is_one_clear_line(
    images: torch.Tensor, labels: torch.Tensor, classes: torch.Tensor, message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        zero_shot(images, labels, classes, SPHERE)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="at least 1, got 0"):
        zero_shot(points(2), torch.tensor([0, 1]), points(3), SPHERE, topk=(0, 1))
