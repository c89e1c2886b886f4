"""The drawings of the diagnostics: the scale's course, distances of pairs, accuracy with some of the spheres."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from troth.evaluate.diagnostics import ScaleCourse
from troth.evaluate.distances import PAIR_KINDS, PairDistances, PairKind
from troth.evaluate.token_subsets import SubsetAccuracy
from troth.report.figures import INK, RIGHT, SERIES, STYLE, WRONG, new_axes, thin, to_svg

#: Colour, dash and the dash's name of each kind of pairs.
_LINES: dict[PairKind, tuple[str, str]] = {
    "positive": (RIGHT, "-"),
    "negative": (WRONG, "--"),
    "image_image": (SERIES[0], "-."),
    "text_text": (SERIES[1], ":"),
}
_POINTS = 400


def scale_figure(scale: ScaleCourse, *, name: str, description: str) -> str:
    """Draw the scale by step, epochs above, and where it first keeps still for an epoch.

    Returns:
        an ``<svg>`` element, or an empty string if nothing was logged.
    """
    if not scale.step:
        return ""
    step, value = np.asarray(scale.step, dtype=float), np.asarray(scale.scale, dtype=float)
    with mpl.rc_context(STYLE):
        figure, axes = new_axes()
        axes.plot(*thin(step, value, _POINTS), color=SERIES[0])
        axes.set_xlim(0, step[-1] * 1.01)
        axes.set_ylim(0, value.max() * 1.12)
        axes.set_xlabel("training step")
        axes.set_ylabel("scale")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if scale.steps_per_epoch is not None:
            length = scale.steps_per_epoch
            epochs = axes.secondary_xaxis("top", functions=(lambda s: s / length, lambda e: e * length))
            epochs.set_xlabel("epoch")
            epochs.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            epochs.spines["top"].set_visible(False)
        if scale.converged is not None and scale.steps_per_epoch is not None:
            end = scale.converged + scale.steps_per_epoch
            axes.axvspan(scale.converged, end, color=RIGHT, alpha=0.14, linewidth=0)
            axes.axvline(scale.converged, color=RIGHT, linestyle="--", linewidth=1.4)
            axes.plot([scale.converged], [value[step == scale.converged][0]], "o", color=RIGHT, markersize=5)
        return to_svg(figure, name, description)


def distances_figure(
    data: PairDistances, *, limits: tuple[float, float], tallest: float, name: str, description: str
) -> str:
    """Draw which share of each kind of pairs is how far apart, on axes shared by all data sets.

    Args:
        data: the counts.
        limits: ends of the horizontal axis.
        tallest: the largest share in one interval, of any data set.
        name: unique on the page.
        description: what a reader who cannot see it is told.
    """
    edges = np.asarray(data.edges)
    with mpl.rc_context(STYLE):
        figure, axes = new_axes()
        for kind in PAIR_KINDS:
            color, dash = _LINES[kind]
            values = 100 * shares(data, kind)
            filled = np.flatnonzero(values)
            # Cut to where there are pairs: outlines would otherwise run along the axis to both ends.
            part = slice(int(filled[0]), int(filled[-1]) + 1)
            ends = edges[part.start : part.stop + 1]
            if kind == "positive":
                axes.stairs(values[part], ends, fill=True, color=color, alpha=0.2, linewidth=0)
            axes.stairs(values[part], ends, color=color, linewidth=1.6, linestyle=dash)
        axes.set_xlim(*limits)
        axes.set_ylim(0, 105 * tallest)
        axes.set_xlabel("distance")
        axes.set_ylabel("pairs of the kind, %")
        axes.yaxis.set_major_locator(MaxNLocator(5))
        return to_svg(figure, name, description)


def shares(data: PairDistances, kind: PairKind) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return the share of one kind of pairs in each interval."""
    return np.asarray(data.kinds[kind].counts, dtype=float) / data.kinds[kind].number


def subset_figure(subsets: SubsetAccuracy, *, name: str, description: str) -> str:
    """Draw accuracy by number of spheres: single draws, their mean with one standard deviation, and guessing."""
    size, mean = np.asarray(subsets.sizes, dtype=float), 100 * np.asarray(subsets.mean)
    deviation = 100 * np.asarray(subsets.deviation)
    with mpl.rc_context(STYLE):
        figure, axes = new_axes()
        for spheres, draws in zip(size, subsets.draws, strict=True):
            values = 100 * np.asarray(draws)
            axes.plot(
                np.full(len(draws), spheres), values, "o", color=SERIES[0], alpha=0.25, markersize=3.5, linewidth=0
            )
        axes.errorbar(
            size,
            mean,
            yerr=deviation,
            color=SERIES[0],
            marker="o",
            markersize=5,
            capsize=4,
            linewidth=1.8,
            elinewidth=1.4,
        )
        axes.axhline(100 * subsets.chance, color=INK, linestyle=":", linewidth=1.2)
        axes.set_xscale("log", base=2)
        axes.set_xticks(size)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_ylim(bottom=0)
        axes.set_xlabel(f"spheres, of {subsets.num_spheres}")
        axes.set_ylabel("top-1 accuracy, %")
        return to_svg(figure, name, description)
