"""Runs in episodes: killed in any phase and resumed, they end in the same bits; several ranks make the same run."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from troth.train import read_log

#: Where each run was killed, and between which steps its log then ended.
KILLED = {
    "encoding": (10, 10),
    "clustering": (5, 5),
    "training": (13, 15),
    "training, at an episode's start": (16, 20),
    "training, locked": (25, 29),
}
END = Path("checkpoints") / "step-00000030"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("episodes")
    finished = subprocess.run(
        [sys.executable, "-m", "tests.train.episode_runs", str(root)],
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    (root / "results.json").write_text(finished.stdout)
    return root


@pytest.mark.parametrize("name", KILLED)
def test_a_killed_run_ends_in_the_uninterrupted_runs_bits(runs: Path, name: str) -> None:
    result = json.loads((runs / "results.json").read_text())["kills"][name]
    assert result["killed"] == -signal.SIGKILL
    assert KILLED[name][0] <= result["logged"] <= KILLED[name][1]
    assert result["resumed"] == 0
    folder = runs / f"killed-{result['number']}"
    for file in ("model", "optimizer", "state"):
        expected = load_file(runs / "whole" / END / f"{file}.safetensors")
        tensors = load_file(folder / END / f"{file}.safetensors")
        assert tensors
        assert tensors.keys() == expected.keys()
        for tensor, values in expected.items():
            assert torch.equal(tensors[tensor], values), tensor
    logs = [read_log(root, "train") for root in (runs / "whole", folder)]
    for record in (*logs[0], *logs[1]):
        record.pop("samples_per_second")
    assert logs[0] == logs[1]
    assert [record["step"] for record in logs[1]] == list(range(1, 31))


def test_the_clusters_are_in_the_checkpoint(runs: Path) -> None:
    state = load_file(runs / "whole" / END / "state.safetensors")
    parts = {"image": ["text"], "text": ["image"], "external": ["image", "text"]}
    names = {f"value/episodes/{name}/{part}" for name in parts for part in ("label", "prototypes", *parts[name])}
    assert names == state.keys()
    assert all(state[name].any() for name in names)


def test_two_ranks_cluster_and_learn_what_one_process_does(runs: Path) -> None:
    assert json.loads((runs / "results.json").read_text())["ranks"] == [0, 0, 0]
    one, two = (load_file(runs / name / END / "state.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, values in one.items():
        if name.endswith("label"):
            assert torch.equal(two[name], values), name
        else:
            torch.testing.assert_close(two[name], values, rtol=1e-5, atol=1e-6)
    weights = [load_file(runs / name / END / "model.safetensors") for name in ("one", "two")]
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(torch.load(runs / "two" / "other.pt"), weights[1], rtol=0, atol=0)
    for record, other in zip(read_log(runs / "two", "train"), read_log(runs / "one", "train"), strict=True):
        assert record.keys() == other.keys()
        assert record["loss"] == pytest.approx(other["loss"], rel=1e-6)


def test_the_log_tells_every_episode_but_those_that_were_begun_twice(runs: Path) -> None:
    whole = read_log(runs / "whole", "episode")
    assert [(record["episode"], record["phase"]) for record in whole] == [
        (1, "warmup"), (2, "prototypes"), (3, "prototypes"), (4, "prototypes"), (5, "locked"), (6, "locked"),
    ]  # fmt: skip
    numbers = json.loads((runs / "results.json").read_text())["kills"]
    for name, missing in (("encoding", 2), ("training", 3)):
        told = read_log(runs / f"killed-{numbers[name]['number']}", "episode")
        assert [record["episode"] for record in told] == [number for number in range(1, 7) if number != missing]
