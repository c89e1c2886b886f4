"""Write the table of docs/explanations.md from the committed results.

    python -m tools.docs.pointing_table [--check]

``--check`` writes nothing and fails if the page is stale.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tools.docs.pages import GeneratedPage

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "pointing.json"


def generated() -> str:
    """Return everything that belongs between the markers."""
    content = json.loads(RESULTS.read_text(encoding="utf-8"))
    cases: dict[str, dict[str, float]] = {}
    for record in content["records"]:
        cases.setdefault(record["case"], {})[record["metric"]] = record["ours"]
    lines = [
        f"`{content['command']}`, ± one standard error of the drawings:",
        "",
        "| run | drawings | canvas | caption | hits % | share of the map in the quadrant % |",
        "|---|---|---|---|---|---|",
    ]
    for case, values in cases.items():
        recipe, _, game = case.partition(": ")
        split, canvas, *other = game.split(", ")
        cells = [
            f"{values[f'{metric}_percent']:.1f} ± {values[f'{metric}_percent standard_error']:.1f}"
            for metric in ("hit", "share")
        ]
        row = (f"`{recipe}`", split, canvas, "another" if other else "the drawing's", *cells)
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


PAGE = GeneratedPage(ROOT / "docs" / "explanations.md", "tools.docs.pointing_table", generated)

if __name__ == "__main__":
    sys.exit(PAGE.main(__doc__))
