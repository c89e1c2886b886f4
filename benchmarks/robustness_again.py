"""Whether another run of the yardstick finds what the committed table says.

    python -m benchmarks.robustness_again runs/robustness/results.parquet

Every row of the results given, of the same regime, noise and method as a committed one, is held against it: the mean of
each test over the seeds that both have, and by how many of the committed row's standard errors the two differ: an error
is that of three seeds or more, and at least 0.1%, some two pictures of a test. The command fails if a figure with an
error is off by more than two of them, or if none has one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from troth.bench.results import Mean, read_results
from troth.bench.scores import TESTS, Score
from troth.errors import UserError

COMMITTED = Path(__file__).parent / "results" / "robustness.parquet"
#: How many of the committed standard errors a row may be off.
ALLOWED = 2.0
#: Three seeds may agree by chance; a picture or two that flip in the last bits are no difference.
LEAST_ERROR = 0.1


@dataclass(frozen=True)
class Difference:
    """A test of a row, then and now.

    Attributes:
        row: regime, noise and method.
        test: which test.
        seeds: how many seeds both have.
        committed: the mean over these, in percent.
        again: likewise, of the other run.
        error: the standard error of the committed row over all its seeds; None for fewer than three.
    """

    row: tuple[str, str, str]
    test: str
    seeds: int
    committed: float
    again: float
    error: float | None

    @property
    def errors(self) -> float | None:
        """By how many standard errors they differ; None if there is no error."""
        return None if self.error is None else abs(self.again - self.committed) / max(self.error, LEAST_ERROR)

    @property
    def is_off(self) -> bool:
        """Whether the difference is more than the errors explain."""
        return self.errors is not None and self.errors > ALLOWED


def by_row(scores: Sequence[Score]) -> dict[tuple[str, str, str], dict[int, Score]]:
    """Return scores by (regime, noise, method) and seed."""
    found: dict[tuple[str, str, str], dict[int, Score]] = {}
    for score in scores:
        found.setdefault((score.regime, score.noise, score.method), {})[score.seed] = score
    return found


def differences(committed: Sequence[Score], again: Sequence[Score]) -> Iterator[Difference]:
    """Yield the tests of all rows that both have."""
    then, now = by_row(committed), by_row(again)
    for row, runs in then.items():
        common = sorted(runs.keys() & now.get(row, {}).keys())
        if not common:
            continue
        for test in TESTS:
            means = [Mean.of([getattr(table[seed], test) for seed in common]).value for table in (runs, now[row])]
            error = Mean.of([getattr(score, test) for score in runs.values()]).error if len(runs) > 2 else None
            yield Difference(row, test, len(common), *means, error)


def show(found: Sequence[Difference]) -> None:
    """Print them."""
    table = Table("regime", "noise", "method", "test", "seeds", "committed %", "again %", "errors apart")
    for each in found:
        apart = "–" if each.errors is None else f"{each.errors:.2f}"
        table.add_row(*each.row, each.test, str(each.seeds), f"{each.committed:.2f}", f"{each.again:.2f}", apart)
    console = Console()
    (console if console.is_terminal else Console(width=130)).print(table)


def main(path: str) -> int:
    """Compare a file with the committed one; 1 if a figure is off, or none can be said to be not."""
    try:
        found = list(differences(read_results(COMMITTED), read_results(Path(path))))
    except UserError as error:
        print(error)
        return 1
    show(found)
    known = [each for each in found if each.errors is not None]
    off = [each for each in known if each.is_off]
    print(
        f"{len(found)} figures compared, {len(known)} of them of three seeds or more: "
        f"{len(off)} more than {ALLOWED:g} standard errors apart"
    )
    return 1 if off or not known else 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1]))
