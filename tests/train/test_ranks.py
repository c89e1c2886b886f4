"""Several real processes train the model that one trains."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.torchrun import two_ranks
from tests.train.ranks_runs import MICRO, main
from troth.data.ledger import Ledger
from troth.train import read_log


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    main(folder)
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    two_ranks("tests.train.ranks_runs", folder)
    return folder


@pytest.mark.parametrize("name", MICRO)
@pytest.mark.parametrize("what", ["weights", "gradients"])
def test_weights_and_gradients_are_those_of_one_process(one: Path, two: Path, name: str, what: str) -> None:
    expected = torch.load(one / f"{name}-0.pt")[what]
    for rank in range(2):
        values = torch.load(two / f"{name}-{rank}.pt")[what]
        assert len(values) == len(expected)
        torch.testing.assert_close(values, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", MICRO)
def test_the_log_is_that_of_one_process(one: Path, two: Path, name: str) -> None:
    expected, records = read_log(one / name), read_log(two / name)
    assert len(records) == len(expected) == 18
    for record, other in zip(records, expected, strict=True):
        assert record.keys() == other.keys()
        for key in record.keys() - {"event", "samples_per_second"}:
            assert record[key] == pytest.approx(other[key], rel=1e-9, abs=1e-10), key


def test_what_every_rank_skipped_is_in_the_ledger(two: Path) -> None:
    assert Ledger.read(two / "plain" / "ledger.jsonl").keys() == {"0.png", "1.png", "all.png"}


def test_all_ranks_stop_together(one: Path, two: Path) -> None:
    for rank in range(2):
        poisoned, occupied = torch.load(two / f"messages-{rank}.pt")
        assert "the loss of step 2 is not finite" in poisoned
        assert "holds a run already" in occupied
    place = Path("poisoned") / "checkpoints" / "non-finite-step-00000002" / "batch.json"
    pairs = [[row["sample_id"] for row in json.loads((root / place).read_text())["pairs"]] for root in (one, two)]
    assert pairs[0] == pairs[1]
    assert len(pairs[1]) == 8


@pytest.mark.parametrize("file", ["model", "optimizer", "state"])
def test_three_ranks_resume_bit_for_bit(forked_runs: Path, file: str) -> None:
    """With two ranks any order of summation gives the same bits; with three only the same order does."""
    assert json.loads((forked_runs / "results.json").read_text())["three"] == [0, 0, 0]
    place = Path("checkpoints") / "step-00000009" / f"{file}.safetensors"
    expected, tensors = load_file(forked_runs / "three-whole" / place), load_file(forked_runs / "three-parts" / place)
    assert tensors.keys() == expected.keys()
    for name, values in expected.items():
        assert torch.equal(tensors[name], values), name


def test_three_ranks_log_every_step_once(forked_runs: Path) -> None:
    assert [record["step"] for record in read_log(forked_runs / "three-parts", "train")] == list(range(1, 10))
