"""How fast the signal's subspace is found, as samples become more."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from troth.experiments.base import COLOURS, MARKERS, Experiment, new_figure, plain_axes
from troth.experiments.table import Table, markdown, mean_of, plus_minus
from troth.theory import (
    SpikedModel,
    cross_covariance,
    principal_components,
    sin_theta,
    spectral_step,
    unimodal_contrastive,
)

GRID = tuple(2**power for power in range(9, 16))
NOISE, HETEROGENEITY = 1.0, 1.0
FRACTIONS = (0.0, 0.4, 0.8)
#: Slopes are those of the larger half: the rate is an asymptotic one.
FITTED = GRID[len(GRID) // 2 :]


def compute(seeds: int) -> Table:
    """Measure the error of the subspace for growing samples of uneven noise."""
    rows: list[tuple[str | float, ...]] = []
    for seed in range(seeds):
        model = SpikedModel(noise=NOISE, heterogeneity=HETEROGENEITY, seed=seed)
        basis, _ = model.bases()
        for count in GRID:
            encoders = {}
            for fraction in FRACTIONS:
                sample = model.sample(count, wrong=fraction)
                name = f"two modalities, {fraction:.0%} wrong"
                encoders[name] = spectral_step(cross_covariance(sample.x, sample.y), model.rank).image
            x = model.sample(count).x
            encoders["one modality, contrastive"] = unimodal_contrastive(x, model.rank)
            encoders["one modality, principal components"] = principal_components(x, model.rank)
            for method, encoder in encoders.items():
                error = float(sin_theta(encoder.mT, basis)) / model.rank**0.5
                rows.append((float(seed), float(count), method, error))
    return Table(("seed", "samples", "method", "error"), tuple(rows))


def slopes(table: Table, method: str) -> list[float]:
    """Return each seed's slope of log error against log samples, over ``FITTED``."""
    found = []
    for seed in table.distinct("seed"):
        kept = table.where(method=method, seed=seed)
        points = [
            (count, error)
            for count, error in zip(kept.numbers("samples"), kept.numbers("error"), strict=True)
            if count in FITTED
        ]
        counts, errors = zip(*points, strict=True)
        found.append(float(np.polyfit(np.log(counts), np.log(errors), 1)[0]))
    return found


def draw(table: Table) -> Figure:
    """Draw error against samples, both logarithmic."""
    figure = new_figure(7.0, 4.4)
    axes = figure.add_subplot()
    for method, colour, marker in zip(table.distinct("method"), COLOURS, MARKERS, strict=False):
        places, means, errors = table.curve("samples", "error", method=method)
        axes.errorbar(places, means, yerr=errors, color=colour, marker=marker, markersize=4, capsize=2, label=method)
    clean = table.mean("error", method="two modalities, 0% wrong", samples=float(GRID[-1])).value
    line = np.array(GRID[-4:], dtype=float)
    axes.plot(line, 0.75 * clean * (GRID[-1] / line) ** 0.5, "k--", linewidth=1, label="slope −1/2")
    axes.set(xscale="log", yscale="log", xlabel="pairs n", ylabel=r"$\|\sin\Theta\|_F / \sqrt{r}$")
    axes.set_xticks(GRID, [f"{count:,}" for count in GRID])
    axes.minorticks_off()
    axes.set_yticks([0.03, 0.1, 0.3, 1.0], ["0.03", "0.1", "0.3", "1"])
    plain_axes(axes)
    figure.legend(*axes.get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=2, fontsize=9)
    return figure


def tabulate(table: Table) -> str:
    """Write errors at some numbers of samples, and the slopes."""
    shown, error = (GRID[0], GRID[3], GRID[-1]), plus_minus(3)
    rows = []
    for method in table.distinct("method"):
        errors = [error(table.mean("error", method=method, samples=float(count))) for count in shown]
        rows.append([str(method), *errors, error(mean_of(slopes(table, str(method))))])
    header = ["method", *(f"error, n = {count:,}" for count in shown), f"slope from n = {FITTED[0]:,}"]
    return markdown(header, rows)


EXPERIMENT = Experiment("rate", "the subspace's error against the number of pairs", compute, draw, tabulate, seeds=10)
