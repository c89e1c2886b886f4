"""Two modalities against one, as the noise of their coordinates becomes uneven."""

from __future__ import annotations

from matplotlib.figure import Figure

from troth.experiments.base import COLOURS, MARKERS, Experiment, new_figure, plain_axes
from troth.experiments.table import Table, by_method, plus_minus
from troth.theory import (
    ContrastiveLoss,
    SpikedModel,
    fit_spectral,
    principal_components,
    sin_theta,
    unimodal_contrastive,
)

#: Standard deviations of the noise's log-variance over coordinates.
GRID = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0)
COUNT, NOISE, WRONG = 1000, 1.0, 0.3


def compute(seeds: int) -> Table:
    """Measure the share of the signal's subspace that each method misses."""
    rows: list[tuple[str | float, ...]] = []
    for seed in range(seeds):
        for heterogeneity in GRID:
            model = SpikedModel(noise=NOISE, heterogeneity=heterogeneity, seed=seed)
            basis, _ = model.bases()
            right, wrong = model.sample(COUNT), model.sample(COUNT, wrong=WRONG)
            linear = ContrastiveLoss.linear()
            encoders = {
                "two modalities": fit_spectral(right.x, right.y, linear, model.rank).encoders.image,
                f"two modalities, {WRONG:.0%} of pairs wrong": fit_spectral(
                    wrong.x, wrong.y, linear, model.rank
                ).encoders.image,
                "one modality, contrastive": unimodal_contrastive(right.x, model.rank),
                "one modality, principal components": principal_components(right.x, model.rank),
            }
            for method, encoder in encoders.items():
                error = float(sin_theta(encoder.mT, basis)) / model.rank**0.5
                rows.append((float(seed), heterogeneity, method, error))
    return Table(("seed", "heterogeneity", "method", "error"), tuple(rows))


def draw(table: Table) -> Figure:
    """Draw error against heterogeneity."""
    figure = new_figure()
    axes = figure.add_subplot()
    for method, colour, marker in zip(table.distinct("method"), COLOURS, MARKERS, strict=False):
        places, means, errors = table.curve("heterogeneity", "error", method=method)
        axes.errorbar(places, means, yerr=errors, color=colour, marker=marker, markersize=4, capsize=2, label=method)
    axes.set(
        xlabel="heterogeneity: standard deviation of the noise's log-variance",
        ylabel=r"$\|\sin\Theta\|_F / \sqrt{r}$",
        ylim=(0, 1),
    )
    plain_axes(axes)
    axes.legend(frameon=False, fontsize=9)
    return figure


EXPERIMENT = Experiment(
    "heterogeneity",
    "two modalities against one, as noise becomes uneven",
    compute,
    draw,
    lambda table: by_method(table, "heterogeneity", "error", plus_minus(3)),
    seeds=20,
)
