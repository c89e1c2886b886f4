"""Means over seeds, the gap that noise opens, and the file of all runs."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from troth.bench.results import collect, read_results, show, tables, write_results
from troth.bench.scores import SCORE_NAME, Score
from troth.errors import UserError

SCORE = Score(
    regime="heads",
    method="InfoNCE",
    noise="uniform-40",
    rate=0.4,
    seed=0,
    zero_shot=8.0,
    new_concepts=10.0,
    retrieval=20.0,
    auroc=0.8,
    average_precision=0.7,
    estimated_rate=0.3,
    true_rate=0.4,
    judged_by="model",
    seconds=10.0,
    steps=160,
)
CLEAN = {"noise": "uniform-0", "rate": 0.0, "true_rate": 0.0, "auroc": None, "average_precision": None}


def scores() -> list[Score]:
    return [
        replace(SCORE, method="GCE", seed=1, zero_shot=15.0, estimated_rate=None),
        SCORE,
        replace(SCORE, seed=1, zero_shot=10.0),
        replace(SCORE, method="GCE", zero_shot=13.0, retrieval=18.0),
        replace(SCORE, zero_shot=16.0, retrieval=25.0, **CLEAN),
        replace(SCORE, seed=1, zero_shot=22.0, retrieval=25.0, **CLEAN),
    ]


def test_means_errors_and_the_gap_closed() -> None:
    found = tables(scores())
    assert list(found) == [("heads", "uniform-0"), ("heads", "uniform-40")]
    plain, robust = found["heads", "uniform-40"]
    assert (plain.method, robust.method, robust.seeds) == ("InfoNCE", "GCE", 2)
    assert (robust.tests["zero_shot"].value, robust.tests["zero_shot"].error) == (14.0, pytest.approx(1.0))
    assert robust.closed["zero_shot"] == pytest.approx(100 * (14 - 9) / (19 - 9))
    assert robust.closed["retrieval"] == pytest.approx(100 * (19 - 20) / (25 - 20)), "worse than InfoNCE is below 0"
    assert robust.closed["new_concepts"] is None, "noise cost InfoNCE nothing there"
    assert plain.closed["zero_shot"] == 0
    assert robust.estimated_rate.text(1) == "30.0", "the mean of those that could be estimated"
    clean = found["heads", "uniform-0"][0]
    assert (clean.auroc, clean.closed["zero_shot"]) == (None, None)


def test_the_gap_is_of_the_seeds_that_all_three_have() -> None:
    some = [score for score in scores() if not (score.noise == "uniform-0" and score.seed == 1)]
    row = tables(some)["heads", "uniform-40"][1]
    assert row.tests["zero_shot"].value == 14.0
    assert row.closed["zero_shot"] == pytest.approx(100 * (13 - 8) / (16 - 8))


def test_without_the_clean_runs_no_gap_is_known() -> None:
    row = tables([score for score in scores() if score.noise != "uniform-0"])["heads", "uniform-40"][1]
    assert set(row.closed.values()) == {None}


def test_a_regime_is_compared_with_itself() -> None:
    other = [replace(score, regime="small", zero_shot=1.0) for score in scores() if score.noise == "uniform-0"]
    assert tables(scores() + other)["heads", "uniform-40"][1].closed["zero_shot"] == pytest.approx(50)


def test_the_file_has_a_row_a_run_and_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "results.parquet"
    write_results(scores(), path)
    table = pq.read_table(path)
    assert table.num_rows == 6
    assert {"regime", "method", "noise", "rate", "seed", "seconds", "steps"} <= set(table.column_names)
    found = read_results(path)
    assert sorted(map(str, found)) == sorted(map(str, scores()))
    assert [score.seed for score in found[:2]] == [0, 1]
    write_results([], path)
    assert read_results(path) == []
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match="not the yardstick's results"):
        read_results(path)


def test_finished_runs_are_found(tmp_path: Path) -> None:
    SCORE.write(tmp_path / "runs" / "heads-infonce" / "uniform-40-0" / SCORE_NAME)
    (tmp_path / "runs" / "heads-infonce" / "uniform-40-1").mkdir()
    assert collect(tmp_path) == [SCORE]
    (tmp_path / "runs" / "heads-infonce" / "uniform-40-1" / SCORE_NAME).write_text("{}")
    with pytest.raises(UserError, match="not a score"):
        collect(tmp_path)


def test_the_printed_table_says_it_all() -> None:
    console = Console(width=160, record=True, file=io.StringIO())
    show(scores(), console)
    text = console.export_text()
    assert "heads, uniform-40: 40.0% wrong, 160 steps" in text
    assert "14.0 ± 1.0 (50)" in text
    assert "0.800 ± 0.000" in text
