"""The diagnostics as a page, and in a terminal; made from what was saved."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from markupsafe import Markup
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from troth.evaluate import Diagnostics
from troth.evaluate.distances import PAIR_KINDS
from troth.report import diagnostics_figures as figures
from troth.report.diagnostics_summary import data_sentence, rows, scale_sentence, subset_sentence
from troth.report.html import write_page

PAGE_NAME = "diagnostics.html"


def show_diagnostics(folder: Path, console: Console | None = None) -> Path:
    """Print what a folder of saved diagnostics holds, and draw its page beside it.

    Returns:
        the page.

    Raises:
        UserError: if the folder does not hold saved diagnostics.
    """
    console = console or Console()
    diagnostics = Diagnostics.load(folder)
    print_diagnostics(diagnostics, console)
    page = render_diagnostics(diagnostics, folder)
    console.print(f"written to {page}", highlight=False, markup=False)
    return page


def render_diagnostics(diagnostics: Diagnostics | Path, out: Path) -> Path:
    """Render the page ``diagnostics.html``, which loads nothing from anywhere, in the folder ``out``.

    Args:
        diagnostics: what was measured, or a folder :meth:`Diagnostics.save` wrote.
        out: the page's folder.

    Returns:
        the page's path.

    Raises:
        UserError: if the folder does not hold saved diagnostics.
    """
    data = diagnostics if isinstance(diagnostics, Diagnostics) else Diagnostics.load(diagnostics)
    scale = figures.scale_figure(
        data.scale, name="scale", description=f"Scale over training. {scale_sentence(data.scale)}"
    )
    return write_page(
        out / PAGE_NAME,
        "diagnostics.html.j2",
        data=data,
        rows=rows(data),
        scale=Markup(scale),
        scale_text=scale_sentence(data.scale),
        histograms=_histograms(data),
        subsets=_subsets(data),
    )


def _histograms(data: Diagnostics) -> list[dict[str, str | Markup]]:
    edges = [part.distances.edges for part in data.data]
    limits = min(one[0] for one in edges), max(one[-1] for one in edges)
    tallest = max(float(np.max(figures.shares(part.distances, kind))) for part in data.data for kind in PAIR_KINDS)
    drawn = []
    for number, part in enumerate(data.data):
        sentence = data_sentence(part)
        svg = figures.distances_figure(
            part.distances,
            limits=limits,
            tallest=tallest,
            name=f"distances-{number}",
            description=f"Histograms of distances in {part.name}. {sentence}",
        )
        title = "In the domain: " if part.in_domain else "Outside: "
        drawn.append({"svg": Markup(svg), "title": f"{title}{part.name}", "text": sentence})
    return drawn


def _subsets(data: Diagnostics) -> list[dict[str, str | Markup]]:
    drawn = []
    for number, part in enumerate(data.subsets):
        sentence = subset_sentence(part)
        svg = figures.subset_figure(
            part, name=f"subsets-{number}", description=f"Accuracy with some of the spheres on {part.task}. {sentence}"
        )
        drawn.append({"svg": Markup(svg), "title": part.task, "text": sentence})
    return drawn


def print_diagnostics(diagnostics: Diagnostics, console: Console) -> None:
    """Print a column a data set, then the accuracy with some of the spheres, the scale and the notes."""
    averaged = ", averaged weights" if diagnostics.weights == "average" else ""
    title = f"{escape(diagnostics.run)} at step {diagnostics.step:,}{averaged}"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for part in diagnostics.data:
        table.add_column(escape(part.name), justify="right")
    group = ""
    for row in rows(diagnostics):
        if row.group != group:
            group = row.group
            table.add_section()
            table.add_row(f"[bold]{group}[/]")
        table.add_row(f"  {row.label}", *(f"{value} ± {error}" if error else value for value, error in row.cells))
    console.print(table)
    if diagnostics.subsets:
        console.print("Top-1 with some of the spheres, %, mean ± sd over draws", highlight=False)
        table = Table()
        table.add_column("spheres", justify="right")
        for subsets in diagnostics.subsets:
            table.add_column(escape(subsets.task), justify="right")
        for number, size in enumerate(diagnostics.subsets[0].sizes):
            cells = [f"{100 * one.mean[number]:.1f} ± {100 * one.deviation[number]:.1f}" for one in diagnostics.subsets]
            table.add_row(str(size), *cells)
        console.print(table)
    lines = (
        f"Geometry: {diagnostics.geometry}. Distance: {diagnostics.distance}.",
        f"Scale: {scale_sentence(diagnostics.scale)}",
        *diagnostics.notes,
    )
    for line in lines:
        console.print(line, highlight=False, markup=False)
