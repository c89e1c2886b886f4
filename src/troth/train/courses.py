"""From how the towers learn to the learning rate of each parameter."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

from troth.data.loader import BatchStream
from troth.encoders.contrastive import ContrastiveModel
from troth.encoders.tower_groups import tower_groups
from troth.encoders.tower_training import TowerSide, TowerTraining
from troth.errors import UserError
from troth.train.optimizer import Course, ScheduleConfig


class Scheduled(Protocol):
    """A run's length and schedule, as :class:`~troth.train.config.TrainConfig` has them."""

    def total_steps(self, stream: BatchStream) -> int:
        """Steps of a run on ``stream``."""

    @property
    def schedule(self) -> ScheduleConfig:
        """The learning rate's course."""


def tower_courses(
    model: ContrastiveModel,
    config: Scheduled,
    stream: BatchStream,
    lock_after_steps: Mapping[TowerSide, int] = MappingProxyType({}),
) -> dict[str, Course]:
    """Return the courses of the parameters whose learning rate is another than the run's, by name.

    Args:
        model: knows how its towers learn (``model.towers``).
        config: the run's length and schedule.
        stream: knows how many steps epochs have.
        lock_after_steps: locks a tower after so many steps, whatever its settings say; steps count from 0.
    """
    for side in lock_after_steps:
        if getattr(model.towers, side).lock_after_epochs is not None:
            raise UserError(
                "the episodes lock this tower already",
                where=f"towers.{side}.lock_after_epochs",
                remedy='set it to "none", or episodes.lock_image_from',
            )
    sides = {**dict.fromkeys(lock_after_steps, TowerTraining()), **dict(model.towers.sides())}
    total_steps = config.total_steps(stream)
    courses: dict[str, Course] = {}
    for side, training in sides.items():
        end = lock_after_steps.get(side)
        if end is None and training.lock_after_epochs is not None:
            end = stream.total_steps(training.lock_after_epochs)
            if end > total_steps:
                raise UserError(
                    f"locked after epoch {training.lock_after_epochs}, the tower never is: the run ends before",
                    where=f"towers.{side}.lock_after_epochs",
                    remedy="an earlier epoch, or none",
                )
        groups = tower_groups(model.encoder, side)
        for behind, group in enumerate(reversed(groups)):
            factor = training.learning_rate_factor * training.layer_decay**behind
            course = Course(factor) if end is None else Course(factor, end, config.schedule, total_steps)
            courses.update(dict.fromkeys((f"encoder.{name}" for name in group), course))
    return courses
