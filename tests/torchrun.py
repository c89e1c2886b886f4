"""Two real processes, and whether they computed what one does."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

#: What ``compute(folder)`` of a module writes on each rank: ``{"results": {name: (losses, gradients)}, ...}``.
Runs = tuple[dict, list[dict]]


def two_ranks(module: str, folder: Path) -> None:
    """Run ``python -m module folder`` on two ranks, and fail with what it said if it fails."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    finished = subprocess.run(
        [*command, "-m", module, str(folder)],
        cwd=Path(__file__).resolve().parent.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]


def one_and_two(compute: Callable[[Path], None], factory: pytest.TempPathFactory) -> Runs:
    """Return what ``compute`` writes here, and what it writes on each of two ranks."""
    one, two = factory.mktemp("one"), factory.mktemp("two")
    threads = torch.get_num_threads()
    compute(one)
    torch.set_num_threads(threads)
    two_ranks(compute.__module__, two)
    return torch.load(one / "0.pt"), [torch.load(two / f"{rank}.pt") for rank in range(2)]


def check_losses(runs: Runs) -> None:
    """Two ranks have the losses of one."""
    single, ranks = runs
    for name, (losses, _) in single["results"].items():
        both = torch.cat([rank["results"][name][0] for rank in ranks])
        torch.testing.assert_close(both, losses, rtol=1e-12, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


def check_gradients(runs: Runs) -> None:
    """Averaged over ranks, as DistributedDataParallel averages, the gradients are those of one."""
    single, ranks = runs
    for name, (_, gradients) in single["results"].items():
        for which, expected in enumerate(gradients):
            parts = [rank["results"][name][1][which] for rank in ranks]
            # Embeddings are split over ranks, the scale and bias are shared.
            together = torch.cat(parts) / 2 if expected.ndim else torch.stack(parts).mean()
            torch.testing.assert_close(together, expected, rtol=1e-10, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")
