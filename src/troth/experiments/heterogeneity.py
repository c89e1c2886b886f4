"""Two modalities against one, as the noise of their coordinates becomes uneven."""

from __future__ import annotations

from matplotlib.figure import Figure

from troth.experiments.base import COLOURS, MARKERS, Experiment, new_figure, plain_axes
from troth.experiments.table import Table, by_method, plus_minus
from troth.theory import (
    SpikedModel,
    cross_covariance,
    principal_components,
    sin_theta,
    spectral_step,
    unimodal_contrastive,
)

#: Standard deviations of the noise's log-variance.
GRID = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0)
COUNT, NOISE, WRONG = 1000, 1.0, 0.3
#: Where the noise is uneven.
PLACES = {"coordinates": False, "random directions": True}


def compute(seeds: int) -> Table:
    """Measure the share of the signal's subspace that each method misses."""
    rows: list[tuple[str | float, ...]] = []
    for seed in range(seeds):
        for place, rotated in PLACES.items():
            for heterogeneity in GRID:
                model = SpikedModel(noise=NOISE, heterogeneity=heterogeneity, rotated_noise=rotated, seed=seed)
                for method, error in _errors(model).items():
                    rows.append((float(seed), place, heterogeneity, method, error))
    return Table(("seed", "uneven over", "heterogeneity", "method", "error"), tuple(rows))


def _errors(model: SpikedModel) -> dict[str, float]:
    right, wrong = model.sample(COUNT), model.sample(COUNT, wrong=WRONG)
    encoders = {
        "two modalities": spectral_step(cross_covariance(right.x, right.y), model.rank).image,
        f"two modalities, {WRONG:.0%} of pairs wrong": spectral_step(
            cross_covariance(wrong.x, wrong.y), model.rank
        ).image,
        "one modality, contrastive": unimodal_contrastive(right.x, model.rank),
        "one modality, principal components": principal_components(right.x, model.rank),
    }
    basis, _ = model.bases()
    return {name: float(sin_theta(encoder.mT, basis)) / model.rank**0.5 for name, encoder in encoders.items()}


def draw(table: Table) -> Figure:
    """Draw error against heterogeneity, one panel for each kind of noise."""
    figure = new_figure(9.0, 4.2)
    panels = figure.subplots(1, len(PLACES), sharey=True)
    for axes, place in zip(panels, table.distinct("uneven over"), strict=True):
        for method, colour, marker in zip(table.distinct("method"), COLOURS, MARKERS, strict=False):
            curve = {"method": method, "uneven over": place}
            places, means, errors = table.curve("heterogeneity", "error", **curve)
            axes.errorbar(
                places, means, yerr=errors, color=colour, marker=marker, markersize=4, capsize=2, label=method
            )
        axes.set(xlabel="standard deviation of the noise's log-variance", ylim=(0, 1))
        axes.set_title(f"noise uneven over {place}", fontsize=10)
        plain_axes(axes)
    panels[0].set_ylabel(r"$\|\sin\Theta\|_F / \sqrt{r}$")
    figure.legend(
        *panels[0].get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=2, fontsize=9
    )
    return figure


def tabulate(table: Table) -> str:
    """Write a table for each kind of noise."""
    parts = [
        f"Noise uneven over {place}:\n\n"
        + by_method(
            table.where(**{"uneven over": place}), "heterogeneity", "error", plus_minus(3), (0.0, 1.0, 2.0, 3.0)
        )
        for place in table.distinct("uneven over")
    ]
    return "\n\n".join(parts)


EXPERIMENT = Experiment(
    "heterogeneity",
    "two modalities against one, as noise becomes uneven",
    compute,
    draw,
    tabulate,
    seeds=20,
)
