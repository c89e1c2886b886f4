"""Two real processes give what one gives: losses, gradients, per-pair memory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.distributed_losses import compute
from troth import distributed


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, list[dict]]:
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    threads = torch.get_num_threads()
    compute(one)
    torch.set_num_threads(threads)
    root = Path(__file__).resolve().parent.parent
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    finished = subprocess.run(
        [*command, "-m", "tests.distributed_losses", str(two)],
        cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    return torch.load(one / "0.pt"), [torch.load(two / f"{rank}.pt") for rank in range(2)]


def test_two_ranks_give_the_losses_of_one(runs: tuple[dict, list[dict]]) -> None:
    single, ranks = runs
    for name, (losses, _) in single["results"].items():
        both = torch.cat([rank["results"][name][0] for rank in ranks])
        torch.testing.assert_close(both, losses, rtol=1e-12, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


def test_averaged_over_ranks_the_gradients_are_those_of_one(runs: tuple[dict, list[dict]]) -> None:
    single, ranks = runs
    for name, (_, gradients) in single["results"].items():
        for which, expected in enumerate(gradients):
            parts = [rank["results"][name][1][which] for rank in ranks]
            # Embeddings are split over ranks, the scale and bias are shared; both averaged as DDP averages.
            together = torch.cat(parts) / 2 if expected.ndim else torch.stack(parts).mean()
            torch.testing.assert_close(together, expected, rtol=1e-10, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


def test_every_rank_remembers_every_pair(runs: tuple[dict, list[dict]]) -> None:
    for rank in runs[1]:
        assert rank["state"].tolist() == [10.0 * i for i in range(8)]


def test_one_process_needs_no_process_group() -> None:
    values = torch.arange(3.0)
    assert distributed.world_size() == 1
    assert distributed.is_main()
    assert torch.equal(distributed.gather(values), values)
    assert torch.equal(distributed.sum_over_ranks(values), values)
    assert torch.equal(distributed.sum_and_scatter(values), values)
    assert distributed.all_gather_objects("x") == ["x"]
    assert distributed.broadcast_object("x") == "x"
