"""The results of the yardstick: a row a run as parquet, and means over seeds for people."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from troth.bench.methods import METHODS, PLAIN, REGIMES
from troth.bench.scores import SCORE_NAME, TESTS, Score
from troth.bench.settings import SETTINGS, Setting
from troth.data import atomic_path
from troth.errors import UserError

RESULTS_NAME = "results.parquet"

_TYPES = {"str": pa.string(), "float": pa.float64(), "float | None": pa.float64(), "int": pa.int64()}
_SCHEMA = pa.schema([pa.field(item.name, _TYPES[str(item.type)]) for item in fields(Score)])

#: What the tests are called in tables.
TITLES = {"zero_shot": "zero-shot", "new_concepts": "new concepts", "retrieval": "retrieval"}
_ROWS = [method.name for method in METHODS]
_SETTINGS = [setting.name for setting in SETTINGS]


def collect(root: Path) -> list[Score]:
    """Return the scores of all finished runs in the yardstick's folder, in the order of the tables."""
    return ordered(Score.read(path) for path in (root / "runs").glob(f"*/*/{SCORE_NAME}"))


def ordered(scores: Iterable[Score]) -> list[Score]:
    """Return scores by regime, setting, row and seed; what is not known any more comes last."""

    def place(name: str, known: Sequence[str]) -> tuple[int, str]:
        return (known.index(name) if name in known else len(known), name)

    return sorted(
        scores,
        key=lambda score: (
            place(score.regime, REGIMES),
            place(score.noise, _SETTINGS),
            place(score.method, _ROWS),
            score.seed,
        ),
    )


def write_results(scores: Sequence[Score], path: Path) -> None:
    """Write a row a run as parquet, atomically."""
    with atomic_path(path) as temporary:
        pq.write_table(pa.Table.from_pylist([asdict(score) for score in scores], schema=_SCHEMA), temporary)


def read_results(path: Path) -> list[Score]:
    """Read what :func:`write_results` wrote. Raises UserError for another file."""
    try:
        rows = pq.read_table(path).to_pylist()
        return ordered(Score(**row) for row in rows)
    except (OSError, pa.ArrowInvalid, TypeError) as error:
        raise UserError(f"not the yardstick's results: {str(error).splitlines()[0]}", where=str(path)) from None


@dataclass(frozen=True)
class Mean:
    """A mean over seeds.

    Attributes:
        value: the mean.
        error: its standard error; None for one seed.
    """

    value: float
    error: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean:
        """Return the mean of at least one value with its standard error."""
        error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
        return cls(statistics.fmean(values), error)

    def text(self, digits: int) -> str:
        """Return it as tables have it."""
        return f"{self.value:.{digits}f}" + ("" if self.error is None else f" ± {self.error:.{digits}f}")


@dataclass(frozen=True)
class Row:
    """A method under one setting, over seeds.

    Attributes:
        method: its name.
        seeds: how many runs.
        tests: mean of each test, in percent.
        closed: how much of the gap that noise opens it closes, in percent for each test: 0 is plain InfoNCE on the
            same pairs, 100 plain InfoNCE on pairs without wrong captions. Means over the seeds that all three have;
            None where there are none, or InfoNCE lost nothing.
        auroc: of wrong pairs; None where there are none.
        average_precision: likewise.
        estimated_rate: share of wrong pairs as estimated, in percent; None if it never was.
        true_rate: the true one, in percent.
        steps: of the optimiser.
    """

    method: str
    seeds: int
    tests: dict[str, Mean]
    closed: dict[str, float | None]
    auroc: Mean | None
    average_precision: Mean | None
    estimated_rate: Mean | None
    true_rate: float
    steps: int


def tables(scores: Sequence[Score]) -> dict[tuple[str, str], list[Row]]:
    """Return the rows of each (regime, setting), in order."""
    groups: dict[tuple[str, str], dict[str, dict[int, Score]]] = {}
    for score in ordered(scores):
        groups.setdefault((score.regime, score.noise), {}).setdefault(score.method, {})[score.seed] = score
    found = {}
    for (regime, noise), methods in groups.items():
        clean = groups.get((regime, _clean(noise)), {}).get(PLAIN, {})
        found[regime, noise] = [_row(runs, methods.get(PLAIN, {}), clean) for runs in methods.values()]
    return found


def _clean(noise: str) -> str:
    return Setting.parse(noise).clean.name


def _row(runs: dict[int, Score], plain: dict[int, Score], clean: dict[int, Score]) -> Row:
    scores = list(runs.values())
    seeds = sorted(runs.keys() & plain.keys() & clean.keys())

    def mean(of: Callable[[Score], float | None]) -> Mean | None:
        values = [value for score in scores if (value := of(score)) is not None]
        return Mean.of(values) if values else None

    def closed(test: str) -> float | None:
        ours, base, best = (
            statistics.fmean(getattr(table[seed], test) for seed in seeds) if seeds else 0.0
            for table in (runs, plain, clean)
        )
        return 100 * (ours - base) / (best - base) if best > base else None

    return Row(
        method=scores[0].method,
        seeds=len(scores),
        tests={test: Mean.of([getattr(score, test) for score in scores]) for test in TESTS},
        closed={test: closed(test) for test in TESTS},
        auroc=mean(lambda score: score.auroc),
        average_precision=mean(lambda score: score.average_precision),
        estimated_rate=mean(lambda score: None if score.estimated_rate is None else 100 * score.estimated_rate),
        true_rate=100 * statistics.fmean(score.true_rate for score in scores),
        steps=scores[0].steps,
    )


def cells(row: Row) -> list[str]:
    """Return what a table says of a row, behind its name."""
    closed = ["–" if value is None else f"{value:.0f}" for value in row.closed.values()]
    tests = [f"{mean.text(1)} ({share})" for mean, share in zip(row.tests.values(), closed, strict=True)]
    found = [each.text(3) if each is not None else "–" for each in (row.auroc, row.average_precision)]
    return [*tests, *found, row.estimated_rate.text(1) if row.estimated_rate is not None else "–", f"{row.seeds}"]


def headings() -> list[str]:
    """Return the columns' names."""
    return ["method", *(f"{title} %" for title in TITLES.values()), "AUROC", "AP", "wrong, estimated %", "seeds"]


def title(regime: str, noise: str, rows: Sequence[Row]) -> str:
    """Return what a table is called."""
    steps = {row.steps for row in rows}
    wrong = f"{rows[0].true_rate:.1f}% wrong"
    return f"{regime}, {noise}: {wrong}, {', '.join(f'{count:,}' for count in sorted(steps))} steps"


def wide_console() -> Console:
    """Return where tables are printed: the terminal, or what a file or a pipe gets, which has no width of its own."""
    console = Console()
    return console if console.is_terminal else Console(width=130)


def show(scores: Sequence[Score], console: Console) -> None:
    """Print a table for each regime and setting."""
    for (regime, noise), rows in tables(scores).items():
        table = Table(title=title(regime, noise, rows))
        for number, heading in enumerate(headings()):
            table.add_column(heading, justify="right" if number else "left")
        for row in rows:
            table.add_row(row.method, *cells(row))
        console.print(table)
    console.print("± one standard error over seeds; in brackets the share of the noise gap closed, in %", markup=False)
