"""A small run in episodes: its stream, its model, its episodes."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from tests.train.small import SmallStream, small_config, small_model
from troth.clustering import KMeans
from troth.data import EpisodePlan, LoadedBatch
from troth.encoders import ContrastiveModel
from troth.encoders.prototype_heads import ProjectionConfig
from troth.objectives import ExternalPrototypes, InfoNCE, Objective, Prototypes, Sum
from troth.train import Episodes, EpisodesConfig, Trainer
from troth.train.external_teacher import ExternalFeatures

#: Five steps an episode, ten prototypes; the first episode learns pairs alone, and so does the fifth.
CONFIG = EpisodesConfig(
    size=43,
    images_per_prototype=4,
    kmeans=KMeans(iterations=5),
    warmup_episodes=1,
    lock_image_from=5,
    projection=ProjectionConfig(hidden_dim=16, dim=6),
)
PLAN = CONFIG.plan(num_samples=40, batch_size=8, seed=11)

#: Everything that an episode may be asked for.
BOTH = Sum(((1.0, InfoNCE()), (1.0, Prototypes(target_temperature=0.1)), (0.5, ExternalPrototypes())))


class EpisodicStream(SmallStream):
    """The small stream in the order of a plan; another view of a sample is another picture and another caption."""

    def __init__(self, plan: EpisodePlan = PLAN, **options: object) -> None:
        super().__init__(num_samples=plan.num_samples, batch_size=plan.batch_size, **options)
        self.plan = plan
        self.steps_per_epoch = plan.steps_per_epoch

    def total_steps(self, epochs: int) -> int:
        return self.plan.total_steps(epochs)

    def indices(self, step: int) -> Tensor:
        return torch.from_numpy(self.plan.indices(step))

    def batches(self, start_step: int, stop_step: int, *, view: int = 0) -> Iterator[LoadedBatch]:
        for loaded in super().batches(start_step, stop_step):
            batch = loaded.batch
            image, text = (x + 0.2 * view * x.roll(1, dims=1) for x in (batch.image, batch.text))
            yield replace(loaded, batch=replace(batch, image=image, text=text))


def episodic_model(*, dropout: float = 0.0, dtype: torch.dtype = torch.float32) -> ContrastiveModel:
    model = small_model(dropout=dropout)
    model.prototype_heads = CONFIG.projection.build(model.encoder.embed_dim, seed=2)
    return model.to(dtype)


def teachers_features() -> Tensor:
    """A frozen teacher's features by sample id: the captions', the other way round."""
    return -SmallStream().text[:, :7]


def episodes(config: EpisodesConfig = CONFIG, plan: EpisodePlan = PLAN, **options: object) -> Episodes:
    return Episodes(config, plan, ExternalFeatures(teachers_features(), "teacher a"), **options)


def trainer(
    folder: Path,
    *,
    model: ContrastiveModel | None = None,
    stream: SmallStream | None = None,
    objective: Objective = BOTH,
    made: Episodes | None = None,
    **config: object,
) -> Trainer:
    """A run of six episodes, of five steps each."""
    return Trainer(
        model or episodic_model(),
        objective,
        stream or EpisodicStream(),
        config=small_config(**{"epochs": 6, "evaluate_every_epochs": 100, **config}),
        folder=folder,
        seed=11,
        episodes=made or episodes(),
        progress=False,
    )
