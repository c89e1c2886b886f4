"""A model, a stream and an objective small enough to train in a test, with all that makes resuming hard."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from troth import distributed
from troth.data.ledger import LedgerEntry
from troth.data.loader import LoadedBatch
from troth.encoders.base import DualEncoder
from troth.encoders.contrastive import ContrastiveModel, ScaleConfig
from troth.geometry import Sphere
from troth.objectives.base import Objective
from troth.objectives.infonce import InfoNCE
from troth.similarity import Pairs
from troth.state import State
from troth.train import OptimizerConfig, ScheduleConfig, TrainConfig, Trainer, TrainResult
from troth.types import Batch

IMAGE_DIM, TEXT_DIM = 12, 10


class SmallEncoder(DualEncoder):
    """Two perceptrons with dropout."""

    embed_dim = 8
    image_size = 1
    preprocessing = tokenization = "none"

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.image_tower = nn.Sequential(
            nn.Linear(IMAGE_DIM, 16), nn.LayerNorm(16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 8)
        )
        self.text_tower = nn.Sequential(nn.Linear(TEXT_DIM, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 8))

    def encode_image(self, image: Tensor) -> Tensor:
        return self.image_tower(image)

    def encode_text(self, text: Tensor) -> Tensor:
        return self.text_tower(text)

    def image_transform(self, train: bool):
        raise AssertionError

    @property
    def tokenize(self):
        raise AssertionError


def small_model(
    *, dropout: float = 0.0, dtype: torch.dtype = torch.float32, bias: bool = False, encoder: DualEncoder | None = None
) -> ContrastiveModel:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        encoder = encoder or SmallEncoder(dropout)
        return ContrastiveModel(encoder, Sphere(), ScaleConfig(), with_bias=bias).to(dtype)


class SmallStream:
    """Features that share a hidden cause, in an order that is a pure function of the epoch."""

    fingerprint = "f" * 64
    plan = None

    def __init__(
        self,
        *,
        num_samples: int = 40,
        batch_size: int = 8,
        dtype: torch.dtype = torch.float32,
        mismatched: int = 0,
        poison: int | None = None,
        seconds: float = 0.0,
        skipped: tuple[LedgerEntry, ...] = (),
    ) -> None:
        draw = torch.Generator().manual_seed(5)
        cause = torch.randn(num_samples, 6, generator=draw, dtype=torch.float64)
        self.image = (cause @ torch.randn(6, IMAGE_DIM, generator=draw, dtype=torch.float64)).to(dtype)
        self.text = (cause @ torch.randn(6, TEXT_DIM, generator=draw, dtype=torch.float64)).to(dtype)
        if poison is not None:
            self.image[poison] = torch.inf
        self.mismatched = torch.arange(num_samples) < mismatched
        self.num_samples, self.batch_size, self.seconds, self.skipped = num_samples, batch_size, seconds, skipped
        self.steps_per_epoch = num_samples // batch_size

    def total_steps(self, epochs: int) -> int:
        return epochs * self.steps_per_epoch

    def indices(self, step: int) -> Tensor:
        epoch, place = divmod(step, self.steps_per_epoch)
        order = torch.randperm(self.num_samples, generator=torch.Generator().manual_seed(epoch))
        return order[place * self.batch_size : (place + 1) * self.batch_size]

    def batches(self, start_step: int, stop_step: int, *, view: int = 0) -> Iterator[LoadedBatch]:
        for step in range(start_step, stop_step):
            index = distributed.own_rows(self.indices(step))
            time.sleep(self.seconds)
            torch.rand(3)  # loaders draw from the global generator as they please
            batch = Batch(index, self.image[index], self.text[index])
            yield LoadedBatch(batch=batch, skipped=self.skipped, mismatched=self.mismatched[index])


@dataclass(frozen=True)
class Remembering(Objective):
    """InfoNCE weighted by a moving average of each pair's loss: weights that depend on State."""

    kind: str = "remembering"
    needs_bias: ClassVar[bool] = False

    def prepare(self, state: State) -> None:
        state.declare("loss")

    def __call__(self, pairs: Pairs, state: State) -> Tensor:
        losses = InfoNCE()(pairs, state)
        state.average("loss", pairs.index, losses, keep=0.7)
        return losses * (1 + state.read("loss", pairs.index)).detach()


@dataclass(frozen=True)
class Copying(Objective):
    """InfoNCE, and a regression of each image's embedding onto its teacher's features."""

    kind: str = "copying"
    needs_bias: ClassVar[bool] = False
    needs_teacher: ClassVar[bool] = True

    def __call__(self, pairs: Pairs, state: State) -> Tensor:
        return InfoNCE()(pairs, state) + (pairs.image - pairs.teacher_image[:, :8].tanh()).square().sum(dim=1)


def small_config(**changes: object) -> TrainConfig:
    values: dict[str, object] = {
        "epochs": 3,
        "batch_size": 8,
        "optimizer": OptimizerConfig(learning_rate=1e-2),
        "schedule": ScheduleConfig(warmup_steps=3),
        "precision": "float32",
        "device": "cpu",
        "log_every": 1,
        "tensorboard": False,
    }
    return TrainConfig(**{**values, **changes})


class _BreakingOff(SmallStream):
    """A stream that ends with an error after ``stop`` steps."""

    stop = 0

    def batches(self, start_step: int, stop_step: int, *, view: int = 0) -> Iterator[LoadedBatch]:
        yield from super().batches(start_step, self.stop)
        raise InterruptedError


def train(
    folder: Path, *, resume: bool = False, seconds: float = 0.0, batch_size: int = 8, stop: int | None = None
) -> TrainResult:
    """Make (or finish) the run that the tests of resuming share: dropout, per-pair memory, checkpoints on the way."""
    stream = (SmallStream if stop is None else _BreakingOff)(seconds=seconds, batch_size=batch_size)
    if isinstance(stream, _BreakingOff):
        stream.stop = stop
    trainer = Trainer(
        small_model(dropout=0.3),
        Remembering(),
        stream,
        config=small_config(batch_size=batch_size, checkpoint_every_steps=4, evaluate_every_epochs=100),
        folder=folder,
        seed=11,
        progress=False,
    )
    return trainer.run(resume=resume)


def trainer(folder: Path, *, model: ContrastiveModel | None = None, stream: SmallStream | None = None, **arguments):
    stream = stream or SmallStream()
    config = small_config(batch_size=stream.batch_size, **arguments.pop("config", {}))
    model = model or small_model()
    objective = arguments.pop("objective", InfoNCE())
    return Trainer(model, objective, stream, config=config, folder=folder, progress=False, **arguments)


def without_clock(records: list[dict]) -> list[dict]:
    return [{name: value for name, value in record.items() if name != "samples_per_second"} for record in records]
