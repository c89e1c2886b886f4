"""The page of the yardstick has the committed numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tools.docs import robustness_table

from tests.bench.test_results import SCORE, scores
from troth.bench.results import write_results


def test_the_tables_are_those_of_the_results() -> None:
    page = robustness_table.PAGE.path.read_text(encoding="utf-8")
    assert robustness_table.PAGE.renewed(page) == page, "run python -m tools.docs.robustness_table"


def test_another_number_makes_the_page_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = robustness_table.PAGE.path.read_text(encoding="utf-8")
    monkeypatch.setattr(robustness_table, "RESULTS", tmp_path / "robustness.parquet")
    write_results([*scores(), replace(SCORE, regime="small", noise="foreign-40")], robustness_table.RESULTS)
    changed = robustness_table.PAGE.renewed(page)
    assert changed != page
    assert "**Aligned heads, uniform-40**: captions moved among all pairs, 40.0% wrong; 160 steps" in changed
    assert "| GCE | 14.0 ± 1.0 (50) |" in changed
    assert "| InfoNCE | 8.0 (–) |" in changed, "no clean runs of small towers yet"


def test_a_page_without_results_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(robustness_table, "RESULTS", tmp_path / "none.parquet")
    assert robustness_table.generated() == robustness_table.NOTHING
    write_results([], tmp_path / "none.parquet")
    assert robustness_table.generated() == robustness_table.NOTHING
