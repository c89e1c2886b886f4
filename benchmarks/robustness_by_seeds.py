"""What a row of the yardstick has over others, seed by seed: the same pairs, wrong in the same way, under each.

    python -m benchmarks.robustness_by_seeds heads uniform-40 robust "robust, no stages" InfoNCE

Of the committed table, or of another (``--results``): for each method after the first, each test of the first less that
of the other, the mean over the seeds that both have and its standard error. What seeds have in common, such as pairs
that are easier, is not in that error, which is therefore often smaller than those of the rows.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.robustness_again import COMMITTED, by_row
from troth.bench.methods import REGIMES
from troth.bench.results import Mean, read_results
from troth.bench.scores import TESTS, Score
from troth.bench.settings import SETTINGS
from troth.errors import UserError


@dataclass(frozen=True)
class Lead:
    """What one method has over another in a test.

    Attributes:
        other: the other method.
        test: which test.
        seeds: how many seeds both have.
        mean: the mean difference in percent points, with its standard error.
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
    runs = rows.get((regime, noise, method), {})
    for other in others:
        against = rows.get((regime, noise, other), {})
        common = sorted(runs.keys() & against.keys())
        if not common:
            raise UserError(f"{method!r} and {other!r} have no seed in common at {noise}", where=regime)
        for test in TESTS:
            found = [getattr(runs[seed], test) - getattr(against[seed], test) for seed in common]
            yield Lead(other, test, len(common), Mean.of(found))


def show(found: Sequence[Lead], method: str) -> None:
    """Print them, a row for each method."""
    by_other: dict[str, list[Lead]] = {}
    for each in found:
        by_other.setdefault(each.other, []).append(each)
    table = Table(f"{method} less", "seeds", *(f"{test.replace('_', ' ')} %" for test in TESTS))
    for other, each_test in by_other.items():
        table.add_row(other, str(each_test[0].seeds), *(each.mean.text(2) for each in each_test))
    console = Console()
    (console if console.is_terminal else Console(width=130)).print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the differences asked for; 1 with a line if there are none."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.robustness_by_seeds")
    parser.add_argument("regime", choices=REGIMES)
    parser.add_argument("noise", choices=[setting.name for setting in SETTINGS])
    parser.add_argument("method", help="a row of the table")
    parser.add_argument("others", nargs="+", help="rows that it is compared with")
    parser.add_argument("--results", type=Path, default=COMMITTED, help="another table of the yardstick")
    asked = parser.parse_args(arguments)
    try:
        found = list(leads(read_results(asked.results), asked.regime, asked.noise, asked.method, asked.others))
    except UserError as error:
        print(error)
        return 1
    show(found, asked.method)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
