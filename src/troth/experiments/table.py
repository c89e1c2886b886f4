"""Measured values in rows: what an experiment makes, a CSV keeps, and a figure is drawn from."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from troth.data.files import atomic_path
from troth.errors import UserError

Cell = str | float


class Mean(NamedTuple):
    """The mean of runs that differ in their seed only.

    Attributes:
        value: the mean.
        error: its standard error; not a number for a single run.
    """

    value: float
    error: float


@dataclass(frozen=True, slots=True)
class Table:
    """One measurement a row.

    Attributes:
        columns: their names.
        rows: numbers and words, one a column.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def where(self, **values: Cell) -> Table:
        """Keep the rows that hold these values."""
        places = [(self.columns.index(name), value) for name, value in values.items()]
        return Table(self.columns, tuple(row for row in self.rows if all(row[at] == value for at, value in places)))

    def column(self, name: str) -> tuple[Cell, ...]:
        """Return a column."""
        at = self.columns.index(name)
        return tuple(row[at] for row in self.rows)

    def numbers(self, name: str) -> tuple[float, ...]:
        """Return a column of numbers."""
        return tuple(float(value) for value in self.column(name))

    def distinct(self, name: str) -> tuple[Cell, ...]:
        """Return a column's different values, in order of appearance."""
        return tuple(dict.fromkeys(self.column(name)))

    def mean(self, name: str, **values: Cell) -> Mean:
        """Return the mean of a column over the rows that hold these values, with its standard error."""
        return mean_of(self.where(**values).numbers(name))

    def curve(self, x: str, y: str, **values: Cell) -> tuple[list[float], list[float], list[float]]:
        """Return the different ``x``, and for each the mean of ``y`` and its standard error."""
        kept = self.where(**values)
        places = [float(place) for place in kept.distinct(x)]
        means = [kept.mean(y, **{x: place}) for place in places]
        return places, [mean.value for mean in means], [mean.error for mean in means]

    def save(self, path: Path) -> None:
        """Write a CSV, whole or not at all. Numbers keep six digits."""
        with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(self.columns)
            writer.writerows(
                [value if isinstance(value, str) else f"{value:.6g}" for value in row] for row in self.rows
            )

    @classmethod
    def load(cls, path: Path) -> Table:
        """Read what :meth:`save` wrote.

        Raises:
            UserError: if it is not there, or no table.
        """
        try:
            with path.open(newline="", encoding="utf-8") as file:
                columns, *rows = csv.reader(file)
        except FileNotFoundError:
            raise UserError("no such file", where=str(path), remedy="troth theory all writes them") from None
        except ValueError as error:
            raise UserError(f"no table ({error})", where=str(path)) from None
        if any(len(row) != len(columns) for row in rows):
            raise UserError("rows of different lengths", where=str(path))
        return cls(tuple(columns), tuple(tuple(_cell(value) for value in row) for row in rows))


def mean_of(values: Sequence[float]) -> Mean:
    """Return the mean and its standard error."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return Mean(mean, math.nan)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return Mean(mean, math.sqrt(variance / len(values)))


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table as the documentation has it."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def by_method(table: Table, x: str, y: str, show: Callable[[Mean], str], shown: Sequence[float] = ()) -> str:
    """Return a table with one row a method and one column for each (or each ``shown``) ``x``."""
    places = [place for place in table.distinct(x) if not shown or place in shown]
    rows = []
    for method in table.distinct("method"):
        kept = table.where(method=method)
        cells = [show(kept.mean(y, **{x: place})) if place in kept.distinct(x) else "–" for place in places]
        rows.append([str(method), *cells])
    return markdown([x, *(f"{place:g}" if isinstance(place, float) else str(place) for place in places)], rows)


def plus_minus(digits: int, factor: float = 1.0) -> Callable[[Mean], str]:
    """Return what writes a mean with its standard error."""

    def shown(mean: Mean) -> str:
        value = f"{factor * mean.value:.{digits}f}"
        return value if math.isnan(mean.error) else f"{value} ± {factor * mean.error:.{digits}f}"

    return shown


def _cell(value: str) -> Cell:
    try:
        return float(value)
    except ValueError:
        return value
