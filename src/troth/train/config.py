"""How a model is trained, as a recipe says it, and the maker of its steps."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from troth.data.loader import BatchStream
from troth.encoders.contrastive import ContrastiveModel
from troth.encoders.tower_training import TowerSide
from troth.objectives.base import Objective
from troth.state import State
from troth.train.average import AverageConfig
from troth.train.courses import tower_courses
from troth.train.episodes import Episodes
from troth.train.hardware import Precision, resolve_device, resolve_precision
from troth.train.optimizer import OptimizerConfig, ScheduleConfig
from troth.train.step import TrainStep
from troth.types import STRICT


@dataclass(frozen=True, config=STRICT)
class TrainConfig:
    """How a model is trained.

    Attributes:
        epochs: passes over the data.
        max_steps: steps after which the run ends if its epochs have more; schedules are then that long. None: no limit.
        batch_size: pairs of a step, over all ranks.
        micro_batch_size: rows the towers take at once on each rank; None: all of the rank's rows. Smaller needs less
            memory and gives the same gradients, at the price of a second forward pass.
        optimizer: AdamW and the clipping of gradients.
        schedule: the learning rate's course.
        average: an average of the weights, which is then what is evaluated and exported; None for none.
        precision: what the towers compute in. ``auto``: bfloat16 where the hardware is fast in it, else float32.
        channels_last: keep pictures and convolutions in channels-last layout, which convolutional towers like.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ...
        num_workers: processes that load pictures, on each rank; 0: the training process itself.
        log_every: steps between two lines of the log.
        evaluate_every_epochs: epochs between two evaluations; the end of the run is always evaluated.
        checkpoint_every_steps: steps between two checkpoints; None: only where an epoch ends with an evaluation.
        keep_last: how many of the newest checkpoints stay, beside the best.
        tensorboard: write TensorBoard events too, if TensorBoard is installed.
    """

    epochs: Annotated[int, Field(gt=0)] = 10
    max_steps: Annotated[int, Field(gt=0)] | None = None
    batch_size: Annotated[int, Field(gt=1)] = 256
    micro_batch_size: Annotated[int, Field(gt=0)] | None = None
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    average: AverageConfig | None = None
    precision: Precision = "auto"
    channels_last: bool = False
    device: str = "auto"
    num_workers: Annotated[int, Field(ge=0)] = 0
    log_every: Annotated[int, Field(gt=0)] = 10
    evaluate_every_epochs: Annotated[int, Field(gt=0)] = 1
    checkpoint_every_steps: Annotated[int, Field(gt=0)] | None = None
    keep_last: Annotated[int, Field(gt=0)] = 2
    tensorboard: bool = True

    def total_steps(self, stream: BatchStream) -> int:
        """Return how many steps a run on ``stream`` has."""
        steps = stream.total_steps(self.epochs)
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def step_maker(
        self,
        model: ContrastiveModel,
        objective: Objective,
        state: State,
        seed: int,
        stream: BatchStream | None = None,
        episodes: Episodes | None = None,
    ) -> TrainStep:
        """Move ``model`` to its device and return what trains it, with a new optimiser; ``stream`` counts its steps."""
        device = resolve_device(self.device)
        model.to(device)
        lock_step = None if episodes is None else episodes.lock_step
        locks: dict[TowerSide, int] = {} if lock_step is None else {"image": lock_step}
        if self.channels_last:
            model.to(memory_format=torch.channels_last)
        return TrainStep(
            model,
            objective,
            state,
            self.optimizer.build(model, {} if stream is None else tower_courses(model, self, stream, locks)),
            seed=seed,
            gradient_clip=self.optimizer.gradient_clip,
            micro_batch_size=self.micro_batch_size,
            precision=resolve_precision(self.precision, device),
            channels_last=self.channels_last,
            episodes=episodes,
            average=self.average,
        )
