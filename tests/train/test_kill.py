"""A run that is killed and resumed ends in the bits of one that was not."""

import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from troth.train import read_log

RUNS = ("killed-2", "killed-6", "killed-11", "killed-writing")


@pytest.mark.parametrize("name", RUNS)
def test_the_run_was_killed_midway_and_then_ended_well(forked_runs: Path, name: str) -> None:
    result = json.loads((forked_runs / "results.json").read_text())["kills"][name]
    assert result["killed"] == -signal.SIGKILL
    assert result["resumed"] == 0
    assert result["logged"] < 15
    if name != "killed-writing":
        assert result["logged"] >= int(name.rpartition("-")[2])


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("file", ["model", "optimizer", "state"])
def test_every_tensor_is_the_uninterrupted_runs(forked_runs: Path, name: str, file: str) -> None:
    place = Path("checkpoints") / "step-00000015" / f"{file}.safetensors"
    expected, tensors = load_file(forked_runs / "whole" / place), load_file(forked_runs / name / place)
    assert tensors.keys() == expected.keys()
    assert tensors
    for tensor, values in expected.items():
        assert torch.equal(tensors[tensor], values), tensor


@pytest.mark.parametrize("name", RUNS)
def test_the_log_tells_every_step_once(forked_runs: Path, name: str) -> None:
    expected, records = read_log(forked_runs / "whole"), read_log(forked_runs / name)
    for record in (*expected, *records):
        record.pop("samples_per_second")
    assert [record["step"] for record in records] == list(range(1, 16))
    assert records == expected


@pytest.mark.parametrize("name", RUNS)
def test_nothing_half_written_is_left(forked_runs: Path, name: str) -> None:
    folders = sorted(path.name for path in (forked_runs / name / "checkpoints").iterdir())
    assert folders == ["step-00000012", "step-00000015"]
