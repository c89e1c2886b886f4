"""Write the tables of docs/topology.md, laid out as the topology paper's 3, 4 and 6, from the committed results.

    python -m tools.docs.topology_table [--check]

``--check`` writes nothing and fails if the page is stale.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks.topology import GEOMETRIES, ROWS, STARTS, STRUCTURES
from tools.docs.pages import GeneratedPage

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "topology.json"

REGIMES = {"heads": "Aligned heads", "small": "Small towers"}
#: The columns, with what they are called in the results.
COLUMNS = {
    "image to text": "image to text",
    "text to image": "text to image",
    "zero-shot": "zero-shot",
    "concept": "new concepts",
    "linear probe": "linear probe",
}
#: Table 4's rows, all from e^2.64 and learnable: one token first, from one sphere to many.
BY_STRUCTURE = (
    *("sphere", "Ob(128, 2)", "Ob(32, 8)", "Ob(8, 32)", "Ob(2, 128)"),
    *("Multi(128, 2)", "Multi(32, 8)", "Multi(8, 32)"),
)
LEARNING = {True: "learnable", False: "fixed"}

Rows = Mapping[str, Mapping[str, float]]


def results() -> dict[str, dict[str, dict[str, float]]]:
    """Return the committed numbers, by regime, row and metric."""
    tables: dict[str, dict[str, dict[str, float]]] = {regime: {} for regime in REGIMES}
    for record in json.loads(RESULTS.read_text(encoding="utf-8"))["records"]:
        regime, _, row = record["case"].partition(": ")
        tables[regime].setdefault(row, {})[record["metric"]] = record["ours"]
    return tables


def cell(values: Mapping[str, float], metric: str, digits: int = 1) -> str:
    """Return a mean with its standard error over seeds; a dash where a run lacks the metric."""
    if metric not in values:
        return "–"
    return f"{values[metric]:.{digits}f} ± {values[f'{metric} standard error']:.{digits}f}"


def metrics(values: Mapping[str, float]) -> list[str]:
    """Return the cells of all columns."""
    return [cell(values, metric) for metric in COLUMNS]


def line(*cells: str) -> str:
    """Return a row of a table."""
    return f"| {' | '.join(cells)} |"


def head(*words: str) -> Iterator[str]:
    """Yield the first two lines of a table that ends in the columns."""
    yield line(*words, *COLUMNS.values())
    yield "|" + "---|" * (len(words) + len(COLUMNS))


def by_start(rows: Rows) -> Iterator[str]:
    """Yield table 3: a block for every start, learnable and fixed, with every geometry."""
    yield from head("first multiplier", "geometry")
    for word in LEARNING.values():
        for init in STARTS:
            for name in GEOMETRIES:
                values = rows.get(f"{name}, {init} {word}")
                if values:
                    yield line(f"{init}, {word}", name, *metrics(values))


def by_structure(rows: Rows) -> Iterator[str]:
    """Yield table 4: one number of dimensions in different numbers of spheres, of one token and of several."""
    yield from head("structure")
    for name in BY_STRUCTURE:
        values = rows.get(f"{name}, e^2.64 learnable")
        if values:
            yield line(name, *metrics(values))


def by_geometry(rows: Rows) -> Iterator[str]:
    """Yield table 6: table 3 by geometry, with the last multiplier and where it converged."""
    yield from head("geometry", "log first", "log last", "converged at epoch")
    for name in GEOMETRIES:
        for learnable, word in LEARNING.items():
            for init in STARTS:
                values = rows.get(f"{name}, {init} {word}")
                if values:
                    last = cell(values, "log scale", 2) if learnable else word
                    found = cell(values, "converged at epoch", 2) if learnable else word
                    yield line(name, init.removeprefix("e^"), last, found, *metrics(values))


LAYOUTS = {
    "By first multiplier, as table 3": by_start,
    "By structure, as table 4 (from e^2.64, learnable)": by_structure,
    "By geometry, as table 6": by_geometry,
}


def missing(rows: Rows) -> str:
    """Return which rows were not run, in a sentence."""
    names = [f"{name}, {init} {word}" for word in LEARNING.values() for init in STARTS for name in GEOMETRIES]
    names += [f"{name}, e^2.64 learnable" for name in STRUCTURES]
    assert sorted(names) == sorted(ROWS)
    left = [name for name in names if name not in rows]
    if left == names:
        return "No row was run."
    return f"Not run: {'; '.join(left)}." if left else "All rows were run."


def generated() -> str:
    """Return everything that belongs between the markers."""
    parts = []
    for regime, rows in results().items():
        parts += [f"## {REGIMES[regime]}", missing(rows)]
        if rows:
            tables = {title: "\n".join(lines(rows)) for title, lines in LAYOUTS.items()}
            parts += [f"### {REGIMES[regime]}: {title}\n\n{table}" for title, table in tables.items()]
    return "\n\n".join(parts)


PAGE = GeneratedPage(ROOT / "docs" / "topology.md", "tools.docs.topology_table", generated)

if __name__ == "__main__":
    sys.exit(PAGE.main(__doc__))
