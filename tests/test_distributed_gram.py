"""Affinities over two real processes are those of one: losses, gradients, and a mask that leaves one rank nothing."""

import pytest

from tests.distributed_gram import APART, LOPSIDED, batch, compute
from tests.torchrun import Runs, check_gradients, check_losses, one_and_two


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return one_and_two(compute, tmp_path_factory)


def test_two_ranks_give_the_losses_of_one(runs: Runs) -> None:
    check_losses(runs)


def test_averaged_over_ranks_the_gradients_are_those_of_one(runs: Runs) -> None:
    check_gradients(runs)


def test_a_mask_may_leave_one_rank_nothing(runs: Runs) -> None:
    image, text, _ = batch()
    cosine = (image * text).sum(1)
    assert (cosine[:6] < APART).all()
    assert (cosine[6:] > APART).sum() >= 3
    for name in LOPSIDED:
        losses = [rank["results"][name][0] for rank in runs[1]]
        assert not losses[0].any()
        assert losses[1].any()


def test_one_rank_may_measure_consistency_alone(runs: Runs) -> None:
    assert runs[1][0]["consistency"] == runs[0]["consistency"]
    assert runs[0]["consistency"]
