"""What a person at a terminal sees of a run."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class ProgressBar:
    """A bar with steps, loss, throughput and the time left; silent where there is no terminal.

    Args:
        total_steps: how many steps the whole run has.
        done: how many were made before (resume).
        shown: False to be silent in any case (other ranks, tests, pipes).
        console: where to draw; None: standard error.
    """

    def __init__(self, total_steps: int, *, done: int = 0, shown: bool = True, console: Console | None = None) -> None:
        console = console or Console(stderr=True)
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not (shown and console.is_terminal),
        )
        self._task: TaskID = self._progress.add_task("training", total=total_steps, completed=done, status="")

    def update(self, step: int, *, epoch: int, status: str | None = None) -> None:
        """Show that ``step`` steps are done, the last in epoch ``epoch`` (from 1).

        ``status``, if given, replaces the text beside the bar.
        """
        self._progress.update(self._task, completed=step, description=f"epoch {epoch}")
        if status is not None:
            self._progress.update(self._task, status=status)

    def __enter__(self) -> ProgressBar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()


class Meter:
    """Throughput since the last reading, leaving out the time that was not training."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._samples = 0
        self._paused_at: float | None = None

    def count(self, samples: int) -> None:
        """Note that ``samples`` more samples were trained on."""
        self._samples += samples

    def read(self) -> float:
        """Return the samples a second since the last reading, and begin anew."""
        now = time.perf_counter()
        rate = self._samples / max(now - self._started, 1e-9)
        self._started, self._samples = now, 0
        return rate

    def __enter__(self) -> Meter:
        """Stop the clock: an evaluation or a checkpoint begins."""
        self._paused_at = time.perf_counter()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._paused_at is not None:
            self._started += time.perf_counter() - self._paused_at
        self._paused_at = None
