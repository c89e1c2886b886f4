"""The same table in a terminal, and the words both share."""

from __future__ import annotations

import dataclasses
import io

import pytest
from rich.console import Console

from tests.report.factory import method, report
from troth.report import Estimate, ReportData, render_table
from troth.report.summary import duration, headline, table_rows


def printed(data: ReportData, width: int = 100) -> str:
    stream = io.StringIO()
    render_table(data, Console(file=stream, width=width))
    return stream.getvalue()


def test_the_table_has_the_numbers() -> None:
    text = printed(report(label="[red]Robust"))
    assert "[red]Robust" in text
    assert "40.0 ± 1.0" in text
    assert "46.0 ± 1.0 (+6.0)" in text
    assert "8.5 ± 0.5 (−0.5)" in text
    assert "0.910" in text
    assert "1 min 40 s" in text


@pytest.mark.parametrize("width", [60, 100, 250])
@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_it_fits_100_columns_whatever_is_in_it(count: int, width: int) -> None:
    methods = tuple(method(f"m{n}", f"A method with quite a long name, number {n}", 0.4, 1234.5) for n in range(count))
    data = dataclasses.replace(report(baseline=""), methods=methods)
    text = printed(data, width)
    assert max(len(line) for line in text.splitlines()) <= min(width, 100)
    for n in range(count):
        assert f"number {n}" in " ".join(text.replace("┃", " ").split()) or width == 60


@pytest.mark.parametrize(
    ("other", "error", "words"),
    [
        (0.46, 0.01, "Robust is better by 6.0 ± 1.4 points."),
        (0.34, 0.01, "Robust is worse by 6.0 ± 1.4 points."),
        (0.41, 0.01, "A difference of 1.0 ± 1.4 points is within two standard errors: no clear winner."),
        (0.46, None, "Robust is different by 6.0 points."),
    ],
)
def test_the_headline_claims_only_what_the_errors_allow(other: float, error: float | None, words: str) -> None:
    methods = (method("plain", "InfoNCE", 0.40, 9.0, error), method("robust", "Robust", other, 9.0, error))
    data = dataclasses.replace(report(), methods=methods)
    assert headline(data).endswith(words)


def test_a_paired_difference_replaces_the_independent_one() -> None:
    data = report()
    paired = dataclasses.replace(data.methods[1], differences={"top1": Estimate(0.06, 0.004)})
    row = table_rows(dataclasses.replace(data, methods=(data.methods[0], paired)))[0]
    assert (row.cells[1].delta, row.cells[1].delta_error, row.cells[1].verdict) == ("+6.0", "± 0.4", "better")
    assert row.cells[0].delta == ""


def test_lower_is_better_turns_the_verdict() -> None:
    methods = (method("plain", "InfoNCE", 0.4, 9.0), method("robust", "Robust", 0.4, 6.0))
    row = table_rows(dataclasses.replace(report(), methods=methods))[1]
    assert row.cells[1].verdict == "better"
    assert (row.cells[0].best, row.cells[1].best) == (False, True)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "–"), (3.14, "3.1 s"), (59, "59 s"), (61.2, "1 min 01 s"), (7205, "2 h 00 min")],
)
def test_durations_are_for_people(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_a_ceiling_is_shown_but_never_the_winner() -> None:
    methods = (
        method("plain", "InfoNCE", 0.20, 9.0, 0.01),
        method("robust", "Robust", 0.30, 9.0, 0.01),
        dataclasses.replace(method("clean", "Clean", 0.40, 9.0, 0.01), ceiling=True),
    )
    data = dataclasses.replace(report(), methods=methods)
    assert headline(data).endswith("Robust is better by 10.0 ± 1.4 points, 50% of the way to Clean (40.0%).")
    assert [cell.best for cell in table_rows(data)[0].cells] == [False, True, False]
    for value, where in ((0.29, "level with Clean (29.0%)"), (0.25, "beyond Clean (25.0%)")):
        lower = dataclasses.replace(method("clean", "Clean", value, 9.0, 0.01), ceiling=True)
        surpassed = dataclasses.replace(data, methods=(*methods[:2], lower))
        assert headline(surpassed).endswith(f"Robust is better by 10.0 ± 1.4 points, {where}.")
