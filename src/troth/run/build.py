"""From a recipe to the things it names: source, noise, model, stream."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from troth import distributed
from troth.data import (
    BatchNoise,
    BatchPlan,
    BatchStream,
    CaptionAssignment,
    DetectionTruth,
    EpisodePlan,
    FeatureStream,
    ImageTextStream,
    Ledger,
    Plan,
    Source,
    UnpairedPlans,
    UnpairedStream,
    UnpairedTexts,
    WeightedPlan,
    carries_vectors,
)
from troth.data.noise import CaptionChoice
from troth.embed import FeatureCache, FrozenEncoders
from troth.embed.features import FrozenFeatures, Progress, distinct_captions
from troth.embed.pictures import picture_transform
from troth.embed.vectors import carried_features
from troth.encoders import ContrastiveModel, Heads, HeadsEncoder, OpenClipEncoder, SpectralHead, apply_towers
from troth.errors import UserError
from troth.geometry import FILIP
from troth.recipe import Recipe
from troth.run.checks import at, check, check_tokens, check_weights
from troth.run.vectors import check_alike, fitted
from troth.train import (
    Episodes,
    JudgeConfig,
    JudgedPairs,
    JudgedStream,
    TaughtData,
    TaughtRun,
    TaughtStream,
    Teacher,
    UnpairedConfig,
)
from troth.train.hardware import resolve_device
from troth.train.teacher_tower import FrozenTower


@dataclass(frozen=True)
class Built:
    """What a recipe names, built.

    Attributes:
        recipe: as validated; what it left to the data (the dimensions of vectors) is filled in.
        source: the training pairs.
        noise: whose captions each of them gets.
        reserve: where foreign captions come from, if any.
        model: towers, geometry and scale, freshly initialised.
        frozen: the frozen encoders under heads; None for towers.
        on_progress: called with (done, in all) while a teacher encodes the training pictures.
        judgement: of a run that is resumed: what its judge said of the pairs.
    """

    recipe: Recipe
    source: Source
    noise: CaptionAssignment | BatchNoise
    reserve: Source | None
    model: ContrastiveModel
    frozen: FrozenEncoders | None
    on_progress: Progress | None = None
    judgement: Path | None = None

    def episodes(self, stream: BatchStream, ledger: Ledger | None = None) -> Episodes | None:
        """Return what makes the prototypes of each episode of ``stream``; None if the recipe has no episodes.

        The features of an external teacher are computed (or read) first.

        Args:
            stream: the run's batches, made by :meth:`stream`.
            ledger: takes up the pictures that an external teacher could not read.

        Raises:
            UserError: if the external teacher cannot be loaded, or cannot know the captions that the noise gives.
        """
        config = self.recipe.episodes
        if config is None:
            return None
        assert isinstance(stream.plan, EpisodePlan)
        if config.external is None:
            episodes = Episodes(config, stream.plan, with_prototypes=self.recipe.objective.needs_prototypes)
            episodes.check(self.recipe.train.epochs)
            return episodes
        with _main_rank_first(), at("episodes.external"):
            external = config.external.build(self._taught_data())
        if ledger is not None:
            ledger.extend(external.ledger)
        episodes = Episodes(config, stream.plan, external)
        episodes.check(self.recipe.train.epochs)
        return episodes

    def _taught_data(self) -> TaughtData:
        return TaughtData(
            self.source,
            self.noise,
            self.reserve,
            device=resolve_device(self.recipe.train.device),
            cache=self._cache,
            num_workers=self.recipe.train.num_workers or None,
            on_progress=self.on_progress,
        )

    @cached_property
    def judged(self) -> JudgedPairs | None:
        """What the recipe's judge thinks of the training pairs, found out once; None if there is no judge.

        Raises:
            UserError: if the judge cannot know the pairs, or its encoders cannot be loaded.
        """
        if self.recipe.judge is None:
            return None
        features = self._features(self.source, self.reserve, None)
        with _main_rank_first(), at("judge"):
            judged = self._judge(self.recipe.judge).build(self._taught_data(), self.recipe.seed, features)
            return judged if self.judgement is None else judged.remembered(self.judgement)

    def _judge(self, judge: JudgeConfig) -> JudgeConfig:
        """Return the recipe's judge; its stages are of the encoder that made heads' features, and vectors have none."""
        model = self.recipe.model
        if carries_vectors(self.source):
            return replace(judge, stages=False)
        if not judge.stages or not isinstance(model, Heads):
            return judge
        encoder = FrozenTower(
            image_encoder=model.image_encoder, image_size=model.image_size, image_weights=model.image_weights
        )
        return replace(judge, encoder=encoder, precision=model.precision)

    def begin(self) -> None:
        """Put the judge's maps beside heads that are to have them. The weights of a checkpoint bring their own."""
        heads = isinstance(self.recipe.model, Heads) and self.recipe.model.skip == "spectral"
        if heads and self.recipe.start_from is None:
            assert self.judged is not None, "checked with the recipe"
            alignment = self.judged.judgement.alignment
            encoder = self.model.encoder
            assert isinstance(encoder, HeadsEncoder)
            for head, found in ((encoder.image_head, alignment.image), (encoder.text_head, alignment.text)):
                assert isinstance(head, SpectralHead)
                head.install(found.mean, found.matrix)

    @property
    def _cache(self) -> FeatureCache:
        return FeatureCache() if self.frozen is None else self.frozen.cache

    def _plan(self, features: FrozenFeatures | None) -> BatchPlan:
        """Return the order of training, of the samples whose features could be made."""
        size, seed = self.recipe.train.batch_size, self.recipe.seed
        if self.recipe.judge is not None and self.recipe.judge.draw_wrong < 1:
            assert self.judged is not None
            share = self.judged.share if features is None else self.judged.share[features.valid]
            # Of rank 0: where each node judges for itself, last bits may differ, and with them the draws.
            return WeightedPlan(distributed.broadcast_object(share.numpy()), size, seed)
        num_samples = len(self.source) if features is None else int(features.valid.sum())
        if self.recipe.episodes is None:
            return Plan(num_samples, size, seed)
        return self.recipe.episodes.plan(num_samples, size, seed)

    def stream(self, ledger: Ledger | None = None) -> BatchStream:
        """Return this rank's batches, with the teacher's features if the recipe names one.

        For heads, the frozen features are computed (or read) first; so are those of a teacher that is cached.

        Args:
            ledger: takes up the pictures that could not be read while features were computed.

        Raises:
            UserError: if the batch is larger than the data, or cannot be divided among the ranks, or the teacher
                cannot be loaded.
        """
        teacher = self._teacher()
        if teacher is not None and ledger is not None:
            ledger.extend(teacher.ledger)
        with at("data.noise"):
            stream = self._paired_stream(ledger)
        if teacher is not None:
            stream = TaughtStream(stream, teacher)
        if self.judged is not None:
            if ledger is not None:
                ledger.extend(self.judged.ledger)
            stream = JudgedStream(stream, self.judged)
        return stream if self.recipe.unpaired is None else self._with_unpaired(stream, self.recipe.unpaired, ledger)

    def _teacher(self) -> Teacher | None:
        if self.recipe.teacher is None:
            return None
        run = TaughtRun(
            student=self.model.encoder,
            source=self.source,
            device=resolve_device(self.recipe.train.device),
            cache=self._cache,
            num_workers=self.recipe.train.num_workers or None,
            on_progress=self.on_progress,
        )
        with _main_rank_first():
            return self.recipe.teacher.build(run)

    def _paired_stream(self, ledger: Ledger | None) -> BatchStream:
        features = self._features(self.source, self.reserve, ledger)
        return self._stream(self.source, self._plan(features), self.noise, self.reserve, features)

    def _with_unpaired(self, pairs: BatchStream, config: UnpairedConfig, ledger: Ledger | None) -> UnpairedStream:
        """Put the second stage behind the first."""
        with at("unpaired.images"):
            images = config.images.open()
            check_alike(images, self.source)
        with at("unpaired.texts"):
            texts = config.texts.open()
            check_alike(texts, self.source, ("text",))
        if ledger is not None:
            ledger.extend((*images.ledger, *texts.ledger))
        features = self._features(images, texts, ledger)
        num_images = len(images) if features is None else int(features.valid.sum())
        ranks = distributed.world_size()
        plans = UnpairedPlans.draw(num_images, len(texts), config.batch_size, self.recipe.seed, ranks, config.order)
        noise = UnpairedTexts(plans.texts, len(images), texts.fingerprint)
        return UnpairedStream(
            pairs,
            self._stream(images, plans.images, noise, texts, features),
            plans,
            DetectionTruth(images, texts, config.truth),
            paired_epochs=self.recipe.train.epochs,
            epochs=config.epochs,
            with_pairs=config.paired_weight > 0,
            rank=distributed.rank(),
            world_size=ranks,
        )

    def _features(self, source: Source, reserve: Source | None, ledger: Ledger | None) -> FrozenFeatures | None:
        """Return what heads and plain encoders take of a source and of the reserve's captions; None for towers."""
        if carries_vectors(source):
            return carried_features(source, reserve)
        if self.frozen is None:
            return None
        with _main_rank_first():
            features = self.frozen.features(source, () if reserve is None else distinct_captions(reserve))
        if ledger is not None:
            ledger.extend(features.ledger)
        return features

    def _stream(
        self,
        source: Source,
        plan: BatchPlan,
        noise: CaptionChoice,
        reserve: Source | None,
        features: FrozenFeatures | None,
    ) -> BatchStream:
        ranks = {"rank": distributed.rank(), "world_size": distributed.world_size()}
        if features is None:
            encoder = self.model.encoder
            assert isinstance(encoder, OpenClipEncoder)
            return ImageTextStream(
                source,
                plan,
                image_transform=picture_transform(encoder, train=True, augmentation=self.recipe.data.augmentation),
                tokenize=encoder.tokenize,
                noise=noise,
                reserve=reserve,
                num_workers=self.recipe.train.num_workers,
                **ranks,
            )
        return FeatureStream(
            source,
            plan,
            image_features=features.image_features,
            captions=features.captions,
            text_features=features.text_features,
            valid=features.valid,
            noise=noise,
            reserve=reserve,
            **ranks,
        )


@contextlib.contextmanager
def _main_rank_first() -> Iterator[None]:
    """Let rank 0 compute what is not cached, and the others read it; an error on rank 0 keeps nobody waiting."""
    if not distributed.is_main():
        distributed.barrier()
    try:
        yield
    finally:
        if distributed.is_main():
            distributed.barrier()


def build(recipe: Recipe, *, frozen: FrozenEncoders | None = None, on_progress: Progress | None = None) -> Built:
    """Open the data, draw the noise and build the model. A teacher is loaded with the stream, which alone needs it.

    Args:
        recipe: the run.
        frozen: for heads, frozen encoders that another run of the same process has loaded already.
        on_progress: called with (done, in all) while frozen features are computed.

    Raises:
        UserError: if something the recipe names does not exist or does not fit.
    """
    with at("data.source"):
        source = recipe.data.source.open()
    recipe = fitted(recipe, source)
    with at("data.noise"):
        reserve = recipe.data.noise.open_reserve()
        if reserve is not None:
            with at("data.noise.reserve"):
                check_alike(reserve, source, ("text",))
        noise = recipe.data.noise.bind(source, recipe.seed, reserve)
    model = build_model(recipe)
    check(recipe, model)
    return Built(recipe, source, noise, reserve, model, frozen or _frozen(recipe, on_progress), on_progress)


def build_model(recipe: Recipe) -> ContrastiveModel:
    """Build the model alone, freshly initialised."""
    with at("model"):
        encoder = recipe.model.build(recipe.seed)
    # Whether the towers' width fits the geometry shows when a point is made: of nothing, here, not in the first step.
    with at("geometry"):
        check_tokens(recipe.geometry, encoder)
        recipe.geometry.project(torch.zeros(1, encoder.embed_dim))
        if isinstance(recipe.geometry, FILIP) and recipe.geometry.sub_dim == encoder.embed_dim:
            raise UserError(
                f"the towers' {encoder.embed_dim} dimensions are one token, which is the sphere",
                where="sub_dim",
                remedy=f"a smaller sub_dim that divides {encoder.embed_dim}",
            )
    check_weights(recipe)
    model = ContrastiveModel(
        encoder,
        recipe.geometry,
        recipe.scale,
        with_bias=recipe.objective.needs_bias,
        prototype_heads=None
        if recipe.episodes is None or not recipe.objective.needs_prototypes
        else recipe.episodes.projection.build(encoder.embed_dim, recipe.seed),
    )
    with at("towers"):
        apply_towers(model, recipe.towers, recipe.seed)
    return model


def _frozen(recipe: Recipe, on_progress: Progress | None) -> FrozenEncoders | None:
    if not isinstance(recipe.model, Heads):
        return None
    workers = recipe.train.num_workers or None
    return FrozenEncoders(recipe.model, on_progress=on_progress, num_workers=workers)
