"""What wrong pairs cost: the signal shrinks by (1 - p), its subspace stays, and noise counts for more."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from troth.experiments.base import COLOURS, MARKERS, Experiment, new_figure, plain_axes
from troth.experiments.table import Table, by_method, plus_minus
from troth.theory import (
    ContrastiveLoss,
    LinearEncoders,
    PairedSample,
    SpikedModel,
    contrastive_cross_covariance,
    fit_spectral,
    sin_theta,
)

#: Fractions of wrong pairs.
GRID = tuple(round(0.1 * step, 1) for step in range(9))
COUNT, NOISE = 400, 0.6
MEMBERS = {
    "linear": ContrastiveLoss.linear(),
    "generalised cross-entropy, q = 0.7, τ = 2": ContrastiveLoss.generalized_cross_entropy(0.7, 2.0),
    "InfoNCE, τ = 20": ContrastiveLoss.infonce(20.0),
    "InfoNCE, τ = 5": ContrastiveLoss.infonce(5.0),
}


def compute(seeds: int) -> Table:
    """Measure the signal left in the cross-covariance, relative to no wrong pairs, and the subspace's error."""
    rows: list[tuple[str | float, ...]] = []
    for seed in range(seeds):
        model = SpikedModel(noise=NOISE, seed=seed)
        for name, loss in MEMBERS.items():
            whole = 0.0
            for fraction in GRID:
                signal, error = _fitted(model, model.sample(COUNT, wrong=fraction), loss)
                whole = whole or signal
                rows.append((float(seed), fraction, name, signal / whole, error))
    return Table(("seed", "wrong", "method", "signal", "error"), tuple(rows))


def _fitted(model: SpikedModel, sample: PairedSample, loss: ContrastiveLoss) -> tuple[float, float]:
    found: LinearEncoders = fit_spectral(sample.x, sample.y, loss, model.rank, tolerance=1e-3).encoders
    image, text = model.bases()
    covariance = contrastive_cross_covariance(sample.x, sample.y, found, loss)
    signal = float((image.mT @ covariance @ text).trace()) / model.rank
    return signal, float(sin_theta(found.image.mT, image)) / model.rank**0.5


def draw(table: Table) -> Figure:
    """Draw signal and error against the fraction of wrong pairs, with the predictions of the linear member."""
    figure = new_figure(9.0, 4.2)
    left, right = figure.subplots(1, 2)
    for method, colour, marker in zip(MEMBERS, COLOURS, MARKERS, strict=False):
        for axes, column in ((left, "signal"), (right, "error")):
            places, means, errors = table.curve("wrong", column, method=method)
            axes.errorbar(
                places,
                means,
                yerr=errors,
                color=colour,
                marker=marker,
                markersize=4,
                capsize=2,
                label=method,
                **emphasis(method),
            )
    fractions = np.linspace(0, max(GRID), 100)
    left.plot(fractions, 1 - fractions, "k--", linewidth=1, label="predicted: 1 − p, and error / (1 − p)", zorder=5)
    clean = table.mean("error", method="linear", wrong=0.0).value
    right.plot(fractions, clean / (1 - fractions), "k--", linewidth=1, zorder=5)
    left.set(xlabel="fraction p of wrong pairs", ylabel="signal in S(β), relative to p = 0", ylim=(0, 1.05))
    right.set(xlabel="fraction p of wrong pairs", ylabel=r"$\|\sin\Theta\|_F / \sqrt{r}$", ylim=(0, 0.8))
    for axes in (left, right):
        plain_axes(axes)
    figure.legend(*left.get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=2, fontsize=9)
    return figure


def emphasis(method: str) -> dict[str, float]:
    """Return how the linear member is drawn: others lie upon it."""
    return {"linewidth": 4.0, "alpha": 0.5} if method == "linear" else {}


def tabulate(table: Table) -> str:
    """Write both quantities, with the predictions as rows of their own."""
    shown = (0.0, 0.2, 0.4, 0.6, 0.8)
    clean = table.mean("error", method="linear", wrong=0.0).value
    signal = by_method(table, "wrong", "signal", plus_minus(3), shown)
    error = by_method(table, "wrong", "error", plus_minus(3), shown)
    predicted = [
        f"| *predicted* | {' | '.join(f'{value:.3f}' for value in values)} |"
        for values in ([1 - fraction for fraction in shown], [clean / (1 - fraction) for fraction in shown])
    ]
    return (
        f"Signal, relative to p = 0:\n\n{signal}\n{predicted[0]}\n\nError of the subspace:\n\n{error}\n{predicted[1]}"
    )


EXPERIMENT = Experiment(
    "wrong-pairs", "what wrong pairs cost, against the prediction 1 - p", compute, draw, tabulate, seeds=8
)
