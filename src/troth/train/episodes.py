"""Episodes: encode some thousand samples, cluster them, and learn from the clusters; then the next ones.

The clusters of the episode live in :class:`~troth.state.State` as values of the whole run, so that a run that resumes
in the middle of an episode goes on with them; one that resumes at its start encodes and clusters again, from the same
weights and the same draws, and finds the same.
"""

from __future__ import annotations

import time
from dataclasses import dataclass as plain_dataclass
from dataclasses import field, replace
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int64
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor

from troth import distributed
from troth.clustering import KMeans, group_means
from troth.data.episode_plan import EpisodePlan
from troth.data.ledger import Ledger
from troth.data.loader import BatchStream
from troth.data.plan import rank_rows
from troth.encoders.contrastive import ContrastiveModel, Features
from troth.encoders.prototype_heads import ProjectionConfig
from troth.errors import UserError
from troth.similarity import Clustered, ClusterTargets, PrototypePairs
from troth.state import State
from troth.train.external_teacher import ExternalFeatures, ExternalTeacherConfig
from troth.train.hardware import autocast
from troth.types import STRICT, Batch

Count = Annotated[int, Field(gt=0)]

#: What a run does in an episode: learn pairs before there are prototypes, learn prototypes too, or learn pairs with the
#: image tower locked; "pairs" where no objective learns prototypes.
Phase = Literal["warmup", "prototypes", "locked", "pairs"]

#: The view of the samples that is clustered; view 0 is the one that learns.
_CLUSTERED_VIEW = 1


@dataclass(frozen=True, config=STRICT)
class EpisodesConfig:
    """Training in episodes, as ProtoCLIP does: each encodes its samples, clusters them, and trains on them once.

    Source: Chen et al. 2022, "ProtoCLIP: prototypical contrastive language image pretraining", sections III-D and
    IV-A and table I; where it says nothing, the released code.

    Attributes:
        size: samples of an episode; ``train.epochs`` says how many samples the whole run has.
        with_replacement: whether a sample may come twice in an episode (the released code).
        images_per_prototype: samples for each prototype: a modality has as many prototypes as the samples of an
            episode's whole batches, divided by this.
        kmeans: how the projections are clustered.
        warmup_episodes: first episodes that learn pairs alone.
        lock_image_from: the episode, counted from 1, from which on the image tower is locked and pairs alone are
            learnt: its learning rate has come to zero there and stays so. None: never. The source locks it half-way.
        projection: the heads in whose spaces the prototypes live.
        external: a frozen teacher whose features are clustered too, for ``external_prototypes``; None: none.
    """

    size: Annotated[int, Field(gt=1)] = 200_000
    with_replacement: bool = True
    images_per_prototype: Count = 10
    kmeans: KMeans = field(default_factory=KMeans)
    warmup_episodes: Annotated[int, Field(ge=0)] = 1
    lock_image_from: Count | None = None
    projection: ProjectionConfig = field(default_factory=ProjectionConfig)
    external: ExternalTeacherConfig | None = None

    @model_validator(mode="after")
    def _has_prototypes(self) -> EpisodesConfig:
        if self.size < 2 * self.images_per_prototype:
            raise ValueError(
                f"images_per_prototype ({self.images_per_prototype}) must be at most half of size ({self.size}),"
                " which leaves two prototypes"
            )
        return self

    def plan(self, num_samples: int, batch_size: int, seed: int) -> EpisodePlan:
        """Return the order of training."""
        return EpisodePlan(num_samples, batch_size, seed, self.size, self.with_replacement)


@plain_dataclass(frozen=True, slots=True)
class EpisodeReport:
    """How an episode's time was spent, by rank 0.

    Attributes:
        episode: its number, from 1.
        phase: what it learned.
        features_seconds: encoding the samples; 0 in an episode that makes no prototypes.
        clustering_seconds: clustering them and translating the clusters.
        training_seconds: the rest: batches, steps, and what the loop does between them.
        occupied: for each clustering, how many of its prototypes have samples.
    """

    episode: int
    phase: Phase
    features_seconds: float
    clustering_seconds: float
    training_seconds: float
    occupied: dict[str, int]


class Episodes:
    """The episodes of one run: makes the prototypes at each one's start, and hands them to the steps.

    With several ranks each encodes its own rows of the episode; all of them call each method.

    Args:
        config: how.
        plan: the order of training, which the stream has too.
        external: a frozen teacher's features, which get clusters of their own; or None.
        with_prototypes: whether an objective learns prototypes. If none does, nothing is encoded or clustered, and
            episodes are an order of the samples: the one that the source's baseline, plain CLIP, has.
    """

    def __init__(
        self,
        config: EpisodesConfig,
        plan: EpisodePlan,
        external: ExternalFeatures | None = None,
        *,
        with_prototypes: bool = True,
    ) -> None:
        self.config = config
        self.plan = plan
        self.external = None if external is None else external.features
        self.with_prototypes = with_prototypes
        self.identity = repr(config) if external is None else f"{config!r} {external.identity}"
        self.num_samples = plan.steps_per_episode * plan.batch_size
        self.num_prototypes = self.num_samples // config.images_per_prototype
        if with_prototypes and self.num_prototypes < 2:
            raise UserError(
                f"an episode of {self.num_samples} samples has {self.num_prototypes} prototypes",
                where="episodes.images_per_prototype",
                remedy=f"use at most {self.num_samples // 2}",
            )
        self._began: EpisodeReport | None = None
        self._training_since = 0.0
        self._rows = rank_rows(plan.batch_size, distributed.rank(), distributed.world_size())

    def phase(self, step: int) -> Phase:
        """What the episode that ``step`` belongs to learns."""
        episode = self.plan.epoch(step) + 1
        if self.config.lock_image_from is not None and episode >= self.config.lock_image_from:
            return "locked"
        if not self.with_prototypes:
            return "pairs"
        return "warmup" if episode <= self.config.warmup_episodes else "prototypes"

    @property
    def lock_step(self) -> int | None:
        """The step from which on the image tower is locked, or None."""
        episode = self.config.lock_image_from
        return None if episode is None else (episode - 1) * self.plan.steps_per_episode

    @property
    def rehearsal_step(self) -> int:
        """A step that costs what those with prototypes cost: the first of them, or the first of all if there is none.

        A dry run makes it before anything is encoded, with prototypes of zeros.
        """
        step = self.config.warmup_episodes * self.plan.steps_per_episode
        return step if self.phase(step) == "prototypes" else 0

    def check(self, epochs: int) -> None:
        """Raise a UserError if a run of that many epochs would have no episode that learns prototypes."""
        episodes, last = self.plan.episodes(epochs), self.config.lock_image_from
        if last is not None and last > episodes:
            raise UserError(
                f"the image tower is to be locked from episode {last} on, and the run has {episodes}",
                where="episodes.lock_image_from",
                remedy="an earlier one, or none",
            )
        learning = (episodes if last is None else last - 1) - self.config.warmup_episodes
        if self.with_prototypes and learning < 1:
            raise UserError(
                f"none of the run's {episodes} episodes of {self.plan.episode_size:,} samples learns prototypes",
                where="episodes.size",
                remedy="smaller episodes, fewer warmup_episodes, a later lock_image_from, or more epochs",
            )

    def declare(self, state: State) -> None:
        """Make room for an episode's clusters. Called before training and again after a resume."""
        if not self.with_prototypes:
            return
        own, dim = state.scope("episodes"), self.config.projection.dim
        for name, width in self._widths().items():
            own.declare_value(f"{name}/label", torch.zeros(self.num_samples, dtype=torch.int32))
            own.declare_value(f"{name}/prototypes", torch.zeros(self.num_prototypes, width))
            for student in _students(name):
                own.declare_value(f"{name}/{student}", torch.zeros(self.num_prototypes, dim))

    def begin(
        self,
        step: int,
        stream: BatchStream,
        model: ContrastiveModel,
        state: State,
        precision: torch.dtype | None,
        micro_batch_size: int | None = None,
    ) -> Ledger:
        """Encode and cluster the episode that ``step`` begins; do nothing if it begins none, or one without prototypes.

        The features are made in evaluation mode, from a view of the samples that is not the one they will be trained
        with: other draws of the augmentation and of the caption.

        Args:
            step: the step about to be made.
            stream: the run's batches.
            model: the model, whose mode is left as it was.
            state: where the clusters go.
            precision: what the towers are autocast to, or None.
            micro_batch_size: rows the towers take at once on each rank, or None for all.

        Returns:
            The samples that could not be read.
        """
        ledger = Ledger()
        if step % self.plan.steps_per_episode:
            return ledger
        phase = self.phase(step)
        began, encoded, occupied = time.perf_counter(), None, {}
        if phase == "prototypes":
            ids, image, text = self._encode(step, stream, model, precision, micro_batch_size, ledger)
            encoded = time.perf_counter()
            found = self._cluster(step, ids, image, text) if distributed.is_main() else {}
            own = state.scope("episodes")
            for name in self._value_names():
                own.set_value(name, found.get(name, own.value(name)))
            occupied = {str(name): len(set(own.value(f"{name}/label").tolist())) for name in self._widths()}
        now = time.perf_counter()
        times = (0.0, 0.0) if encoded is None else (encoded - began, now - encoded)
        self._began = EpisodeReport(self.plan.epoch(step) + 1, phase, *times, 0.0, occupied)
        self._training_since = now
        return ledger

    def end(self, done: int) -> EpisodeReport | None:
        """Return how the episode went that ``done`` steps complete; None if none, or one begun by another process."""
        if self._began is None or done % self.plan.steps_per_episode:
            return None
        began, self._began = self._began, None
        return replace(began, training_seconds=time.perf_counter() - self._training_since)

    def pairs(self, step: int, features: Features, state: State) -> PrototypePairs | None:
        """Return what objectives may use of this rank's rows of the batch of ``step``; None if none learns prototypes.

        Raises:
            UserError: if the model has no prototype heads.
        """
        if not self.with_prototypes:
            return None
        image, text, scale = features.image_projection, features.text_projection, features.prototype_scale
        if image is None or text is None or scale is None:
            raise _without_heads()
        pairs = PrototypePairs(image, text, scale)
        if self.phase(step) != "prototypes":
            return pairs
        start = (step % self.plan.steps_per_episode) * self.plan.batch_size + self._rows.start
        rows = slice(start, start + len(image))
        own = state.scope("episodes")
        return replace(pairs, clusters={name: _targets(own, name, rows, image.device) for name in self._widths()})

    def _widths(self) -> dict[Clustered, int]:
        """The spaces that are clustered, with their dimensions."""
        if not self.with_prototypes:
            return {}
        dim = self.config.projection.dim
        widths: dict[Clustered, int] = {"image": dim, "text": dim}
        return widths if self.external is None else widths | {"external": self.external.shape[1]}

    def _value_names(self) -> list[str]:
        return [f"{name}/{part}" for name in self._widths() for part in ("label", "prototypes", *_students(name))]

    @torch.no_grad()
    def _encode(
        self,
        step: int,
        stream: BatchStream,
        model: ContrastiveModel,
        precision: torch.dtype | None,
        micro_batch_size: int | None,
        ledger: Ledger,
    ) -> tuple[Int64[Tensor, " m"], Float[Tensor, "m Dp"], Float[Tensor, "m Dp"]]:
        """Return the sample ids of the episode, whoever stood in for whom, and the projections of both modalities."""
        device = next(model.parameters()).device
        training = [module for module in model.modules() if module.training]
        ids: list[Tensor] = []
        images: list[Tensor] = []
        texts: list[Tensor] = []
        model.eval()
        try:
            for loaded in stream.batches(step, step + self.plan.steps_per_episode, view=_CLUSTERED_VIEW):
                ledger.extend(loaded.skipped)
                batch = loaded.batch.to(device)
                image, text = _projections(model, batch, precision, micro_batch_size)
                ids.append(distributed.gather(batch.index).cpu())
                images.append(distributed.gather(image).cpu())
                texts.append(distributed.gather(text).cpu())
        finally:
            for module in training:  # one by one: a frozen batch norm in the model stays in evaluation mode
                module.training = True
        return torch.cat(ids), torch.cat(images), torch.cat(texts)

    def _cluster(self, step: int, ids: Tensor, image: Tensor, text: Tensor) -> dict[str, Tensor]:
        """Cluster every space, and translate the clusters into their students' spaces (equation 7 of the source)."""
        spaces: dict[Clustered, Tensor] = {"image": image, "text": text}
        if self.external is not None:
            spaces["external"] = self.external[ids]
        found: dict[str, Tensor] = {}
        for name, points in spaces.items():
            clusters = self.config.kmeans.fit(points, self.num_prototypes, seed=self.plan.seed + self.plan.epoch(step))
            found[f"{name}/label"], found[f"{name}/prototypes"] = clusters.labels, clusters.centroids
            for student in _students(name):
                found[f"{name}/{student}"] = group_means(spaces[student], clusters.labels, self.num_prototypes)
        return found


def _without_heads() -> UserError:
    return UserError(
        "the model has no prototype heads",
        where="episodes.projection",
        remedy="build the model with the heads of ProjectionConfig.build",
    )


def _projections(
    model: ContrastiveModel, batch: Batch, precision: torch.dtype | None, micro_batch_size: int | None
) -> tuple[Float[Tensor, "B Dp"], Float[Tensor, "B Dp"]]:
    """Return the projections of a batch's rows, some rows at a time."""
    size = micro_batch_size or len(batch)
    images, texts = [], []
    for start in range(0, len(batch), size):
        part = batch.slice(start, start + size)
        with autocast(batch.image.device, precision):
            features: Features = model(part.image, part.text)
        if features.image_projection is None or features.text_projection is None:
            raise _without_heads()
        images.append(features.image_projection.float())
        texts.append(features.text_projection.float())
    return torch.cat(images), torch.cat(texts)


def _students(clustered: Clustered) -> tuple[Clustered, ...]:
    """Which modalities learn from a clustering: the other one, or both from an external teacher's."""
    students: dict[Clustered, tuple[Clustered, ...]] = {
        "image": ("text",),
        "text": ("image",),
        "external": ("image", "text"),
    }
    return students[clustered]


def _targets(own: State, name: Clustered, rows: slice, device: torch.device) -> ClusterTargets:
    labels, prototypes = own.value(f"{name}/label").long(), own.value(f"{name}/prototypes")
    occupied = torch.zeros(len(prototypes), dtype=torch.bool)
    occupied[labels] = True
    translated = {student: own.value(f"{name}/{student}").to(device) for student in _students(name)}
    return ClusterTargets(
        labels[rows].to(device),
        prototypes.to(device),
        translated.get("image"),
        translated.get("text"),
        occupied.to(device),
    )
