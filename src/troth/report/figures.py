"""Charts as SVG for the page: they take the page's fonts, and its colours in light and in dark.

Every colour a chart is drawn with is a placeholder that becomes a CSS variable of the page, so that one drawing serves
both colour schemes. Legends are the page's: they wrap where the page is narrow, and nothing a user wrote gets into a
drawing but its description.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from troth.report.data import Curve, Histogram, MethodResult

Float64 = npt.NDArray[np.float64]

#: How many methods have a colour of their own; more begin again, with another line.
NUM_SERIES = 6
_DASHES = ("-", "--", ":")

#: Placeholders of the page's colours.
INK, GRID, RIGHT, WRONG = "#010101", "#020202", "#030303", "#040404"
SERIES = tuple(f"#1000{number:02x}" for number in range(NUM_SERIES))
_VARIABLES = {
    INK: "var(--muted)",
    GRID: "var(--line)",
    RIGHT: "var(--right)",
    WRONG: "var(--wrong)",
    **{color: f"var(--series-{number})" for number, color in enumerate(SERIES)},
}

#: Longer curves are thinned to this many points: no screen shows more, and the page stays small.
_RAW_POINTS, _SMOOTH_POINTS = 500, 200

#: What every drawing is made under.
STYLE: Any = {
    "svg.fonttype": "none",
    "font.size": 9.5,
    "font.family": "DejaVu Sans",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GRID,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}


def curves(
    methods: Sequence[MethodResult],
    kind: str,
    *,
    label: str,
    name: str,
    description: str,
    smoothed: bool = False,
    from_zero: bool = False,
) -> str:
    """Draw one curve a method.

    Args:
        methods: in the order of their colours.
        kind: ``"loss_curve"`` or ``"scale_curve"``.
        label: of the vertical axis.
        name: unique on the page; prefixes every id of the drawing.
        description: what a reader who cannot see it is told.
        smoothed: whether to draw the running mean, over the single values in a lighter line.
        from_zero: whether the vertical axis starts at 0.

    Returns:
        an ``<svg>`` element, or an empty string if no method has a point.
    """
    with mpl.rc_context(STYLE):
        figure, axes = new_axes()
        drawn = 0
        for number, method in enumerate(methods):
            curve: Curve = getattr(method, kind)
            step, value = np.asarray(curve.step, dtype=float), np.asarray(curve.value, dtype=float)
            if not step.size:
                continue
            drawn += 1
            color, dash = SERIES[number % NUM_SERIES], _DASHES[number // NUM_SERIES % len(_DASHES)]
            smooth = _running_mean(value) if smoothed else value
            if smooth is not value:
                axes.plot(*thin(step, value, _RAW_POINTS), color=color, linewidth=0.7, alpha=0.3)
            step, smooth = thin(step, smooth, _SMOOTH_POINTS)
            axes.plot(step, smooth, color=color, linestyle=dash)
        if not drawn:
            return ""
        axes.set_xlabel("training step")
        axes.set_ylabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if from_zero:
            axes.set_ylim(bottom=0)
        axes.margins(x=0.01)
        return to_svg(figure, name, description)


def histogram(data: Histogram, *, limits: tuple[float, float], tallest: float, name: str, description: str) -> str:
    """Draw how many right and wrong pairs have each similarity, on axes shared by all methods.

    Args:
        data: the counts.
        limits: ends of the horizontal axis.
        tallest: the highest count of any method.
        name: unique on the page.
        description: what a reader who cannot see it is told.

    Returns:
        an ``<svg>`` element, or an empty string without counts.
    """
    if not data.edges:
        return ""
    edges = np.asarray(data.edges, dtype=float)
    with mpl.rc_context(STYLE):
        figure, axes = new_axes()
        for counts, color, dash in ((data.right, RIGHT, "-"), (data.wrong, WRONG, "--")):
            values = np.asarray(counts, dtype=float)
            filled = np.flatnonzero(values)
            if not filled.size:
                continue
            # Cut to where there are pairs: outlines would otherwise run along the axis to both ends.
            part = slice(int(filled[0]), int(filled[-1]) + 1)
            values, ends = values[part], edges[part.start : part.stop + 1]
            axes.stairs(values, ends, fill=True, color=color, alpha=0.22, linewidth=0)
            axes.stairs(values, ends, color=color, linewidth=1.6, linestyle=dash)
        axes.set_xlim(*limits)
        axes.set_ylim(0, tallest * 1.05)
        axes.set_xlabel("similarity of picture and caption")
        axes.set_ylabel("training pairs")
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        if tallest >= 10_000:
            axes.yaxis.set_major_formatter(EngFormatter(sep=""))
        return to_svg(figure, name, description)


def shared_limits(histograms: Sequence[Histogram]) -> tuple[tuple[float, float], float]:
    """Return the horizontal range and the highest count over all histograms that have any."""
    filled = [data for data in histograms if data.edges]
    if not filled:
        return (0.0, 1.0), 1.0
    low, high = min(data.edges[0] for data in filled), max(data.edges[-1] for data in filled)
    return (low, high), max(max((*data.right, *data.wrong, 1.0)) for data in filled)


def new_axes() -> tuple[Figure, Any]:
    """Return a figure of the page's size, and its axes; call it under :data:`STYLE`."""
    figure = Figure(figsize=(5.2, 2.9), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.add_subplot()


def thin(step: Float64, value: Float64, most: int) -> tuple[Float64, Float64]:
    """Keep about ``most`` evenly spaced points, the first and the last among them."""
    if step.size <= most:
        return step, value
    kept = np.linspace(0, step.size - 1, most).round().astype(np.int64)
    return step[kept], value[kept]


def _running_mean(value: Float64) -> Float64:
    """Average over a twentieth of the curve, the window cut off at both ends; short curves stay as they are."""
    half = value.size // 40
    if half < 1:
        return value
    total = np.concatenate([[0.0], np.cumsum(value)])
    centre = np.arange(value.size)
    first, last = np.maximum(centre - half, 0), np.minimum(centre + half + 1, value.size)
    mean: Float64 = (total[last] - total[first]) / (last - first)
    return mean


def to_svg(figure: Figure, name: str, description: str) -> str:
    """Return the figure as an ``<svg>`` element in the page's colours and typeface.

    Args:
        figure: drawn in the placeholders above.
        name: unique on the page; prefixes every id of the drawing.
        description: what a reader who cannot see it is told.
    """
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    text = re.sub(r'xlink:href="#', f'xlink:href="#{name}-', text)
    # The page's own typeface replaces matplotlib's; sizes stay.
    text = re.sub(r"font(-family)?: ([\d.]+px) [^;\"]*", r"font-size: \2", text)
    for color, variable in _VARIABLES.items():
        text = text.replace(color, variable)
    opening = f'<svg role="img" aria-label="{html.escape(description, quote=True)}"'
    text = text.replace("<svg", opening, 1)
    return re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1), count=1
    )
