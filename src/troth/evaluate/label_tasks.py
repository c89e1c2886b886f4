"""Tasks on pictures and their classes alone: nearest neighbours, logistic regression, clustering.

They measure the image side: no caption and no class name is encoded. Pictures without a class are left out.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from troth.data import EmbeddedSource, Source, SourceConfig
from troth.embed import Embedder
from troth.errors import UserError
from troth.evaluate.clustering import clustering_quality
from troth.evaluate.labels import concept_labels
from troth.evaluate.probes import knn, linear_probe
from troth.evaluate.result import TaskResult
from troth.evaluate.task_data import Name, class_name, opened
from troth.types import STRICT

_Count = Annotated[int, Field(gt=0)]
_Positive = Annotated[float, Field(gt=0)]

#: Pictures with labels: points, class names, and how many had no class.
_Labelled = tuple[Float[Tensor, "Q D"], list[str], int]


@dataclass(frozen=True, config=STRICT)
class _TaughtByPictures:
    """What tasks share whose classifier is fitted to the points of training pictures."""

    train_source: SourceConfig = Field(default_factory=lambda: EmbeddedSource(split="train"))
    source: SourceConfig = Field(default_factory=lambda: EmbeddedSource(split="style-shift"))
    class_field: str = "category"

    def metric_names(self) -> tuple[str, ...]:
        """Return the metrics of :meth:`run` that larger is better of."""
        return "accuracy", "mean_class_accuracy"

    def check(self) -> None:
        """Open the data and look for classes. Raises UserError for what :meth:`run` could not do."""
        _check(self.train_source, "train_source", self.class_field)
        _check(self.source, "source", self.class_field)


@dataclass(frozen=True, config=STRICT)
class KNNTask(_TaughtByPictures):
    """Which class does a picture show, going by the classes of the nearest training pictures?

    Training pictures of classes that ``source`` does not have are left out. By default the classes are the nine groups
    of emoji: those of training styles are the examples, those of the unseen style are asked for.

    Attributes:
        name: the task's name in tables and metrics.
        train_source: the pictures with known classes. What a run trained on may serve: their captions play no part.
        source: the pictures to classify.
        class_field: the metadata field that holds a picture's class, or ``category``.
        k: neighbours that vote.
        temperature: a neighbour's vote counts ``exp(cosine / temperature)`` (:func:`~troth.evaluate.knn`).
    """

    kind: Literal["knn"] = "knn"
    name: Name = "knn"
    k: _Count = 20
    temperature: _Positive = 0.07

    def run(self, embedder: Embedder) -> TaskResult:
        """Score the embedder's model."""
        points, notes = _train_and_test(embedder, self.train_source, self.source, self.class_field)
        result = knn(*points, embedder.geometry, k=self.k, temperature=self.temperature, task=self.name)
        return _noted(result, notes)


@dataclass(frozen=True, config=STRICT)
class LinearProbeTask(_TaughtByPictures):
    """Which class does a picture show, going by logistic regression on training pictures' points?

    The pictures and classes are those of :class:`KNNTask`. Points are taken as they are: for
    those of the sphere, of unit length, the default regularises strongly.

    Attributes:
        name: the task's name in tables and metrics.
        train_source: the pictures with known classes.
        source: the pictures to classify.
        class_field: the metadata field that holds a picture's class, or ``category``.
        inverse_regularization: scikit-learn's C (:func:`~troth.evaluate.linear_probe`); not tuned.
        max_iterations: of L-BFGS.
    """

    kind: Literal["linear-probe"] = "linear-probe"
    name: Name = "linear-probe"
    inverse_regularization: _Positive = 0.316
    max_iterations: _Count = 1000

    def run(self, embedder: Embedder) -> TaskResult:
        """Score the embedder's model."""
        points, notes = _train_and_test(embedder, self.train_source, self.source, self.class_field)
        result = linear_probe(
            *points,
            inverse_regularization=self.inverse_regularization,
            max_iterations=self.max_iterations,
            task=self.name,
        )
        return _noted(result, notes)


@dataclass(frozen=True, config=STRICT)
class ClusteringTask:
    """Do the groups that k-means finds agree with the classes? No class is shown to anything but the score.

    Attributes:
        name: the task's name in tables and metrics.
        source: the pictures.
        class_field: the metadata field that holds a picture's class, or ``category``.
        num_clusters: None for as many as there are classes.
        iterations: of k-means.
        restarts: times k-means is run; the tightest clusters count.
        seed: of k-means.
    """

    kind: Literal["clustering"] = "clustering"
    name: Name = "clustering"
    source: SourceConfig = Field(default_factory=lambda: EmbeddedSource(split="style-shift"))
    class_field: str = "category"
    num_clusters: _Count | None = None
    iterations: _Count = 100
    restarts: _Count = 5
    seed: int = 0

    def metric_names(self) -> tuple[str, ...]:
        """Return the metrics of :meth:`run` that larger is better of."""
        return "adjusted_rand_index", "adjusted_mutual_information"

    def check(self) -> None:
        """Open the data and look for classes. Raises UserError for what :meth:`run` could not do."""
        _check(self.source, "source", self.class_field)

    def run(self, embedder: Embedder) -> TaskResult:
        """Score the embedder's model."""
        points, names, missing = _labelled(embedder, opened(self.source, "source"), "source", self.class_field)
        result = clustering_quality(
            points,
            concept_labels(names).labels,
            self.num_clusters,
            seed=self.seed,
            iterations=self.iterations,
            restarts=self.restarts,
            task=self.name,
        )
        return _noted(result, _left_out(missing, self.class_field))


def _check(config: SourceConfig, place: str, field: str) -> None:
    source = opened(config, place)
    if all(class_name(source, index, field) is None for index in range(len(source))):
        raise _no_class(source, place, field)


def _no_class(source: Source, place: str, field: str) -> UserError:
    return UserError(
        f"no picture of {place}, {source.name}, has a {field!r}",
        where="class_field",
        remedy="name a metadata field that holds each picture's class",
    )


def _labelled(embedder: Embedder, source: Source, place: str, field: str) -> _Labelled:
    """Return the points and classes of all pictures that can be read and have a class, and how many have none."""
    index, points = embedder.images(source)
    names = [class_name(source, i, field) for i in index.tolist()]
    known = torch.tensor([name is not None for name in names])
    if not bool(known.any()):
        raise _no_class(source, place, field)
    return points[known.to(points.device)], [name for name in names if name is not None], int((~known).sum())


def _train_and_test(
    embedder: Embedder, train_config: SourceConfig, test_config: SourceConfig, field: str
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], tuple[str, ...]]:
    """Return training points and labels, test points and labels, and notes of what was left out."""
    test, names, test_missing = _labelled(embedder, opened(test_config, "source"), "source", field)
    train, examples, train_missing = _labelled(embedder, opened(train_config, "train_source"), "train_source", field)
    asked = set(names)
    used = torch.tensor([name in asked for name in examples])
    if not bool(used.any()):
        raise UserError(
            f"no training picture has a {field!r} that a test picture has",
            where="train_source",
            remedy="take both from data with the same classes",
        )
    classes = sorted(asked)
    train_labels = concept_labels([name for name in examples if name in asked], classes).labels
    notes = list(_left_out(test_missing + train_missing, field))
    if not bool(used.all()):
        notes.append(f"{int((~used).sum())} training pictures of classes without a test picture were left out.")
    labels = concept_labels(names, classes).labels
    return (train[used.to(train.device)], train_labels, test, labels), tuple(notes)


def _left_out(count: int, field: str) -> tuple[str, ...]:
    return (f"{count} pictures without a {field!r} were left out.",) if count else ()


def _noted(result: TaskResult, notes: tuple[str, ...]) -> TaskResult:
    return replace(result, notes=(*result.notes, *notes)) if notes else result
