"""Affinities over two real processes are those of one: losses, gradients, and a mask that leaves one rank nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.distributed_gram import APART, LOPSIDED, batch, compute


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, list[dict]]:
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    threads = torch.get_num_threads()
    compute(one)
    torch.set_num_threads(threads)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    finished = subprocess.run(
        [*command, "-m", "tests.distributed_gram", str(two)],
        cwd=Path(__file__).resolve().parent.parent,
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
        torch.testing.assert_close(both, losses, rtol=1e-10, atol=1e-13, msg=lambda m, n=name: f"{n}: {m}")


def test_averaged_over_ranks_the_gradients_are_those_of_one(runs: tuple[dict, list[dict]]) -> None:
    single, ranks = runs
    for name, (_, gradients) in single["results"].items():
        for which, expected in enumerate(gradients):
            together = torch.cat([rank["results"][name][1][which] for rank in ranks]) / 2
            torch.testing.assert_close(together, expected, rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


def test_a_mask_may_leave_one_rank_nothing(runs: tuple[dict, list[dict]]) -> None:
    image, text, _ = batch()
    cosine = (image * text).sum(1)
    assert (cosine[:6] < APART).all()
    assert (cosine[6:] > APART).sum() >= 3
    for name in LOPSIDED:
        losses = [rank["results"][name][0] for rank in runs[1]]
        assert not losses[0].any()
        assert losses[1].any()


def test_one_rank_may_measure_consistency_alone(runs: tuple[dict, list[dict]]) -> None:
    assert runs[1][0]["consistency"] == runs[0]["consistency"]
    assert runs[0]["consistency"]
