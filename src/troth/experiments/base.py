"""What an experiment is: something that measures, something that draws what was measured, and words."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from troth.data.files import atomic_path
from troth.experiments.table import Table

#: Colours that people with any colour vision tell apart (Okabe and Ito 2008).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "P")


@dataclass(frozen=True, slots=True)
class Experiment:
    """An experiment of the theory.

    Attributes:
        name: as the command line has it.
        about: what it shows, in a line.
        compute: measures, given how many seeds.
        draw: draws a figure of the measured table, and of nothing else.
        tabulate: writes the table as its page has it, in Markdown.
        seeds: how many by default.
    """

    name: str
    about: str
    compute: Callable[[int], Table]
    draw: Callable[[Table], Figure]
    tabulate: Callable[[Table], str]
    seeds: int

    def run(self, folder: Path, seeds: int | None = None) -> tuple[Path, Path]:
        """Measure, and write ``NAME.csv`` and ``NAME.png`` into the folder; return both."""
        table = self.compute(seeds or self.seeds)
        values, picture = folder / f"{self.name}.csv", folder / f"{self.name}.png"
        table.save(values)
        save_figure(self.draw(Table.load(values)), picture)
        return values, picture


def new_figure(width: float = 7.0, height: float = 4.0) -> Figure:
    """Return an empty figure, in inches."""
    figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plain_axes(axes: object) -> None:
    """Leave of the axes what is read: no box, a faint grid."""
    axes.grid(alpha=0.25)  # type: ignore[attr-defined]
    axes.spines[["top", "right"]].set_visible(False)  # type: ignore[attr-defined]


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG of at most 256 colours, which lines need no more of, whole or not at all."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    with atomic_path(path) as temporary, Image.open(drawn) as picture:
        picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(temporary, format="PNG", optimize=True)
