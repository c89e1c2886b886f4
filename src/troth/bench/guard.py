"""What a process that trains may not read: the answers, and the pairs as they were before captions were moved."""

from __future__ import annotations

import errno
import multiprocessing
import os
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import get_args

from troth.bench.settings import ANSWERS, ORACLE
from troth.data import EmbeddedSource
from troth.data.embedded_source import EmbeddedSplit

#: Audit events of Python whose first arguments are paths that are read, or given another name.
_EVENTS = frozenset(("open", "os.listdir", "os.scandir", "os.rename", "os.link", "os.symlink"))
_MESSAGE = "kept from training, which must not know which pairs are wrong"


def forbidden(root: Path, *, right: bool = False) -> tuple[str, ...]:
    """Return the folders and files that a training in the yardstick's folder ``root`` must not read.

    These are the answers, the embedded shards of every split (the training's own captions, and the tests), and what
    the cache keeps of them.

    Args:
        root: the folder.
        right: whether the training is an oracle's, which may read the right pairs.
    """
    folders = [root / ANSWERS] if right else [root / ANSWERS, root / ORACLE]
    files = [path for split in get_args(EmbeddedSplit) for path in EmbeddedSource(split=split).files()]
    return tuple(os.path.realpath(path) for path in (*folders, *files))


def install(paths: Iterable[str]) -> None:
    """From now on, and to the end of this process, refuse to open ``paths`` and whatever lies under them.

    Processes that this one forks are bound too. It guards against mistakes, of a method or of this yardstick, not
    against malice: what libraries open without Python (mapped Arrow files, safetensors) is not seen.

    Args:
        paths: absolute, without symbolic links.
    """
    kept = tuple(paths)
    under = tuple(path + os.sep for path in kept)

    def refuse(event: str, arguments: tuple[object, ...]) -> None:
        if event not in _EVENTS:
            return
        for argument in arguments[:2]:
            if isinstance(argument, str | bytes | os.PathLike):
                path = os.path.realpath(os.fsdecode(argument))
                if path in kept or path.startswith(under):
                    raise PermissionError(errno.EACCES, _MESSAGE, path)

    sys.addaudithook(refuse)


def guarded_worker(paths: tuple[str, ...]) -> None:
    """Begin a worker process that trains on one thread, under the guard."""
    plain_worker()
    install(paths)


def plain_worker() -> None:
    """Begin a worker process that computes on one thread, and ends when the process that started it has ended."""
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(1)
    threadpool_limits(1)  # those of NumPy, SciPy and scikit-learn that are there already
    os.environ["OMP_NUM_THREADS"] = "1"  # and those that are loaded later
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Wait for the parent's end, however it came, and end: a pool whose parent was killed would wait for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
