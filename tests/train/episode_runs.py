"""Run once for test_episode_runs.py: runs in episodes that are killed and resumed, and that several ranks share.

The children are forked from this process, which has imported everything once and computed nothing.
"""

import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import faiss  # noqa: F401  else every child imports it when it first clusters
import torch
import torch._dynamo  # else every child imports it at its first optimiser step

from tests.train.episodic import EpisodicStream, episodes, episodic_model, trainer
from tests.train.forked_runs import ended, fork, kill_when, last_step
from troth import clustering, distributed
from troth.data import LoadedBatch
from troth.train import episodes as module

#: Checkpoints are written at steps 4, 8, 12, ... and the end, 30; episodes begin at 5 and 10 (which cluster) and so on.
EVERY = 4


class _Telling(EpisodicStream):
    """A slow stream that leaves a note when it has read the second batch of the clustered view, from ``step`` on."""

    note, step = Path(), 0

    def batches(self, start_step: int, stop_step: int, *, view: int = 0) -> Iterator[LoadedBatch]:
        for number, loaded in enumerate(super().batches(start_step, stop_step, view=view)):
            if view and number == 2 and start_step >= self.step:
                self.note.touch()
                time.sleep(10)
            yield loaded


def run(folder: Path, *, resume: bool = False, stream: EpisodicStream | None = None) -> None:
    """Make (or finish) the run: dropout, batch norm, a warm-up, prototypes of two kinds, a locked end."""
    model = episodic_model(dropout=0.3)
    trainer(folder, model=model, stream=stream, checkpoint_every_steps=EVERY).run(resume=resume)


def while_encoding(folder: Path) -> int:
    """Kill a run in the feature pass of its third episode; its last checkpoint is in the middle of the second."""
    stream = _Telling()
    stream.note, stream.step = folder.parent / "encoding", 10
    return kill_when(fork(lambda: run(folder, stream=stream)), stream.note.exists)


def while_clustering(folder: Path) -> int:
    """Kill a run between the clustering and the translation of its second episode; its checkpoint is of the first."""
    note = folder.parent / "clustering"

    def slowly(*arguments: object) -> torch.Tensor:
        note.touch()
        time.sleep(10)
        return clustering.group_means(*arguments)

    def clustered() -> None:
        module.group_means = slowly
        run(folder)

    return kill_when(fork(clustered), note.exists)


def while_training(folder: Path, step: int) -> int:
    """Kill a run after its step number ``step``."""
    child = fork(lambda: run(folder, stream=EpisodicStream(seconds=0.03)))
    return kill_when(child, lambda: last_step(folder) >= step)


def kill_and_resume(root: Path) -> dict[str, dict[str, int]]:
    """Make an uninterrupted run and some that are killed and resumed; return how their processes ended."""
    assert ended(fork(lambda: run(root / "whole"))) == 0
    kills: dict[str, Callable[[Path], int]] = {
        "encoding": while_encoding,
        "clustering": while_clustering,
        "training": lambda folder: while_training(folder, 13),
        "training, at an episode's start": lambda folder: while_training(folder, 16),
        "training, locked": lambda folder: while_training(folder, 25),
    }
    results = {}
    for number, (name, kill) in enumerate(kills.items()):
        folder = root / f"killed-{number}"
        results[name] = {"number": number, "killed": kill(folder), "logged": last_step(folder)}
        results[name]["resumed"] = ended(fork(lambda folder=folder: run(folder, resume=True)))
    return results


def exact(folder: Path) -> None:
    """A run in float64 without dropout, which any number of ranks must make alike."""
    model = episodic_model(dtype=torch.float64)
    trainer(folder, model=model, stream=EpisodicStream(dtype=torch.float64), made=episodes()).run()
    if not distributed.is_main():
        torch.save(model.state_dict(), folder / "other.pt")


def two_ranks(root: Path) -> list[int]:
    """Make that run in one process and on two ranks; return the exit codes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def rank(number: int) -> None:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE="2", RANK=str(number))
        distributed.initialise()
        exact(root / "two")
        distributed.barrier()
        distributed.shutdown()

    children = [fork(lambda: exact(root / "one")), *(fork(lambda number=number: rank(number)) for number in range(2))]
    return [ended(child) for child in children]


def main(root: Path) -> None:
    """Make all runs; print how they ended."""
    torch.set_num_threads(1)
    print(json.dumps({"kills": kill_and_resume(root), "ranks": two_ranks(root)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
