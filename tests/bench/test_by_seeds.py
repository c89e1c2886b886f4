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


def test_the_command_prints_them_or_says_which_rows_are_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "results.parquet"
    write_results(TABLE, path)
    asked = [SCORE.regime, SCORE.noise, "GCE", "SaCo", "--results", str(path)]
    assert main(asked) == 0
    assert "2.00 ± 1.00" in capsys.readouterr().out
    asked[3] = "DeCL"
    assert main(asked) == 1
    assert "'GCE' and 'DeCL' have no seed in common at" in capsys.readouterr().out
