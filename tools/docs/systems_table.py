"""Write the tables of docs/training_systems.md from the committed results.

    python -m tools.docs.systems_table [--check]

``--check`` writes nothing and fails if the page is stale.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from tools.docs.pages import GeneratedPage

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "training_systems.json"

#: The columns, with what they are called in the results.
COLUMNS = {
    "zero-shot": "zero-shot",
    "concept": "new concepts",
    "retrieval": "retrieval",
    "linear probe": "linear probe",
    "knn": "k-NN",
    "ari": "ARI",
    "ami": "AMI",
}
#: What only some systems have.
SHARES = {
    "features share %": "encoding",
    "k-means share %": "k-means",
    "detected right %": "detected pairs that are right",
}
REGIMES = {"heads": "Aligned heads", "small": "Small towers"}


def results() -> dict[str, dict[str, float]]:
    """Return the committed numbers, by case and metric."""
    table: dict[str, dict[str, float]] = {}
    for record in json.loads(RESULTS.read_text(encoding="utf-8"))["records"]:
        table.setdefault(record["case"], {})[record["metric"]] = record["ours"]
    return table


def cell(values: dict[str, float], metric: str) -> str:
    """Return a mean with its standard error over seeds."""
    error = values.get(f"{metric} standard error")
    return f"{values[metric]:.1f}" + ("" if error is None else f" ± {error:.1f}")


def table_of(regime: str, cases: dict[str, dict[str, float]]) -> Iterator[str]:
    """Yield the lines of one regime's table."""
    yield f"**{REGIMES[regime]}**"
    yield ""
    yield "| system | " + " | ".join(COLUMNS.values()) + " |"
    yield "|---|" + "---|" * len(COLUMNS)
    for name, values in cases.items():
        yield f"| {name} | " + " | ".join(cell(values, metric) for metric in COLUMNS) + " |"
    shares = [
        f"{name}: " + ", ".join(f"{word} {cell(values, metric)}" for metric, word in SHARES.items() if metric in values)
        for name, values in cases.items()
        if any(metric in values for metric in SHARES)
    ]
    if shares:
        yield ""
        yield "Shares, in percent: of an episode's time, or of the detected pairs of the last steps."
        yield ""
        yield from (f"- {line}" for line in shares)


def generated() -> str:
    """Return everything that belongs between the markers."""
    found = results()
    tables = []
    for regime in REGIMES:
        cases = {case.partition(": ")[2]: values for case, values in found.items() if case.startswith(f"{regime}: ")}
        if cases:
            tables.append("\n".join(table_of(regime, cases)))
    return "\n\n".join(tables)


PAGE = GeneratedPage(ROOT / "docs" / "training_systems.md", "tools.docs.systems_table", generated)

if __name__ == "__main__":
    sys.exit(PAGE.main(__doc__))
