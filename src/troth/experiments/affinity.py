"""Three pairs, one caption of which moves around its image: what a contrastive loss sees, and what affinities see."""

from __future__ import annotations

import math

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from troth.evaluate import affinity_consistency
from troth.experiments.base import COLOURS, Experiment, new_figure, plain_axes
from troth.experiments.table import Table, markdown
from troth.objectives import InfoNCE
from troth.similarity import Pairs
from troth.state import State

#: Angles from the image to its caption, in degrees, and places on that circle.
RADII = (10.0, 20.0, 30.0, 40.0)
ANGLES = tuple(float(angle) for angle in range(0, 360, 10))
#: How far the fixed images are from the pole, and the fixed captions from their images, in degrees.
SPREADS, OFFSET = (20.0, 40.0, 60.0), 10.0
#: Multipliers of the cosines; the source says neither its own nor where its points are.
SCALES = (1.0, 5.0, 14.3, 100.0)
#: What the figure shows.
SHOWN = {"spread": 40.0, "scale": 14.3}


def compute(seeds: int) -> Table:
    """Measure contrastive loss and affinity consistency; nothing is drawn at random, so ``seeds`` changes nothing."""
    rows: list[tuple[str | float, ...]] = []
    for spread in SPREADS:
        image, text = fixed_points(spread)
        for radius in RADII:
            for angle in ANGLES:
                moved = torch.cat([text, on_circle(image[2], radius, angle)[None]])
                consistency = affinity_consistency(image, moved).metrics["with_self"]
                rows += [
                    (spread, scale, radius, angle, contrastive_loss(image, moved, scale), consistency)
                    for scale in SCALES
                ]
    return Table(("spread", "scale", "radius", "angle", "loss", "consistency"), tuple(rows))


def contrastive_loss(image: Tensor, text: Tensor, scale: float) -> float:
    """Return the source's loss, which has no 1/2: the sum of both directions, in nats."""
    pairs = Pairs(image, text, scale=torch.tensor(scale, dtype=torch.float64))
    return 2 * float(InfoNCE()(pairs, State(len(image), fingerprint="three pairs")).mean())


def fixed_points(spread: float) -> tuple[Tensor, Tensor]:
    """Return three images ``(3, 3)`` around the pole of the sphere, and the captions ``(2, 3)`` of two of them."""
    pole = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    image = torch.stack([on_circle(pole, spread, bearing) for bearing in (0.0, 120.0, 240.0)])
    text = torch.stack([on_circle(image[0], OFFSET, 60.0), on_circle(image[1], OFFSET, 200.0)])
    return image, text


def on_circle(centre: Tensor, radius: float, angle: float) -> Tensor:
    """Return the unit vector ``radius`` degrees from ``centre``, at an angle in degrees around it."""
    east = torch.linalg.cross(torch.tensor([0.3, 0.9, 0.1], dtype=centre.dtype), centre)
    east = east / torch.linalg.vector_norm(east)
    north = torch.linalg.cross(centre, east)
    across = math.cos(math.radians(angle)) * east + math.sin(math.radians(angle)) * north
    point: Tensor = math.cos(math.radians(radius)) * centre + math.sin(math.radians(radius)) * across
    return point


def draw(table: Table) -> Figure:
    """Draw both against the angle, one curve a radius."""
    figure = new_figure(9.0, 3.9)
    panels = figure.subplots(1, 2)
    for axes, column, label in zip(
        panels, ("loss", "consistency"), ("contrastive loss, nats", "affinity consistency"), strict=True
    ):
        for radius, colour in zip(RADII, COLOURS, strict=False):
            kept = table.where(radius=radius, **SHOWN)
            values = kept.numbers(column)
            axes.plot((*kept.numbers("angle"), 360.0), (*values, values[0]), color=colour, label=f"radius {radius:g}°")
        axes.set(xlabel="angle θ on the circle, degrees", ylabel=label, xlim=(0, 360))
        axes.set_xticks(range(0, 361, 60))
        plain_axes(axes)
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, frameon=False, loc="outside lower center", ncols=len(RADII), fontsize=9)
    return figure


def explained(table: Table, column: str, **values: float) -> tuple[float, float]:
    """Return which shares of a column's variance the radius alone and the angle alone explain."""
    grid = np.array([table.where(radius=radius, **values).numbers(column) for radius in RADII])
    whole = grid.var()
    return float(grid.mean(1).var() / whole), float(grid.mean(0).var() / whole)


def tabulate(table: Table) -> str:
    """Write what explains the variance of the loss, at each scale, and that of the consistency."""

    def shares(column: str, spread: float, scale: float) -> str:
        radius, angle = explained(table, column, spread=spread, scale=scale)
        return f"{radius:.0%} / {angle:.0%}"

    rows = [
        [
            f"{spread:g}°",
            *(shares("loss", spread, scale) for scale in SCALES),
            shares("consistency", spread, SCALES[0]),
        ]
        for spread in SPREADS
    ]
    return markdown(["spread of images", *(f"loss, scale {scale:g}" for scale in SCALES), "consistency"], rows)


EXPERIMENT = Experiment(
    "affinity-simulation", "contrastive loss and affinity consistency of three pairs", compute, draw, tabulate, seeds=1
)
