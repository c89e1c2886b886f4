"""Two real processes give what one gives: losses, gradients, per-pair memory."""

import pytest
import torch

from tests.distributed_losses import compute
from tests.torchrun import Runs, check_gradients, check_losses, one_and_two
from troth import distributed


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return one_and_two(compute, tmp_path_factory)


def test_two_ranks_give_the_losses_of_one(runs: Runs) -> None:
    check_losses(runs)


def test_averaged_over_ranks_the_gradients_are_those_of_one(runs: Runs) -> None:
    check_gradients(runs)


def test_every_rank_remembers_every_pair(runs: Runs) -> None:
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
