"""Results, their errors, comparisons, labels and probes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from troth.errors import UserError
from troth.evaluate import (
    TaskResult,
    check_class_names,
    compare,
    concept_labels,
    knn,
    linear_probe,
    paired_difference,
    retrieval,
    standard_error,
    zero_shot,
)
from troth.evaluate.uncertainty import median_standard_error
from troth.geometry import Sphere

SPHERE = Sphere()


def clouds(count: int, spread: float, seed: int, num_classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(num_classes, 8, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(num_classes, (count,), generator=generator)
    return SPHERE.project(centres[labels] + spread * torch.randn(count, 8, generator=generator)), labels


def test_a_result_survives_json_with_its_arrays() -> None:
    images, labels = clouds(20, 2.0, seed=0)
    result = zero_shot(images, labels, clouds(9, 0.1, seed=1)[0], SPHERE)
    again = TaskResult.from_json(result.to_json())
    assert again.metrics == result.metrics
    assert again.standard_errors == result.standard_errors
    assert (again.task, again.num_queries, again.notes) == (result.task, result.num_queries, result.notes)
    for name, array in result.details.items():
        np.testing.assert_array_equal(again.details[name], array)
        assert again.details[name].dtype == array.dtype
    short = TaskResult.from_json(result.to_json(with_arrays=False))
    assert short.metrics == result.metrics
    assert not short.influences
    assert len(result.to_json(with_arrays=False)) < 1000


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"version": 1, "task": "x"}'])
def test_what_is_not_a_result_is_refused_with_its_place(text: str) -> None:
    with pytest.raises(UserError, match=r"^runs/r\.json: not a task result"):
        TaskResult.from_json(text, where="runs/r.json")


def test_a_result_of_another_version_is_refused() -> None:
    with pytest.raises(UserError, match="version 9"):
        TaskResult.from_json('{"version": 9}')


def test_a_paired_difference_is_the_one_of_the_differences() -> None:
    generator = np.random.default_rng(0)
    hard = generator.normal(size=200)
    first, second = hard + 0.1 * generator.normal(size=200), hard + 0.1 * generator.normal(size=200) + 0.5
    difference = paired_difference(first, second)
    assert difference.value == pytest.approx((second - first).mean())
    assert difference.standard_error == pytest.approx((second - first).std(ddof=1) / 200**0.5)
    assert difference.is_clear
    assert difference.standard_error < 0.2 * first.std() / 200**0.5
    clustered = paired_difference(first.repeat(3), second.repeat(3), np.arange(200).repeat(3))
    assert clustered.standard_error == pytest.approx(difference.standard_error)
    assert clustered.num_units == 200
    with pytest.raises(UserError, match="not the same queries"):
        paired_difference(first, second[:-1])
    with pytest.raises(UserError, match="at least two"):
        paired_difference([1.0], [2.0])


def test_comparing_a_model_with_itself_finds_nothing_and_with_a_better_one_something() -> None:
    text, _ = clouds(80, 3.0, seed=1)
    noise = torch.randn(80, 8, generator=torch.Generator().manual_seed(5))
    group = torch.arange(80)
    worse = retrieval(SPHERE.project(text + 0.8 * noise), text, group, group, SPHERE)
    better = retrieval(SPHERE.project(text + 0.2 * noise), text, group, group, SPHERE)
    none = compare(worse, worse, "mean_recall")
    assert (none.value, none.standard_error, none.is_clear) == (0.0, 0.0, False)
    gain = compare(worse, better, "mean_recall")
    assert gain.value == pytest.approx(better.metrics["mean_recall"] - worse.metrics["mean_recall"])
    assert gain.is_clear
    per_query = [(result.details["text_to_image/rank"] < 1).astype(float) for result in (worse, better)]
    expected = paired_difference(*per_query)
    assert compare(worse, better, "text_to_image/recall@1").standard_error == pytest.approx(expected.standard_error)


def test_different_queries_cannot_be_compared() -> None:
    images, labels = clouds(20, 1.0, seed=0)
    classes = clouds(9, 0.1, seed=1)[0]
    one = zero_shot(images, labels, classes, SPHERE)
    with pytest.raises(UserError, match=r"different queries \(query/label differs\)"):
        compare(one, zero_shot(images, labels.flip(0), classes, SPHERE), "top1")
    with pytest.raises(UserError, match="known: mean_class_accuracy, top1, top5"):
        compare(one, one, "top3")
    with pytest.raises(UserError, match="result of other"):
        compare(one, zero_shot(images, labels, classes, SPHERE, task="other"), "top1")


def test_a_single_query_has_no_standard_error() -> None:
    assert standard_error([0.0]) is None
    assert median_standard_error([1, 2, 3]) is None
    images, _ = clouds(1, 1.0, seed=0)
    assert "top1" not in zero_shot(images, torch.tensor([0]), clouds(9, 1.0, seed=1)[0], SPHERE).standard_errors


def test_the_median_s_error_is_that_of_a_gaussian_median() -> None:
    generator = np.random.default_rng(0)
    claimed = np.mean([median_standard_error(generator.normal(size=500)) for _ in range(100)])
    assert claimed == pytest.approx((np.pi / 2 / 500) ** 0.5, rel=0.1)


def test_concepts_become_labels() -> None:
    found = concept_labels(["dog", "cat", "dog"])
    assert found.class_names == ("cat", "dog")
    assert found.labels.tolist() == [1, 0, 1]
    wider = concept_labels(["dog", "cat"], ["emu", "dog", "cat"])
    assert wider.labels.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("concepts", "names", "message"),
    [
        (["dog", None], None, "1 samples have no concept name, first: sample 1"),
        (["dog", "gnu"], ["dog", "cat"], "1 concepts are not among the 2 classes, first: 'gnu'"),
        (["dog"], ["dog", "cat", "dog"], r"unique, found 'dog' \(2 times\)"),
        (["dog"], [], "no class names"),
        (["dog"], ["dog", " "], "class 1 has an empty name"),
    ],
)
def test_wrong_names_are_named(concepts: list[str | None], names: list[str] | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        concept_labels(concepts, names)


def test_many_duplicates_are_named_five_at_a_time() -> None:
    with pytest.raises(UserError, match=r"'e' \(2 times\) and 3 more"):
        check_class_names([*"abcdefgh"] * 2)


def test_knn_agrees_with_scikit_learn() -> None:
    train, train_labels = clouds(200, 2.0, seed=0)
    test, test_labels = clouds(60, 2.0, seed=1)
    result = knn(train, train_labels * 10, test, test_labels * 10, SPHERE, k=7, temperature=0.5)
    reference = KNeighborsClassifier(
        7, metric="cosine", algorithm="brute", weights=lambda distance: np.exp(-distance / 0.5)
    ).fit(train.numpy(), train_labels.numpy())
    np.testing.assert_array_equal(result.details["prediction"], 10 * reference.predict(test.numpy()))
    assert result.metrics["accuracy"] == pytest.approx(reference.score(test.numpy(), test_labels.numpy()))
    many = knn(train[:5], train_labels[:5], test, test_labels, SPHERE, k=50)
    assert many.notes[0] == "k = 50 lowered to the 5 training points there are."
    with pytest.raises(UserError, match="k: expected at least one"):
        knn(train, train_labels, test, test_labels, SPHERE, k=0)
    with pytest.raises(UserError, match="temperature: expected a positive"):
        knn(train, train_labels, test, test_labels, SPHERE, temperature=0.0)


def test_a_linear_probe_separates_what_can_be_separated() -> None:
    train, train_labels = clouds(200, 0.5, seed=0)
    test, test_labels = clouds(60, 0.5, seed=1)
    result = linear_probe(train, train_labels, test, test_labels, inverse_regularization=10.0)
    assert result.metrics["accuracy"] > 0.95
    assert result.notes == ()
    short = linear_probe(train, train_labels, test, test_labels, max_iterations=1)
    assert short.notes == ("The fit stopped at 1 iterations before it converged.",)
    unseen = linear_probe(train, train_labels, test, test_labels + 100)
    assert unseen.metrics["accuracy"] == 0.0
    assert unseen.notes == ("60 test pictures are of classes without a training picture and count as wrong.",)
    with pytest.raises(UserError, match="at least two classes"):
        linear_probe(train, train_labels * 0, test, test_labels)
