"""Two real processes keep the average and the locks that one keeps."""

import pytest
import torch

from tests.torchrun import two_ranks
from tests.train.towers_ranks import main


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, list[dict]]:
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    main(one)
    two_ranks("tests.train.towers_ranks", two)
    return torch.load(one / "0.pt"), [torch.load(two / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("what", ["model", "average"])
def test_they_are_those_of_one_process(results: tuple[dict, list[dict]], what: str) -> None:
    one, two = results
    for rank in two:
        assert rank["plain"][what].keys() == one["plain"][what].keys()
        for name, values in one["plain"][what].items():
            torch.testing.assert_close(rank["plain"][what][name], values, rtol=1e-9, atol=1e-10, msg=name)


def test_both_ranks_keep_one_average_of_statistics_that_differ(results: tuple[dict, list[dict]]) -> None:
    first, second = (rank["normed"] for rank in results[1])
    mean = "encoder.norm.running_mean"
    assert not torch.equal(first["model"][mean], second["model"][mean])
    for name, values in first["average"].items():
        assert torch.equal(second["average"][name], values), name


@pytest.mark.parametrize("what", ["model", "average"])
def test_two_ranks_resume_bit_for_bit(results: tuple[dict, list[dict]], what: str) -> None:
    for rank in results[1]:
        for name, values in rank["normed"][what].items():
            assert torch.equal(rank["parts"][what][name], values), name
