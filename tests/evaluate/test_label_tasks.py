"""Tasks on pictures and classes, from a table's columns to a result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter

from troth import recipe
from troth.data import Source, TableSource
from troth.errors import UserError
from troth.evaluate.tasks import ClassMatchingTask, ClusteringTask, KNNTask, LinearProbeTask, TaskConfig
from troth.geometry import Sphere

CLASSES = ("cat", "dog", "newt")


class Embedder:
    """Knows a picture's class by its key, and says so with some noise; the first picture cannot be read."""

    geometry = Sphere()

    def images(self, source: Source) -> tuple[torch.Tensor, torch.Tensor]:
        index = torch.arange(1, len(source))
        draw = torch.Generator().manual_seed(len(source))
        known = torch.tensor([ord(source.key(i)[0]) % 7 for i in index.tolist()])
        return index, Sphere().project(torch.eye(7)[known] + 0.3 * torch.randn(len(index), 7, generator=draw))


def table(folder: Path, name: str, classes: tuple[str | int | None, ...], count: int = 60) -> TableSource:
    path = folder / f"{name}.jsonl"
    rows = []
    for number in range(count):
        known = classes[number % len(classes)]
        key = f"{known or 'unknown'}-{name}-{number}"
        rows.append({"image": "gone.png", "key": key, "caption": "words", "group": known, "class": known})
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return TableSource(path=str(path), key_column="key", category_column="group", metadata_columns=("class",))


@pytest.mark.parametrize("kind", ["knn", "linear-probe"])
@pytest.mark.parametrize("field", ["category", "class"])
def test_classes_are_told_by_training_pictures(tmp_path: Path, kind: str, field: str) -> None:
    train = table(tmp_path, "train", (*CLASSES, "yak", None))
    test = table(tmp_path, "test", (*CLASSES, None))
    task = TypeAdapter(TaskConfig).validate_python(
        {"kind": kind, "class_field": field, "train_source": train, "source": test}
    )
    task.check()
    result = task.run(Embedder())
    assert tuple(result.metrics) == task.metric_names()
    assert result.metrics["accuracy"] > 0.9
    assert result.num_queries == 44
    assert set(result.standard_errors) == set(result.metrics)
    assert "27 pictures without a" in result.notes[0]
    assert "12 training pictures of classes without a test picture" in result.notes[1]


def test_clusters_are_compared_with_the_classes(tmp_path: Path) -> None:
    task = ClusteringTask(source=table(tmp_path, "test", (*CLASSES, None)))
    task.check()
    result = task.run(Embedder())
    assert tuple(result.metrics) == task.metric_names()
    assert result.metrics["adjusted_rand_index"] > 0.7
    assert set(result.details["cluster"]) == {0, 1, 2}
    assert result.notes == ("15 pictures without a 'category' were left out.",)


def test_numbers_are_classes_too(tmp_path: Path) -> None:
    task = ClusteringTask(source=table(tmp_path, "test", (7, 8, 12)), class_field="class")
    assert task.run(Embedder()).num_queries == 59
    ClassMatchingTask(source=task.source, class_field="class").check()


def test_matching_classes_needs_the_class_of_every_sample_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown-test-3 of .* has no 'category'") as error:
        ClassMatchingTask(source=table(tmp_path, "test", (*CLASSES, None))).check()
    assert error.value.where == "class_field"


def test_data_without_classes_are_refused_before_anything_runs(tmp_path: Path) -> None:
    bare, full = table(tmp_path, "bare", (None,)), table(tmp_path, "full", CLASSES)
    for task in (
        ClusteringTask(source=bare),
        KNNTask(source=bare, train_source=full),
        KNNTask(source=full, train_source=bare),
        LinearProbeTask(source=full, train_source=full, class_field="missing"),
    ):
        with pytest.raises(UserError, match="no picture of") as error:
            task.check()
        assert error.value.where == "class_field"
        with pytest.raises(UserError):
            task.run(Embedder())
    with pytest.raises(UserError, match="no training picture") as error:
        KNNTask(source=full, train_source=table(tmp_path, "other", ("yak", "gnu"))).run(Embedder())
    assert error.value.where == "train_source"


def test_a_recipe_names_them_and_keeps_the_best_by_them() -> None:
    tasks = [{"kind": "knn"}, {"kind": "linear-probe"}, {"kind": "clustering"}]
    tree = {"evaluation": {"tasks": tasks, "best": "clustering/adjusted_rand_index"}}
    found = recipe.from_dict(tree)
    assert found.evaluation.tasks == (KNNTask(), LinearProbeTask(), ClusteringTask())
    assert recipe.from_dict(recipe.to_dict(found)) == found
    for task in found.evaluation.tasks:
        task.check()
