"""Run under torchrun by test_prototype_heads.py: batch norm over the rows of all ranks, forward and backward."""

import sys
from pathlib import Path

import torch
from torch import nn

from troth import distributed
from troth.encoders.prototype_heads import SharedBatchNorm

ROWS = 10


def head(dtype: torch.dtype) -> nn.Sequential:
    torch.manual_seed(2)
    norm = SharedBatchNorm(6)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2.0)
        norm.bias.normal_()
    return nn.Sequential(nn.Linear(4, 6), norm, nn.ReLU(), nn.Linear(6, 3)).to(dtype)


def steps(dtype: torch.dtype, precision: torch.dtype | None = None) -> dict[str, object]:
    """Two passes over other batches, each rank with its rows: outputs, gradients and running averages."""
    network, found = head(dtype), []
    draw = torch.Generator().manual_seed(1)
    for _ in range(2):
        whole = (3 + 2 * torch.randn(ROWS, 4, generator=draw, dtype=torch.float64)).to(dtype)
        target = torch.randn(ROWS, 3, generator=draw, dtype=torch.float64).to(dtype)
        rows = distributed.own_rows(whole).clone().requires_grad_()
        network.zero_grad()
        with torch.autocast("cpu", precision, enabled=precision is not None):
            output = network(rows)
        (output - distributed.own_rows(target)).square().sum(dim=1).mean().backward()
        gradients = {name: parameter.grad.clone() for name, parameter in network.named_parameters()}
        found.append({"output": output.detach(), "input": rows.grad, "weights": gradients})
    network.eval()
    with torch.no_grad():
        evaluated = network(whole)
    return {"steps": found, "buffers": dict(network.named_buffers()), "evaluated": evaluated}


def compute(folder: Path) -> None:
    """Write what this rank finds."""
    torch.set_num_threads(1)
    distributed.initialise()
    results = {"exact": steps(torch.float64), "bfloat16": steps(torch.float32, torch.bfloat16)}
    torch.save(results, folder / f"{distributed.rank()}.pt")
    distributed.barrier()
    distributed.shutdown()


if __name__ == "__main__":
    compute(Path(sys.argv[1]))
