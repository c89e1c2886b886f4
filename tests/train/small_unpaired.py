"""A run in two stages, small enough for a test: five steps an epoch on pairs, then five on images and captions."""

from collections.abc import Iterator
from pathlib import Path

import torch

from tests.data.planted import caption_source
from tests.train.small import SmallStream, small_config, small_model
from troth import distributed
from troth.data import DetectionTruth, EmbeddedSource, LoadedBatch, UnpairedPlans, UnpairedStream
from troth.objectives.infonce import InfoNCE
from troth.train import UnpairedConfig, UnpairedTrainer
from troth.types import Batch

#: How many steps the first stage of :func:`trainer` has, and the whole run.
BORDER, TOTAL = 10, 25
METRIC = "validation/mean_recall"

#: Both published variants, and one with pairs in every batch. Their sources are never opened.
VARIANTS: dict[str, dict] = {
    "top": {"matching": "top"},
    "argmax": {"matching": "argmax", "judge": "best", "refresh_metric": METRIC},
    "mutual, with pairs": {"matching": "mutual", "judge": "best", "refresh_metric": METRIC, "paired_weight": 0.5},
}

#: The metric after each epoch: the judge follows the third epoch's and the fifth's, not the fourth's.
METRICS = {1: 0.9, 2: 0.2, 3: 0.3, 4: 0.31, 5: 0.5}


class UnmatchedStream(SmallStream):
    """The features of :class:`SmallStream`, captions in an order of their own."""

    plans = UnpairedPlans.draw(40, 40, 8, seed=7)

    def batches(self, start_step: int, stop_step: int, *, view: int = 0) -> Iterator[LoadedBatch]:
        for step in range(start_step, stop_step):
            images, texts = (
                distributed.own_rows(torch.from_numpy(plan.indices(step)))
                for plan in (self.plans.images, self.plans.texts)
            )
            batch = Batch(images, self.image[images], self.text[texts])
            yield LoadedBatch(batch, (), torch.zeros(len(images), dtype=torch.bool))


def two_stages(*, with_pairs: bool = False, captions: str = "caption", poison: int | None = None, **arguments):
    source = caption_source([[f"caption {number}"] for number in range(40)])
    other = caption_source([[f"{captions} {number}"] for number in range(40)])
    return UnpairedStream(
        SmallStream(**arguments),
        UnmatchedStream(poison=poison, **arguments),
        UnmatchedStream.plans,
        DetectionTruth(other, source, "caption"),
        paired_epochs=2,
        epochs=3,
        with_pairs=with_pairs,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )


def config_of(**settings) -> UnpairedConfig:
    return UnpairedConfig(images=EmbeddedSource(), texts=EmbeddedSource(), batch_size=8, epochs=3, **settings)


def trainer(folder: Path, *, variant: str = "top", stream: UnpairedStream | None = None, **arguments):
    unpaired = config_of(**{**VARIANTS[variant], **arguments.pop("unpaired", {})})
    config = small_config(epochs=2, **{"checkpoint_every_steps": 3, **arguments.pop("config", {})})
    stream = stream or two_stages(with_pairs=unpaired.paired_weight > 0)
    arguments.setdefault("evaluate", lambda model, epoch: {METRIC: METRICS[epoch]})
    model = arguments.pop("model", None) or small_model(dropout=0.2)
    objective = arguments.pop("objective", InfoNCE())
    return UnpairedTrainer(
        model, objective, stream, unpaired, config=config, folder=folder, progress=False, **arguments
    )
