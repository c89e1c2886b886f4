"""Write tables and figures of docs/theory/ from the committed measurements.

    python -m tools.docs.theory_pages [--from FOLDER]

``--from`` first takes over the measurements that ``troth theory`` wrote into a folder.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from tools.docs.pages import GeneratedPage

from troth.experiments import EXPERIMENTS, Experiment, Table, save_figure

DOCS = Path(__file__).resolve().parents[2] / "docs"


def measured(experiment: Experiment) -> Table:
    """Return the committed measurements."""
    return Table.load(DOCS / "theory" / f"{experiment.name}.csv")


def figure(experiment: Experiment) -> Path:
    """Return where the figure is."""
    return DOCS / "figures" / f"theory-{experiment.name}.png"


def page(experiment: Experiment) -> GeneratedPage:
    """Return the experiment's page, whose generated part is its table."""
    path = DOCS / "theory" / f"{experiment.name}.md"
    return GeneratedPage(path, "tools.docs.theory_pages", lambda: experiment.tabulate(measured(experiment)))


def main() -> None:
    """Write everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="folder", type=Path, help="where troth theory wrote")
    folder = parser.parse_args().folder
    for name, experiment in EXPERIMENTS.items():
        if folder is not None:
            shutil.copyfile(folder / f"{name}.csv", DOCS / "theory" / f"{name}.csv")
        save_figure(experiment.draw(measured(experiment)), figure(experiment))
        made = page(experiment)
        made.path.write_text(made.renewed(made.path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
