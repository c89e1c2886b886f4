"""What a row has over another, seed by seed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks.robustness_by_seeds import leads, main

from tests.bench.test_results import SCORE
from troth.bench.results import write_results
from troth.bench.scores import Score


def runs(method: str, zero_shot: dict[int, float]) -> list[Score]:
    return [replace(SCORE, method=method, seed=seed, zero_shot=value) for seed, value in zero_shot.items()]


TABLE = runs("GCE", {0: 12.0, 1: 14.0, 3: 99.0}) + runs("SaCo", {0: 11.0, 1: 11.0, 2: 0.0}) + runs("DeCL", {2: 1.0})


def test_only_seeds_that_both_have_are_compared() -> None:
    found = {each.test: each for each in leads(TABLE, SCORE.regime, SCORE.noise, "GCE", ["SaCo"])}
    lead = found["zero_shot"]
    assert (lead.seeds, lead.mean.value) == (2, 2.0)
    assert lead.mean.error == pytest.approx(1.0)
    assert (found["retrieval"].mean.value, found["retrieval"].mean.error) == (0.0, 0.0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_results(TABLE, tmp_path / "results.parquet")
    return tmp_path / "results.parquet"


def test_the_command_prints_each_row_once(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([SCORE.regime, SCORE.noise, "gce", "SaCo", "saco", "GCE", "--results", str(path)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("2.00 ± 1.00") == 1
    assert "GCE minus" in shown
    assert "zero-shot %" in shown


@pytest.mark.parametrize(
    ("noise", "methods", "message"),
    [
        (SCORE.noise, ["GCE", "DeCL"], "'GCE' and 'DeCL' have no seed in common"),
        (SCORE.noise, ["SigLIP", "GCE"], f"{SCORE.noise}: SigLIP: no run of it in the table"),
        (SCORE.noise, ["GCE", "SigLIP"], f"{SCORE.noise}: SigLIP: no run of it in the table"),
        ("uniform-30", ["GCE", "SaCo"], "uniform-30: GCE: no run of it in the table"),
        (SCORE.noise, ["GCE", "robust-small"], "robust-small: no such method (one of: InfoNCE"),
        ("loud", ["GCE", "SaCo"], "no such noise"),
    ],
)
def test_it_says_which_row_is_not_there(
    path: Path, capsys: pytest.CaptureFixture[str], noise: str, methods: list[str], message: str
) -> None:
    assert main([SCORE.regime, noise, *methods, "--results", str(path)]) == 1
    assert message in capsys.readouterr().out
