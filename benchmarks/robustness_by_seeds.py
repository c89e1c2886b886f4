"""What a row of the yardstick has over others, seed by seed: two rows of a seed have the same pairs, wrong alike.

    python -m benchmarks.robustness_by_seeds heads uniform-40 robust "robust, no stages" InfoNCE

Of the committed table, or of another (``--results``): each test of the first method minus that of each other, the mean
over the seeds that both have and its standard error. What the rows of a seed have in common, such as pairs that happen
to be easier, cancels in the difference, and its error is often smaller than those of the rows.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.robustness_again import COMMITTED, by_row
from troth.bench.methods import REGIMES, method_named
from troth.bench.results import TITLES, Mean, read_results
from troth.bench.scores import TESTS, Score
from troth.bench.settings import Setting
from troth.errors import UserError


@dataclass(frozen=True)
class Lead:
    """What one method has over another in a test.

    Attributes:
        other: the other method.
        test: which test.
        seeds: how many seeds both have.
        mean: the mean difference in percentage points, with its standard error; negative where the other has more.
    """

    other: str
    test: str
    seeds: int
    mean: Mean


def leads(scores: Sequence[Score], regime: str, noise: str, method: str, others: Sequence[str]) -> Iterator[Lead]:
    """Yield what ``method`` has over each of the others in each test.

    Raises:
        UserError: where one of them has no run, or none with a seed of the method's.
    """
    rows = by_row(scores)
    for name in (method, *others):
        if (regime, noise, name) not in rows:
            raise UserError("no run of it in the table", where=f"{regime}, {noise}: {name}")
    runs = rows[regime, noise, method]
    for other in others:
        against = rows[regime, noise, other]
        common = sorted(runs.keys() & against.keys())
        if not common:
            raise UserError(f"{method!r} and {other!r} have no seed in common", where=f"{regime}, {noise}")
        for test in TESTS:
            found = [getattr(runs[seed], test) - getattr(against[seed], test) for seed in common]
            yield Lead(other, test, len(common), Mean.of(found))


def show(found: Sequence[Lead], method: str) -> None:
    """Print them, a row for each method."""
    table = Table(f"{method} minus", "seeds", *(f"{TITLES[test]} %" for test in TESTS))
    by_other: dict[str, list[Lead]] = {}
    for each in found:
        by_other.setdefault(each.other, []).append(each)
    for other, each_test in by_other.items():
        table.add_row(other, str(each_test[0].seeds), *(each.mean.text(2) for each in each_test))
    console = Console()
    (console if console.is_terminal else Console(width=130)).print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the differences asked for; 1 with a line if there are none."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.robustness_by_seeds")
    parser.add_argument("regime", choices=REGIMES)
    parser.add_argument("noise", help="such as uniform-40")
    parser.add_argument("method", help="a row of the table")
    parser.add_argument("others", nargs="+", help="rows that it is compared with")
    parser.add_argument("--results", type=Path, default=COMMITTED, help="another table of the yardstick")
    asked = parser.parse_args(arguments)
    try:
        noise = Setting.parse(asked.noise).name
        method, *others = dict.fromkeys(method_named(name).name for name in (asked.method, *asked.others))
        found = list(leads(read_results(asked.results), asked.regime, noise, method, others))
    except UserError as error:
        print(error)
        return 1
    show(found, method)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
