"""Run under torchrun by test_distributed.py: every rank writes its losses and gradients."""

import sys
from pathlib import Path

import torch

from tests.objectives.test_conformance import OBJECTIVES, bias_of, features
from troth import distributed
from troth.similarity import Pairs
from troth.state import State
from troth.types import Side


def compute(folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.initialise()
    image, text = features(8)
    results = {}
    for cls in OBJECTIVES:
        objective = cls()
        own = [distributed.own_rows(x).clone().requires_grad_() for x in (image, text)]
        scale = torch.tensor(6.0, dtype=torch.float64, requires_grad=True)
        bias = bias_of(objective)
        inputs = [*own, scale] if bias is None else [*own, scale, bias.requires_grad_()]
        state = State(8, "test")
        objective.prepare(state)
        pairs = Pairs(*own, scale, bias, distributed.own_rows(torch.arange(8)), tile=(3, 2))
        losses = objective(pairs, state)
        results[objective.kind] = (losses.detach(), torch.autograd.grad(losses.mean(), inputs))

    own = [distributed.own_rows(x).clone().requires_grad_() for x in (image, text)]
    scale = torch.tensor(6.0, dtype=torch.float64, requires_grad=True)
    rows = Pairs(*own, scale, tile=(3, 2)).row_losses(
        lambda logits, positive: logits.logsumexp(1) ** 2 - logits.gather(1, positive[:, None])[:, 0], Side.TEXT
    )
    results["row_losses"] = (rows.detach(), torch.autograd.grad(rows.mean(), [*own, scale]))

    state = State(8, "test")
    state.declare("u")
    state.write("u", distributed.own_rows(torch.arange(8)), distributed.own_rows(torch.arange(8) * 10.0))
    torch.save({"results": results, "state": state.read("u")}, folder / f"{distributed.rank()}.pt")
    distributed.barrier()
    distributed.shutdown()


if __name__ == "__main__":
    compute(Path(sys.argv[1]))
