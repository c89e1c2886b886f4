"""The tasks a recipe can name: each knows its data, and asks an embedder for points.

A task never sees a model. What it asks for is cached by content, so that two tasks on one data set encode it once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int64
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from troth.data import EmbeddedSource, SourceConfig, VectorsSource
from troth.embed import Embedder
from troth.evaluate.averages import class_embedding
from troth.evaluate.concept import concept_test
from troth.evaluate.label_tasks import ClusteringTask, KNNTask, LinearProbeTask
from troth.evaluate.labels import ConceptLabels, concept_labels
from troth.evaluate.matching import class_matching, matching
from troth.evaluate.result import TaskResult
from troth.evaluate.retrieval import retrieval
from troth.evaluate.task_data import Name, opened, required_class_name
from troth.evaluate.zero_shot import zero_shot
from troth.types import STRICT

Cutoffs = Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(min_length=1)]
Template = Annotated[str, Field(pattern=r"\{\}")]
Templates = Annotated[tuple[Template, ...], Field(min_length=1)]


@dataclass(frozen=True, config=STRICT)
class ZeroShotTask:
    """Which class does a picture show, going by the classes' names alone?

    Attributes:
        name: the task's name in tables and metrics.
        source: the pictures.
        class_field: the metadata field that holds a picture's class name, or ``category``.
        templates: prompts in which ``{}`` stands for the class name; their points are averaged, or their
            similarities to a picture, as the geometry has it (:func:`~troth.evaluate.class_embedding`).
        topk: cut-offs.
    """

    kind: Literal["zero-shot"] = "zero-shot"
    name: Name = "zero-shot"
    source: SourceConfig = Field(default_factory=lambda: EmbeddedSource(split="style-shift"))
    class_field: str = "name"
    templates: Templates = ("{}",)
    topk: Cutoffs = (1, 5)

    def metric_names(self) -> tuple[str, ...]:
        """Return the metrics of :meth:`run` that larger is better of (fewer cut-offs if there are fewer classes)."""
        return (*(f"top{k}" for k in self.topk), "mean_class_accuracy")

    def check(self) -> None:
        """Open the data and read one sample's class name. Raises UserError for what :meth:`run` could not do."""
        source = opened(self.source, "source")
        required_class_name(source, 0, self.class_field)

    def points(self, embedder: Embedder) -> tuple[Float[Tensor, "Q D"], Int64[Tensor, " Q"], Float[Tensor, "C *T D"]]:
        """Return the pictures' points, their classes' numbers, and the classes' points, as :meth:`run` scores them."""
        source = opened(self.source, "source")
        index, images = embedder.images(source)
        labels = concept_labels([required_class_name(source, i, self.class_field) for i in index.tolist()])
        return images, labels.labels, _class_points(embedder, labels.class_names, self.templates)

    def run(self, embedder: Embedder) -> TaskResult:
        """Score the embedder's model."""
        images, labels, classes = self.points(embedder)
        return zero_shot(images, labels, classes, embedder.geometry, self.topk, task=self.name)


@dataclass(frozen=True, config=STRICT)
class ConceptTask:
    """Zero-shot classification of concepts whose names were never trained on.

    Scored twice: among the held-out names only, and among them and all the names of ``names_source``.

    Attributes:
        name: the task's name in tables and metrics.
        source: the pictures of held-out concepts.
        names_source: whose class names are the other candidates.
        class_field: the metadata field that holds a class name, or ``category``.
        templates: prompts in which ``{}`` stands for the class name, as in :class:`ZeroShotTask`.
        topk: cut-offs.
    """

    kind: Literal["concept"] = "concept"
    name: Name = "concept"
    source: SourceConfig = Field(default_factory=lambda: EmbeddedSource(split="concept"))
    names_source: SourceConfig = Field(default_factory=lambda: EmbeddedSource(split="style-shift"))
    class_field: str = "name"
    templates: Templates = ("{}",)
    topk: Cutoffs = (1, 5)

    def metric_names(self) -> tuple[str, ...]:
        """Return the metrics of :meth:`run` that larger is better of (fewer cut-offs if there are fewer classes)."""
        names = (*(f"top{k}" for k in self.topk), "mean_class_accuracy")
        return tuple(f"{part}/{name}" for part in ("held_out", "all") for name in names)

    def check(self) -> None:
        """Open the data and read one sample's class name. Raises UserError for what :meth:`run` could not do."""
        for source in (opened(self.source, "source"), opened(self.names_source, "names_source")):
            required_class_name(source, 0, self.class_field)

    def run(self, embedder: Embedder) -> TaskResult:
        """Score the embedder's model."""
        source, others = opened(self.source, "source"), opened(self.names_source, "names_source")
        index, images = embedder.images(source)
        own = [required_class_name(source, i, self.class_field) for i in index.tolist()]
        names = sorted({*own, *(required_class_name(others, i, self.class_field) for i in range(len(others)))})
        labels: ConceptLabels = concept_labels(own, names)
        held_out = torch.tensor([name in set(own) for name in names])
        classes = _class_points(embedder, names, self.templates)
        return concept_test(images, labels.labels, classes, held_out, embedder.geometry, self.topk, task=self.name)


@dataclass(frozen=True, config=STRICT)
class RetrievalTask:
    """Find a picture's captions among all captions, and a caption's picture among all pictures.

    Attributes:
        name: the task's name in tables and metrics.
        source: the pictures with their captions.
        captions: how many of each picture's captions take part, in the source's order; None takes all.
        k: cut-offs.
    """

    kind: Literal["retrieval"] = "retrieval"
    name: Name = "retrieval"
    source: SourceConfig = Field(default_factory=lambda: EmbeddedSource(split="retrieval"))
    captions: Annotated[int, Field(gt=0)] | None = 1
    k: Cutoffs = (1, 5, 10)

    def metric_names(self) -> tuple[str, ...]:
        """Return the metrics of :meth:`run` that larger is better of (fewer cut-offs with fewer candidates)."""
        names = (*(f"recall@{k}" for k in self.k), "mrr")
        return (*(f"{way}/{name}" for way in ("image_to_text", "text_to_image") for name in names), "mean_recall")

    def check(self) -> None:
        """Open the data. Raises UserError for what :meth:`run` could not do."""
        opened(self.source, "source")

    def run(self, embedder: Embedder) -> TaskResult:
        """Score the embedder's model. Pictures with an equal caption are one group: any of them answers it."""
        source = opened(self.source, "source")
        index, images = embedder.images(source)
        chosen = [source.captions(i)[: self.captions] for i in index.tolist()]
        owners = [row for row, captions in enumerate(chosen) for _ in captions]
        texts = [caption for captions in chosen for caption in captions]
        image_group, text_group = _groups(owners, texts, len(chosen))
        points = embedder.texts(texts)
        return retrieval(images, points, image_group, text_group, embedder.geometry, self.k, task=self.name)


@dataclass(frozen=True, config=STRICT)
class MatchingTask:
    """Is the text of a sample the one most similar to its image, among the texts of all samples? And the reverse.

    Samples with one and the same first caption, or text vector, answer each other's queries.

    Attributes:
        name: the task's name in tables and metrics.
        source: the pairs, of vectors or pictures.
        topk: cut-offs.
    """

    kind: Literal["matching"] = "matching"
    name: Name = "matching"
    source: SourceConfig = Field(default_factory=VectorsSource)
    topk: Cutoffs = (1, 5)

    def metric_names(self) -> tuple[str, ...]:
        """Return the metrics of :meth:`run`, larger is better (fewer cut-offs with fewer candidates)."""
        return tuple(f"{way}/top{k}" for way in ("image_to_text", "text_to_image") for k in self.topk)

    def check(self) -> None:
        """Open the data. Raises UserError for what :meth:`run` could not do."""
        opened(self.source, "source")

    def run(self, embedder: Embedder) -> TaskResult:
        """Score the embedder's model."""
        return matching(RetrievalTask(name=self.name, source=self.source, captions=1, k=self.topk).run(embedder))


@dataclass(frozen=True, config=STRICT)
class ClassMatchingTask:
    """Is the text most similar to an image of the image's class, among the texts of all samples? And the reverse.

    Attributes:
        name: the task's name in tables and metrics.
        source: the pairs, of vectors with a ``label`` or of pictures.
        class_field: the metadata field that holds a sample's class, or ``category``.
        topk: cut-offs; a query is right if one of the k most similar is of its class.
    """

    kind: Literal["class-matching"] = "class-matching"
    name: Name = "class-matching"
    source: SourceConfig = Field(default_factory=VectorsSource)
    class_field: str = "category"
    topk: Cutoffs = (1,)

    def metric_names(self) -> tuple[str, ...]:
        """Return the metrics of :meth:`run`, larger is better (fewer cut-offs with fewer candidates)."""
        return tuple(f"{way}/top{k}" for way in ("image_to_text", "text_to_image") for k in self.topk)

    def check(self) -> None:
        """Open the data and read every sample's class. Raises UserError for what :meth:`run` could not do."""
        source = opened(self.source, "source")
        for index in range(len(source)):
            required_class_name(source, index, self.class_field)

    def run(self, embedder: Embedder) -> TaskResult:
        """Score the embedder's model."""
        source = opened(self.source, "source")
        index, images = embedder.images(source)
        samples = index.tolist()
        labels = concept_labels([required_class_name(source, i, self.class_field) for i in samples]).labels
        texts = embedder.texts([source.captions(i)[0] for i in samples])
        return class_matching(images, texts, labels, labels, embedder.geometry, self.topk, task=self.name)


#: What a recipe may put under ``[[evaluation.tasks]]``, told apart by ``kind``.
TaskConfig = Annotated[
    ZeroShotTask
    | ConceptTask
    | RetrievalTask
    | KNNTask
    | LinearProbeTask
    | ClusteringTask
    | MatchingTask
    | ClassMatchingTask,
    Field(discriminator="kind"),
]


def _class_points(embedder: Embedder, names: Sequence[str], templates: Sequence[str]) -> Float[Tensor, "C *T D"]:
    prompts = [template.replace("{}", name) for name in names for template in templates]
    points = embedder.texts(prompts)
    return class_embedding(points.view(len(names), len(templates), -1), embedder.geometry)


def _groups(
    owners: Sequence[int], texts: Sequence[str], num_images: int
) -> tuple[Int64[Tensor, " I"], Int64[Tensor, " T"]]:
    """Number the groups of pictures that share a caption, directly or through others (a union-find)."""
    parent = list(range(num_images))

    def root(image: int) -> int:
        while parent[image] != image:
            parent[image] = parent[parent[image]]
            image = parent[image]
        return image

    first_owner: dict[str, int] = {}
    for owner, text in zip(owners, texts, strict=True):
        parent[root(owner)] = root(first_owner.setdefault(text, owner))
    image_group = torch.tensor([root(image) for image in range(num_images)])
    return image_group, image_group[torch.tensor(owners)]
