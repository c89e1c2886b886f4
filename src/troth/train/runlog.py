"""What a run writes down as it goes: ``log.jsonl``, and TensorBoard if it is installed."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

#: The log's name in a run's folder.
LOG_NAME = "log.jsonl"


class RunLog:
    """One JSON object a line, each with ``event`` and ``step``, flushed line by line.

    ``step`` counts the optimiser's steps made so far. Events of training: ``"train"`` and ``"evaluate"``. A number that
    is not finite is written as ``null``: JSON has no other way to say it.

    Args:
        folder: the run's folder; the log continues what is there.
        after_step: what the run resumes from. Lines of later steps were written by a process that was killed before
            its next checkpoint; they are cut off, since these steps come again.
        evaluated: whether the evaluation at ``after_step``, if one is due there, is done; if not, its line is cut off
            too, since it comes again.
        tensorboard: also write TensorBoard events under ``folder/tensorboard``, if TensorBoard is installed.
    """

    def __init__(self, folder: Path, *, after_step: int = 0, evaluated: bool = True, tensorboard: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / LOG_NAME
        _cut_back(path, after_step, evaluated)
        self._file = path.open("a", encoding="utf-8")
        self._board = _summary_writer(folder / "tensorboard", after_step) if tensorboard else None

    def write(self, event: str, step: int, **values: Any) -> None:
        """Write one line; plain numbers also go to TensorBoard, as ``event/name``."""
        record = {"event": event, "step": step, **{name: _finite(value) for name, value in values.items()}}
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, int | float) and not isinstance(value, bool):
                    self._board.add_scalar(f"{event}/{name}", value, step)

    def sync(self) -> None:
        """Bring every line to the disk, so that no checkpoint is ahead of the log that leads to it."""
        self._file.flush()
        os.fsync(self._file.fileno())
        if self._board is not None:
            self._board.flush()

    def close(self) -> None:
        """Write what is left and close the files."""
        self.sync()
        self._file.close()
        if self._board is not None:
            self._board.close()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def read_log(folder: Path, event: str | None = None) -> list[dict[str, Any]]:
    """Return the records of a run's log in order, or only those of one ``event``.

    Lines that are not whole (the last one of a run that was killed, say) are left out.
    """
    records = [record for _, record in _records(folder / LOG_NAME)]
    return [record for record in records if event is None or record.get("event") == event]


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and line.endswith("\n"):
                yield line, record


def _cut_back(path: Path, after_step: int, evaluated: bool) -> None:
    """Leave in the log at ``path`` only what happened up to ``after_step``, its evaluation only if ``evaluated``."""
    if not path.exists():
        return
    kept, step = [], 0
    for line, record in _records(path):
        if isinstance(record.get("step"), int):
            step = record["step"]  # a record without a step goes with the one before it
        again = step > after_step or (step == after_step and not evaluated and record.get("event") == "evaluate")
        if after_step > 0 and not again:
            kept.append(line)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.writelines(kept)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {name: _finite(part) for name, part in value.items()}
    return value


def _summary_writer(folder: Path, after_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=after_step + 1)
