"""Run once for test_kill.py and test_ranks.py: trains in child processes, kills some, resumes, and reports.

The children are forked from this process, which has imported everything once and computed nothing.
"""

import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch._dynamo  # else every child imports it at its first optimiser step, for seconds

from tests.train.small import train
from troth import distributed
from troth.train import read_log

#: Checkpoints are written at steps 4, 8, 12 and the end, 15.
KILL_AT = (2, 6, 11)


def fork(run: Callable[[], object]) -> int:
    """Start ``run`` in a process of its own and return its id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            run()
            code = 0
        finally:
            os._exit(code)
    return child


def ended(child: int) -> int:
    """Wait for a child; return its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_when(child: int, ready: Callable[[], bool]) -> int:
    """Kill a child, with no chance to clean up, as soon as ``ready``."""
    deadline = time.monotonic() + 30
    while not ready() and time.monotonic() < deadline:
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    return ended(child)


def last_step(folder: Path) -> int:
    """Return the last step that the log of ``folder`` tells of."""
    records = read_log(folder) if folder.is_dir() else []
    return records[-1]["step"] if records else 0


def kill_and_resume(root: Path) -> dict[str, dict[str, int]]:
    """Make an uninterrupted run and some that are killed and resumed; return how their processes ended."""
    assert ended(fork(lambda: train(root / "whole"))) == 0
    results = {}
    for step in KILL_AT:
        folder = root / f"killed-{step}"
        child = fork(lambda folder=folder: train(folder, seconds=0.02))
        killed = kill_when(child, lambda folder=folder, step=step: last_step(folder) >= step)
        results[folder.name] = {"killed": killed, "logged": last_step(folder)}
    # Once more, while a checkpoint is being written.
    folder = root / "killed-writing"
    child = fork(lambda: train(folder, seconds=0.02))
    results[folder.name] = {"killed": kill_when(child, lambda: any(folder.glob("checkpoints/.partial-*")))}
    results[folder.name]["logged"] = last_step(folder)
    for name, result in results.items():
        result["resumed"] = ended(fork(lambda name=name: train(root / name, resume=True)))
    return results


def resume_on_three_ranks(root: Path) -> list[int]:
    """Make a run on three ranks in one go, and one that breaks off and is resumed; return the exit codes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def rank(number: int) -> None:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE="3", RANK=str(number))
        distributed.initialise()
        train(root / "three-whole", batch_size=12)
        with contextlib.suppress(InterruptedError):
            train(root / "three-parts", batch_size=12, stop=6)
        train(root / "three-parts", batch_size=12, resume=True)
        distributed.barrier()
        distributed.shutdown()

    return [ended(child) for child in [fork(lambda number=number: rank(number)) for number in range(3)]]


def main(root: Path) -> None:
    """Make all runs; print how they ended."""
    torch.set_num_threads(1)
    results = kill_and_resume(root)
    print(json.dumps({"kills": results, "three": resume_on_three_ranks(root)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
