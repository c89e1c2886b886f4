"""The only code that talks to other processes.

Everything here is a no-op (or the identity) in a single process, so that callers never ask how many ranks there are.
The engine is ``torch.distributed`` under ``torchrun``: gloo on CPU, NCCL on GPU.

Gradient convention: every rank backpropagates the mean loss of *its own* rows. The collectives with a gradient below
give each rank the derivative of the *sum* of all ranks' losses with respect to its own features; averaging parameter
gradients over ranks, as DistributedDataParallel does, then yields exactly the gradient of the global mean.
"""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from typing import Any, NoReturn, cast

import torch
import torch.distributed as dist
from torch import Tensor


def initialise(device: torch.device | str = "cpu") -> None:
    """Join the process group that ``torchrun`` describes in the environment; do nothing when there is none."""
    if "WORLD_SIZE" not in os.environ or int(os.environ["WORLD_SIZE"]) <= 1 or dist.is_initialized():
        return
    if torch.device(device).type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))  # object collectives go through this device
    backend = "nccl" if torch.device(device).type == "cuda" else "gloo"
    # The others wait while rank 0 computes features or evaluates; torchrun ends them all if it dies meanwhile.
    dist.init_process_group(backend=backend, timeout=timedelta(hours=12))


def shutdown() -> None:
    """Leave the process group, if there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def leave(code: int = 0) -> NoReturn:
    """End this process, one of several under ``torchrun``, with an exit code.

    Python is not torn down: torch keeps the threads of a group that DistributedDataParallel has used, and one that is
    not idle by then ends in ``std::terminate``, an abort after all the work is done and written.
    """
    shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _active() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """Return this process's number, 0 in a single process."""
    return dist.get_rank() if _active() else 0


def local_rank() -> int:
    """Return this process's number on its own machine (the GPU it should use)."""
    return int(os.environ.get("LOCAL_RANK", "0")) if _active() else 0


def world_size() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if _active() else 1


def is_main() -> bool:
    """Say whether this process writes files and talks to the user."""
    return rank() == 0


def barrier() -> None:
    """Wait until every process has come here."""
    if _active():
        dist.barrier()


def all_gather_objects(value: Any) -> list[Any]:
    """Return every rank's ``value`` (picklable), in rank order."""
    if not _active():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def broadcast_object(value: Any) -> Any:
    """Return rank 0's ``value`` (picklable) on every rank."""
    if not _active():
        return value
    holder = [value]
    dist.broadcast_object_list(holder, src=0)
    return holder[0]


@torch.no_grad()
def gather(values: Tensor) -> Tensor:
    """Concatenate every rank's ``(B, ...)`` rows into ``(N, ...)``, in rank order. Not differentiable."""
    if not _active():
        return values
    values = values.contiguous()
    parts = [torch.empty_like(values) for _ in range(world_size())]
    dist.all_gather(parts, values)
    return torch.cat(parts)


@torch.no_grad()
def sum_over_ranks(values: Tensor) -> Tensor:
    """Return the elementwise sum over ranks; in a single process the tensor itself."""
    if not _active():
        return values
    total = values.detach().clone()
    dist.all_reduce(total, op=dist.ReduceOp.SUM)
    return total


@torch.no_grad()
def own_rows(values: Tensor) -> Tensor:
    """Return this rank's ``(B, ...)`` rows of a gathered ``(N, ...)`` tensor."""
    if not _active():
        return values
    size = values.shape[0] // world_size()
    return values[rank() * size : (rank() + 1) * size]


@torch.no_grad()
def sum_and_scatter(values: Tensor) -> Tensor:
    """Sum ``(N, ...)`` over ranks and return this rank's ``(B, ...)`` rows: the adjoint of :func:`gather`."""
    if not _active():
        return values
    return own_rows(sum_over_ranks(values)).contiguous()


@torch.no_grad()
def max_over_ranks(values: Tensor) -> Tensor:
    """Return the elementwise maximum over ranks; in a single process the tensor itself."""
    if not _active():
        return values
    largest = values.detach().clone()
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return largest


class _GatherRows(torch.autograd.Function):
    """:func:`gather` whose backward sums every rank's gradient for this rank's rows."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return gather(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return sum_and_scatter(gradient)


def gather_with_gradient(values: Tensor) -> Tensor:
    """Like :func:`gather`, differentiable: no rank's contribution to the gradient is lost."""
    if not _active():
        return values
    return cast(Tensor, _GatherRows.apply(values))
