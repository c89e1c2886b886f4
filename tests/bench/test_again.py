"""Another run of the yardstick, held against the committed table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks import robustness_again
from benchmarks.robustness_again import differences, main

from tests.bench.test_results import SCORE
from troth.bench.results import write_results
from troth.bench.scores import Score


def runs(*zero_shot: float) -> list[Score]:
    return [replace(SCORE, seed=seed, zero_shot=value) for seed, value in enumerate(zero_shot)]


def test_what_differs_by_more_than_the_errors_is_off() -> None:
    committed = runs(10.0, 12.0, 14.0)  # the standard error is 1.155
    one_seed = {each.test: each for each in differences(committed, runs(13.0))}
    assert (one_seed["zero_shot"].committed, one_seed["zero_shot"].again, one_seed["zero_shot"].seeds) == (10, 13, 1)
    assert one_seed["zero_shot"].errors == pytest.approx(3 / 1.1547, rel=1e-3)
    assert one_seed["zero_shot"].is_off
    assert not one_seed["retrieval"].is_off, "the same to the last bit, where seeds do not differ"
    close = {each.test: each for each in differences(committed, runs(11.0, 13.0, 15.0))}
    assert close["zero_shot"].errors == pytest.approx(0.866, rel=1e-3)
    assert not close["zero_shot"].is_off
    assert [each.errors for each in differences(committed[:2], runs(99.0))] == [None] * 3, "two seeds have no error"
    assert list(differences(committed, [replace(SCORE, noise="uniform-60")])) == []


def test_the_command_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(robustness_again, "COMMITTED", tmp_path / "committed.parquet")
    write_results(runs(10.0, 12.0, 14.0), tmp_path / "committed.parquet")
    for again, code in ((runs(11.0), 0), (runs(19.0), 1), ([], 1)):
        write_results(again, tmp_path / "again.parquet")
        assert main(str(tmp_path / "again.parquet")) == code
    assert "3 figures compared, 3 of them of three seeds or more: 1 more than 2 standard" in capsys.readouterr().out
    assert main(str(tmp_path / "none.parquet")) == 1
    assert "none.parquet: not the yardstick's results" in capsys.readouterr().out
    write_results(runs(10.0, 12.0), tmp_path / "committed.parquet")
    write_results(runs(10.0), tmp_path / "again.parquet")
    assert main(str(tmp_path / "again.parquet")) == 1, "nothing is known of the errors"
