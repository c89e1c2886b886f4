"""Planted losses of right and wrong pairs; run under torchrun by test_composition.py too."""

import sys
from pathlib import Path

import torch
from torch import Tensor

from troth import distributed
from troth.objectives import CleanPosterior
from troth.similarity import Pairs
from troth.state import Clock, State

COUNT, STEPS, PER_EPOCH = 600, 8, 3


def planted() -> Tensor:
    """Which of the pairs are wrong: three in ten."""
    return torch.arange(COUNT) % 10 < 3


def losses_at(step: int) -> Tensor:
    """Right pairs lose about 1 nat, wrong ones about 5, anew in every step."""
    draw = torch.Generator().manual_seed(step)
    noise = torch.randn(COUNT, generator=draw, dtype=torch.float64)
    return torch.where(planted(), 5 + 0.6 * noise, 1 + 0.4 * noise)


def compute() -> tuple[list[Tensor], dict[str, Tensor]]:
    """This rank's weights in every step, and the state at the end."""
    by, state, weights = CleanPosterior(warmup_epochs=1), State(COUNT, "test"), []
    by.prepare(state)
    order = torch.Generator().manual_seed(7)
    for step in range(STEPS):
        index = distributed.own_rows(torch.randperm(COUNT, generator=order)[: COUNT // PER_EPOCH])
        state.clock = Clock(step=step, steps_per_epoch=PER_EPOCH, total_steps=STEPS)
        point = torch.ones(len(index), 1)
        pairs = Pairs(point, point, torch.tensor(1.0), index=index)
        weights.append(by(pairs, losses_at(step)[index], state))
    return weights, state.state_dict()


def main(folder: Path) -> None:
    rank = distributed.rank()
    weights, remembered = compute()
    state = State(3, "test")
    state.declare("u")
    state.declare_value("v", torch.zeros(1))
    rows = ([2, 1, 0], [1, 0, 1])[rank]
    state.write("u", torch.tensor(rows), torch.tensor([3.0, 2.0, 1.0] if rank == 0 else [4.0, 5.0, 6.0]))
    state.set_value("v", torch.tensor([float(rank)]))
    record = {"weights": weights, "state": remembered, "twice": state.read("u"), "value": state.value("v")}
    torch.save(record, folder / f"{rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    distributed.initialise()
    main(Path(sys.argv[1]))
    distributed.barrier()
    distributed.leave()
