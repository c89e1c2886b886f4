"""What unpaired images and captions add to 300 pairs: the published synthetic experiment, and what it rests on."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from matplotlib.figure import Figure
from torch import Tensor

from troth.experiments.base import COLOURS, MARKERS, Experiment, new_figure, plain_axes
from troth.experiments.table import Mean, Table, by_method, plus_minus
from troth.theory import (
    Detection,
    LinearEncoders,
    SpikedModel,
    Training,
    first_encoders,
    matching_accuracy,
    train_paired,
    train_unpaired,
)

#: Unpaired samples of each side.
GRID = tuple(range(500, 5001, 500))
#: The accuracies that the public notebook shows after the second stage, of one run each.
PUBLISHED = (0.448, 0.521, 0.567, 0.577, 0.592, 0.587, 0.596, 0.601, 0.594, 0.596)
PAIRS, CANDIDATES = 300, 10_000
#: Pairs that choose the best model, where that one judges.
VALIDATION = 500


@dataclass(frozen=True, slots=True)
class Variant:
    """How the second stage reads and detects.

    Attributes:
        detection: which pairs.
        whole: read everything as one batch.
        grid: for which numbers of samples.
    """

    detection: Detection
    whole: bool = False
    grid: tuple[int, ...] = GRID


VARIANTS: Mapping[str, Variant] = {
    "aligned order, top (variant A, published)": Variant(Detection("top")),
    "aligned order, argmax, best judges (variant B)": Variant(
        Detection("argmax", judge="best"), grid=(500, 1000, 2000, 5000)
    ),
    "aligned order, mutual": Variant(Detection("mutual"), grid=(500, 1000, 2000, 5000)),
    "independent orders, one batch, top": Variant(Detection("top", order="independent"), whole=True, grid=(500, 1000)),
    "independent orders, top": Variant(Detection("top", order="independent"), grid=(500, 1000, 2000)),
}


def compute(seeds: int) -> Table:
    """Measure top-1 matching among held-out pairs, all seeds side by side."""
    models = [SpikedModel(seed=seed) for seed in range(seeds)]
    pairs, unpaired, test, validation = (
        _stacked(models, count, draw) for draw, count in enumerate((PAIRS, max(GRID), CANDIDATES, VALIDATION))
    )
    first = first_encoders(seeds, models[0].rank, models[0].image_dim, models[0].text_dim)
    paired, optimizer = train_paired(first, *pairs, Training())
    rows = _rows("pairs alone", 0, paired, test)
    for name, variant in VARIANTS.items():
        for count in variant.grid:
            training = replace(Training(), batch_size=count) if variant.whole else Training()
            trained = train_unpaired(
                paired,
                unpaired[0][:, :count],
                unpaired[1][:, :count],
                training,
                variant.detection,
                copy.deepcopy(optimizer),
                lambda encoders: matching_accuracy(encoders, *validation),
            )
            rows += _rows(name, count, trained, test)
    return Table(("seed", "samples", "method", "accuracy"), tuple(rows))


def _stacked(models: list[SpikedModel], count: int, draw: int) -> tuple[Tensor, Tensor]:
    samples = [model.sample(count, draw=draw) for model in models]
    return torch.stack([each.x.float() for each in samples]), torch.stack([each.y.float() for each in samples])


def _rows(
    method: str, count: int, encoders: LinearEncoders, test: tuple[Tensor, Tensor]
) -> list[tuple[str | float, ...]]:
    accuracies = matching_accuracy(encoders, *test).tolist()
    return [(float(seed), float(count), method, accuracy) for seed, accuracy in enumerate(accuracies)]


def draw(table: Table) -> Figure:
    """Draw accuracy against the number of unpaired samples."""
    figure = new_figure(7.5, 4.4)
    axes = figure.add_subplot()
    methods = [method for method in table.distinct("method") if method != "pairs alone"]
    # Points of one N stand side by side, so that none hides another.
    for method, colour, marker, shift in zip(methods, COLOURS, MARKERS, (0, -45, 45, 0, 0), strict=False):
        samples, means, errors = table.curve("samples", "accuracy", method=method)
        places = [count + shift for count in samples]
        axes.errorbar(places, means, yerr=errors, color=colour, marker=marker, markersize=4, capsize=2, label=method)
    alone = table.mean("accuracy", method="pairs alone")
    axes.axhline(alone.value, color="0.35", linestyle="--", linewidth=1, label="300 pairs alone")
    axes.axhspan(*_band(alone), color="0.35", alpha=0.15, linewidth=0)
    axes.plot(GRID, PUBLISHED, "x", color="black", markersize=6, label="published, one run each", zorder=5)
    axes.set(
        xlabel="unpaired samples of each side", ylabel="top-1 among 10,000 pairs", ylim=(-0.02, 0.68), xlim=(300, 5200)
    )
    plain_axes(axes)
    figure.legend(*axes.get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=2, fontsize=9)
    return figure


def _band(mean: Mean) -> tuple[float, float]:
    error = 0.0 if math.isnan(mean.error) else mean.error
    return mean.value - error, mean.value + error


EXPERIMENT = Experiment(
    "unpaired",
    "accuracy against the number of unpaired samples",
    compute,
    draw,
    lambda table: by_method(table, "samples", "accuracy", plus_minus(1, 100)),
    seeds=5,
)
