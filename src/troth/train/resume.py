"""When a run may begin in a folder, and when it may go on there."""

from __future__ import annotations

import logging
from pathlib import Path

from troth.errors import UserError
from troth.train.checkpoint import Position
from troth.train.runlog import LOG_NAME

logger = logging.getLogger("troth")

#: What a resumed run must have in common with its checkpoint, with the place where the user sets it.
_SAME = {
    "fingerprint": ("data", "the content of the data (or its teacher or judge)"),
    "batch_size": ("train.batch_size", "the batch size"),
    "total_steps": ("train.epochs or train.max_steps", "the number of steps"),
    "seed": ("seed", "the seed"),
    "objective": ("objective", "the objective"),
    "geometry": ("geometry", "the geometry"),
    "episodes": ("episodes", "the episodes (or their external teacher)"),
}


def holds_run(folder: Path) -> bool:
    """Say whether a run has begun in ``folder``."""
    return (folder / "checkpoints").exists() or (folder / LOG_NAME).exists()


def check_can_resume(saved: Position, current: Position, path: Path) -> None:
    """Make sure that the run described by ``current`` is the one that wrote the checkpoint at ``path``.

    What changes the course of the run is refused. What changes only the last bits (how many ranks, threads, which
    device, precision and versions of the libraries) is reported in the log of the program.

    Raises:
        UserError: if it is another run.
    """
    for name, (where, what) in _SAME.items():
        before, now = getattr(saved, name), getattr(current, name)
        if before is not None and before != now:
            raise UserError(
                f"{what} was {_short(name, before)} when {path.name} was written and is {_short(name, now)} now",
                where=where,
                remedy="resume with what the run began with, or start a new run",
            )
    changed = [
        f"{name} {before} -> {now}"
        for name, before, now in (
            ("ranks", saved.world_size, current.world_size),
            ("threads", saved.threads, current.threads),
            *(
                (name, getattr(saved, name), getattr(current, name))
                for name in ("device", "precision")
                if getattr(saved, name) is not None  # checkpoints of earlier versions do not tell
            ),
            *((name, saved.versions.get(name), now) for name, now in current.versions.items()),
        )
        if before != now
    ]
    if changed:
        logger.warning("resuming, but not bit for bit: %s", ", ".join(changed))


def _short(name: str, value: object) -> object:
    return str(value)[:12] if name == "fingerprint" else value
