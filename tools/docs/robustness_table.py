"""Write the tables of docs/robustness.md from the committed results.

    python -m tools.docs.robustness_table [--check]

The results are ``results.parquet`` of ``troth bench robustness``, committed as benchmarks/results/robustness.parquet.
What has not been run is left out. ``--check`` writes nothing and fails if the page is stale.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tools.docs.pages import GeneratedPage

from troth.bench.results import Row, cells, headings, read_results, tables
from troth.bench.scores import Score

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "robustness.parquet"

REGIMES = {"heads": "Aligned heads", "small": "Small towers"}
KINDS = {
    "uniform": "captions moved among all pairs",
    "same-category": "captions moved within a category",
    "foreign": "captions of pairs outside the set",
}
NOTHING = "Nothing has been run yet."


def heading(regime: str, noise: str, rows: Sequence[Row]) -> str:
    """Return the line above a table."""
    kind = noise.rpartition("-")[0]
    steps = ", ".join(f"{count:,}" for count in sorted({row.steps for row in rows}))
    return f"**{REGIMES[regime]}, {noise}**: {KINDS[kind]}, {rows[0].true_rate:.1f}% wrong; {steps} steps"


def table_of(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the lines of one table."""
    names = headings()
    yield f"| {' | '.join(names)} |"
    yield "|---" + "|---:" * (len(names) - 1) + "|"
    for row in rows:
        yield f"| {' | '.join([row.method, *cells(row)])} |"


def blocks(scores: Sequence[Score]) -> str:
    """Return the tables of all settings that have been run."""
    found = [
        "\n".join([heading(regime, noise, rows), "", *table_of(rows)])
        for (regime, noise), rows in tables(scores).items()
    ]
    return "\n\n".join(found) or NOTHING


def generated() -> str:
    """Return everything that belongs between the markers."""
    return blocks(read_results(RESULTS)) if RESULTS.is_file() else NOTHING


PAGE = GeneratedPage(ROOT / "docs" / "robustness.md", "tools.docs.robustness_table", generated)

if __name__ == "__main__":
    sys.exit(PAGE.main(__doc__))
