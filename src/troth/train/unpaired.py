"""Training in two stages: on pairs, then on images and captions that come without."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import torch

from troth.data.unpaired import UnpairedStream
from troth.encoders.contrastive import ContrastiveModel
from troth.errors import UserError
from troth.objectives.base import Objective
from troth.train.detection import Detection, UnpairedConfig
from troth.train.loop import Trainer


class UnpairedTrainer(Trainer):
    """A :class:`~troth.train.loop.Trainer` whose run has a second stage, on unpaired images and captions.

    A frozen judge is the companion ``judge`` of every checkpoint, and the metric's value that it stands for is the
    state's ``unpaired/best``. It is replaced before a step, never after an evaluation: all that this follows from (the
    step, the last evaluation, weights, the state) is in the checkpoint of that step, so that a run that ends in between
    does the same when it is resumed.

    Args:
        model: what learns.
        objective: of the pairs.
        stream: both stages.
        unpaired: how the second stage learns.
        **arguments: as :class:`~troth.train.loop.Trainer`'s.

    Raises:
        UserError: as the Trainer, or if the judge is to follow a metric and nothing is evaluated.
    """

    stream: UnpairedStream

    def __init__(
        self,
        model: ContrastiveModel,
        objective: Objective,
        stream: UnpairedStream,
        unpaired: UnpairedConfig,
        **arguments: Any,
    ) -> None:
        super().__init__(model, objective, stream, **arguments)
        if unpaired.refresh_metric is not None and self.evaluate is None:
            raise UserError(
                "the judge follows a metric and nothing is evaluated",
                where="unpaired.refresh_metric",
                remedy='name a task, or set it to "none"',
            )
        self.unpaired = unpaired
        self._objective_steps = stream.steps_with_pairs
        make_step = self._make_step
        make_step.detection = Detection(
            unpaired, model, micro_batch_size=make_step.micro_batch_size, precision=make_step.precision
        )
        self._judge = make_step.detection.judge
        if self._judge is not None:
            self._companions["judge"] = self._judge
        self._memory = self.state.scope("unpaired")
        self._memory.declare_value("best", torch.tensor(math.nan, dtype=torch.float64))
        # What is minimised must be the same when the run is resumed; where the data lie may change.
        settings = {item.name: getattr(unpaired, item.name) for item in fields(unpaired)}
        settings = {name: value for name, value in settings.items() if name not in ("images", "texts")}
        self._position = replace(self._position, objective=f"{objective!r}, then unpaired {settings!r}")

    def _before_step(self, step: int) -> None:
        """Make the judge a copy of the model where the second stage begins, and where the metric has grown enough.

        The copy is of what is evaluated: of the average of the weights if one is kept.
        """
        begins = step == self.stream.paired_steps
        if self._judge is None or step < self.stream.paired_steps:
            return
        name, position = self.unpaired.refresh_metric, self._position
        value, best = math.nan, float(self._memory.value("best"))
        if name is not None and position.evaluated_step == step:
            if name not in position.metrics:
                raise UserError(
                    f"the evaluation has no metric {name!r}",
                    where="unpaired.refresh_metric",
                    remedy=f"one of: {', '.join(position.metrics)}",
                )
            value = position.metrics[name]
        if begins or value > best * self.unpaired.refresh_factor:
            average = self._make_step.average
            self._judge.load_state_dict((self.model if average is None else average.module).state_dict())
            self._memory.set_value("best", torch.tensor(value, dtype=torch.float64))

    def _epochs_complete(self, done: int) -> int:
        return self.stream.epochs_complete(done)[0]

    def _is_due(self, done: int) -> bool:
        """Say whether ``done`` steps end with an evaluation: the last of each stage do, and whole epochs between."""
        if done in (self.stream.paired_steps, self.total_steps):
            return True
        epochs, ended = self.stream.epochs_complete(done)
        return done > 0 and ended and epochs % self.config.evaluate_every_epochs == 0

    def _learning_rate(self, step: int) -> float:
        """Return the learning rate of the stage that ``step`` belongs to, each with a course of its own."""
        highest, schedule, border = self.config.optimizer.learning_rate, self.config.schedule, self.stream.paired_steps
        if step < border:
            return highest * schedule.factor(step, border)
        return highest * self.unpaired.learning_rate_factor * schedule.factor(step - border, self.total_steps - border)
