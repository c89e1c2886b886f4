"""The training loop."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NoReturn

import torch
from torch import nn

from troth import distributed
from troth.data.ledger import Ledger
from troth.data.loader import BatchStream, LoadedBatch
from troth.encoders.contrastive import ContrastiveModel
from troth.errors import NonFiniteLossError, UserError
from troth.objectives.base import Objective
from troth.state import Clock, State
from troth.train.average import AVERAGE_NAME
from troth.train.checkpoint import Checkpoints, Position, load, read_position
from troth.train.config import TrainConfig
from troth.train.episodes import Episodes
from troth.train.hardware import describe_device, describe_precision
from troth.train.progress import Meter, ProgressBar
from troth.train.randomness import seed_step
from troth.train.resume import check_can_resume, holds_run
from troth.train.runlog import RunLog
from troth.train.step import NonFiniteStepError, StepReport, rows_of

#: Scores a model, in evaluation mode and without gradients: ``(model, epochs complete) -> {metric: value}``.
Evaluate = Callable[[ContrastiveModel, int], dict[str, float]]

#: Samples that training could not use, in the run's folder.
LEDGER_NAME = "ledger.jsonl"


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
        step: the last step.
        metrics: the last evaluation.
        best_step: the step whose evaluation was best, if one was asked for.
        best_value: its value of the deciding metric.
        checkpoint: the last checkpoint.
        seconds: wall time of this process's part of the run.
    """

    step: int
    metrics: dict[str, float]
    best_step: int | None
    best_value: float | None
    checkpoint: Path
    seconds: float


class Trainer:
    """Trains one model on one stream of pairs, in one folder.

    With several ranks every rank makes its own Trainer, with the same arguments; :func:`troth.distributed.initialise`
    comes first. Random draws of the towers are seeded from ``(seed, step, rank)`` at every step: the global generators
    of torch, numpy and Python are the Trainer's while it runs.

    Args:
        model: what learns. It is changed in place.
        objective: gives one loss a pair.
        stream: this rank's rows of every batch.
        config: how.
        folder: where log, checkpoints and ledger go.
        seed: the run's seed.
        state: what is remembered about each pair; None: a new one for the stream's data.
        evaluate: scores the model. Called on rank 0 only, so it must not talk to the other ranks. The checkpoint is
            written first: an error here costs no step, and resuming evaluates again.
        best_metric: the name of the evaluation's metric (larger is better) whose best checkpoint is kept.
        episodes: trains in episodes and learns from their clusters, if given; ``stream`` follows the same plan.
        ledger: samples that could not be used, those of the indexing included; grows as batches skip more.
        progress: show a progress bar if there is a terminal.
    """

    def __init__(
        self,
        model: ContrastiveModel,
        objective: Objective,
        stream: BatchStream,
        *,
        config: TrainConfig,
        folder: Path | str,
        seed: int = 0,
        state: State | None = None,
        evaluate: Evaluate | None = None,
        best_metric: str | None = None,
        episodes: Episodes | None = None,
        ledger: Ledger | None = None,
        progress: bool = True,
    ) -> None:
        if stream.steps_per_epoch < 1:
            raise UserError(
                f"a batch of {stream.batch_size} is larger than the data set of {stream.num_samples} pairs",
                where="train.batch_size",
                remedy=f"use at most {stream.num_samples}",
            )
        assert config.batch_size == stream.batch_size, (config.batch_size, stream.batch_size)
        self.model = model
        self.stream = stream
        self.config = config
        self.folder = Path(folder)
        self.seed = seed
        self.state = state if state is not None else State(stream.num_samples, stream.fingerprint)
        self.evaluate = evaluate
        self.best_metric = best_metric
        self.ledger = ledger if ledger is not None else Ledger()
        self.progress = progress
        self.checkpoints = Checkpoints(self.folder / "checkpoints", keep_last=config.keep_last)
        self.total_steps = config.total_steps(stream)
        #: How many steps the objective's schedules have.
        self._objective_steps = self.total_steps
        self._objective = objective
        self._episodes = episodes
        #: Models beside the one that learns whose weights a resumed run needs, by name.
        self._companions: dict[str, nn.Module] = {}
        self._make_step = config.step_maker(model, objective, self.state, seed, stream, episodes)
        if self._make_step.average is not None:
            self._companions[AVERAGE_NAME] = self._make_step.average
        self._position = Position(
            0,
            0,
            self.total_steps,
            stream.batch_size,
            seed,
            stream.fingerprint,
            device=describe_device(next(model.parameters()).device),
            precision=describe_precision(self._make_step.precision),
            objective=repr(objective),
            geometry=repr(model.geometry),
            episodes="none" if episodes is None else episodes.identity,
        )

    def run(self, *, resume: bool = False) -> TrainResult:
        """Train to the end, from the newest checkpoint if ``resume``, and return how it ended.

        Raises:
            UserError: if the folder holds a run already and ``resume`` is False, or holds one that does not fit.
            NonFiniteLossError: if a loss or gradient is not finite. The weights before that step, the optimiser, the
                state and the ids of the batch's samples are saved first, beside the checkpoints.
        """
        started = time.monotonic()
        start = self._begin(resume)
        self.model.train()
        main = distributed.is_main()
        with ProgressBar(self.total_steps, done=start, shown=self.progress and main) as bar:
            log = None
            if main:
                log = RunLog(
                    self.folder,
                    after_step=start,
                    evaluated=not self._evaluation_is_owed(),
                    tensorboard=self.config.tensorboard,
                )
            try:
                if self._evaluation_is_owed():  # the run ended between a checkpoint and its evaluation
                    self._run_evaluation(log)
                self._train(start, log, bar)
            finally:
                if log is not None:
                    log.close()
        end = self._position
        return TrainResult(
            step=end.step,
            metrics=end.metrics,
            best_step=end.best_step,
            best_value=end.best_value,
            checkpoint=self.checkpoints.path(end.step),
            seconds=time.monotonic() - started,
        )

    def _begin(self, resume: bool) -> int:
        """Go to the newest checkpoint, or make sure that there is nothing to overwrite; return the steps done."""
        if distributed.is_main():
            self.folder.mkdir(parents=True, exist_ok=True)
        if not resume and distributed.broadcast_object(holds_run(self.folder)):
            raise UserError(
                "this folder holds a run already",
                where=str(self.folder),
                remedy="resume it, or choose another folder",
            )
        if self._episodes is not None:
            self._episodes.declare(self.state)
        path = self.checkpoints.latest() if resume else None
        if path is not None:
            current = self._position
            check_can_resume(read_position(path), current, path)
            saved = load(path, self.model, self._make_step.optimizer, self.state, self._companions)
            self._position = saved.made_with(current)
        self._objective.prepare(self.state)
        if resume and (self.folder / LEDGER_NAME).exists():
            self.ledger.extend(Ledger.read(self.folder / LEDGER_NAME))
        self._write_ledger()
        return self._position.step

    def _train(self, start: int, log: RunLog | None, bar: ProgressBar) -> None:
        meter = Meter()
        for step, loaded in enumerate(self.stream.batches(start, self.total_steps), start=start):
            self._begin_episode(step, meter)
            learning_rate = self._learning_rate(step)
            self.state.clock = Clock(self.seed, step, self.stream.steps_per_epoch, self._objective_steps)
            self._before_step(step)
            try:
                report = self._make_step(loaded, step, learning_rate)
            except NonFiniteStepError as error:
                self._stop(error, loaded, log)
            self.ledger.extend(loaded.skipped)
            meter.count(len(loaded.batch) * distributed.world_size())
            done = step + 1
            self._position = replace(self._position, step=done, epoch=self._epochs_complete(done))
            if done == 1 or done == self.total_steps or done % self.config.log_every == 0:
                self._log_step(report, learning_rate, meter.read(), log, bar)
            bar.update(done, epoch=self._epoch(done))
            self._end_episode(done, log)
            with meter:
                self._after_step(done, log)

    def _begin_episode(self, step: int, meter: Meter) -> None:
        """Make the prototypes of the episode that ``step`` begins, if it begins one."""
        if self._episodes is None:
            return
        with meter:
            skipped = self._episodes.begin(
                step,
                self.stream,
                self.model,
                self.state,
                self._make_step.precision,
                self._make_step.micro_batch_size,
            )
        self.ledger.extend(skipped)

    def _end_episode(self, done: int, log: RunLog | None) -> None:
        """Log how long each phase took of the episode that ``done`` steps complete, if they complete one."""
        report = None if self._episodes is None else self._episodes.end(done)
        if report is not None and log is not None:
            log.write("episode", done, **asdict(report))

    def _before_step(self, step: int) -> None:
        """Do what a stage needs before step ``step``: nothing here."""

    def _after_step(self, done: int, log: RunLog | None) -> None:
        """Save and evaluate where it is time to, in this order: no error of the evaluation can lose the steps."""
        every = self.config.checkpoint_every_steps
        if self._is_due(done) or (every is not None and done % every == 0):
            if log is not None:
                log.sync()
            self._write_ledger()
            self.checkpoints.save(self._position, self.model, self._make_step.optimizer, self.state, self._companions)
        if self._evaluation_is_owed():
            self._run_evaluation(log)

    def _is_due(self, done: int) -> bool:
        """Say whether ``done`` steps end with an evaluation."""
        every: int = self.config.evaluate_every_epochs * self.stream.steps_per_epoch
        return done == self.total_steps or (done > 0 and done % every == 0)

    def _evaluation_is_owed(self) -> bool:
        """Say whether an evaluation of the model as it is now is due and has not come to its end."""
        step = self._position.step
        return self.evaluate is not None and self._is_due(step) and self._position.evaluated_step != step

    def _run_evaluation(self, log: RunLog | None) -> None:
        """Evaluate, and tell the log and the checkpoint, which has been written, what came of it.

        The log comes first. A run that ends in between has a line of an evaluation that its checkpoint does not know:
        resuming takes it out (``evaluated`` of :class:`RunLog`) and evaluates again, with the same draws.
        """
        assert self.evaluate is not None
        seed_step(self.seed, self._position.step, distributed.rank())
        metrics: dict[str, float] = {}
        if distributed.is_main():
            average = self._make_step.average
            model = self.model if average is None else average.module
            model.eval()
            with torch.no_grad():
                metrics = self.evaluate(model, self._position.epoch)
            self.model.train()
        metrics = distributed.broadcast_object(metrics)
        self._position = replace(self._position, metrics=metrics, evaluated_step=self._position.step)
        if self.best_metric is not None:
            self._note_best(metrics, self.best_metric)
        if log is not None:
            log.write("evaluate", self._position.step, epoch=self._epoch(self._position.step), **metrics)
            log.sync()
        self.checkpoints.rewrite_position(self._position)

    def _note_best(self, metrics: dict[str, float], name: str) -> None:
        if name not in metrics:
            raise UserError(
                f"the evaluation has no metric {name!r}",
                where="evaluation.best",
                remedy=f"one of: {', '.join(metrics)}",
            )
        best, value = self._position.best_value, metrics[name]
        if math.isfinite(value) and (best is None or value > best):
            self._position = replace(self._position, best_value=value, best_step=self._position.step)

    def _log_step(
        self, report: StepReport, learning_rate: float, rate: float, log: RunLog | None, bar: ProgressBar
    ) -> None:
        if log is None:
            return
        step, bias = self._position.step, self.model.bias
        values = {name: value for name, value in asdict(report).items() if value is not None and name != "notes"}
        log.write(
            "train",
            step,
            epoch=self._epoch(step),
            **values,
            **report.notes,
            learning_rate=learning_rate,
            scale=float(self.model.scale.detach()),
            **({} if bias is None else {"bias": float(bias.detach())}),
            samples_per_second=rate,
        )
        bar.update(step, epoch=self._epoch(step), status=f"loss {report.loss:.4f} · {rate:,.0f} pairs/s")

    def _stop(self, error: NonFiniteStepError, loaded: LoadedBatch, log: RunLog | None) -> NoReturn:
        """Save everything about a step that went wrong, and end the run."""
        number = self._position.step + 1
        rows = rows_of(loaded.batch, error.losses)
        folder = self.checkpoints.save(
            self._position,
            self.model,
            self._make_step.optimizer,
            self.state,
            self._companions,
            name=f"non-finite-step-{number:08d}",
        )
        path = folder / "batch.json"
        if log is not None:
            record = {"step": number, "what": error.what, "pairs": rows}
            path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            log.write("non-finite", number, epoch=self._epoch(number), what=error.what)
        broken = sum(row["loss"] is None for row in rows)
        raise NonFiniteLossError(
            f"the {error.what} of step {number} is not finite ({broken} of {len(rows)} pair losses are not); weights "
            f"and optimiser before the step are in {folder}, the batch's sample ids in {path}. Likely remedies: "
            'a lower learning rate or a longer warm-up, gradient_clip, precision "float32", a lower cap of the scale, '
            "or mending the pairs whose loss is null there"
        ) from error

    def _write_ledger(self) -> None:
        """Bring together what all ranks skipped, and write it."""
        for entries in distributed.all_gather_objects(tuple(self.ledger)):
            self.ledger.extend(entries)
        if distributed.is_main():
            self.ledger.write(self.folder / LEDGER_NAME)

    def _learning_rate(self, step: int) -> float:
        return self.config.optimizer.learning_rate * self.config.schedule.factor(step, self.total_steps)

    def _epochs_complete(self, done: int) -> int:
        return done // self.stream.steps_per_epoch

    def _epoch(self, done: int) -> int:
        """Return the number, from 1, of the epoch that the last of ``done`` steps belongs to."""
        return self._epochs_complete(max(done, 1) - 1) + 1
