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
ANGLES = tuple(float(angle) for angle in range(0, 361, 5))
#: Multiplier of the cosines; the source does not say its own.
SCALE = 10.0
#: How far the fixed images are from the pole, and the fixed captions from their images, in degrees.
SPREAD, OFFSET = 40.0, 10.0


def compute(seeds: int) -> Table:
    """Measure contrastive loss and affinity consistency; nothing is drawn at random, so ``seeds`` changes nothing."""
    rows: list[tuple[str | float, ...]] = []
    image, text = fixed_points()
    for radius in RADII:
        for angle in ANGLES:
            moved = torch.cat([text, on_circle(image[2], radius, angle)[None]])
            pairs = Pairs(image, moved, scale=torch.tensor(SCALE, dtype=torch.float64))
            # The source's loss has no 1/2: the sum of both directions.
            loss = 2 * float(InfoNCE()(pairs, State(len(image), fingerprint="three pairs")).mean())
            consistency = affinity_consistency(image, moved).metrics["with_self"]
            rows.append((radius, angle, loss, consistency))
    return Table(("radius", "angle", "loss", "consistency"), tuple(rows))


def fixed_points() -> tuple[Tensor, Tensor]:
    """Return three images ``(3, 3)`` around the pole of the sphere, and the captions ``(2, 3)`` of two of them."""
    pole = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    image = torch.stack([on_circle(pole, SPREAD, bearing) for bearing in (0.0, 120.0, 240.0)])
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
            kept = table.where(radius=radius)
            axes.plot(kept.numbers("angle"), kept.numbers(column), color=colour, label=f"radius {radius:g}°")
        axes.set(xlabel="angle θ on the circle, degrees", ylabel=label, xlim=(0, 360))
        axes.set_xticks(np.arange(0, 361, 60))
        plain_axes(axes)
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, frameon=False, loc="outside lower center", ncols=len(RADII), fontsize=9)
    return figure


def explained(table: Table, column: str) -> tuple[float, float]:
    """Return which shares of a column's variance the radius and the angle explain, alone."""
    values = np.array([table.where(radius=radius).numbers(column)[:-1] for radius in RADII])  # 0 and 360 are one place
    whole = values.var()
    return float(values.mean(1).var() / whole), float(values.mean(0).var() / whole)


def tabulate(table: Table) -> str:
    """Write means and ranges over the angle, and what explains the variance."""
    rows = []
    for column, name in (("loss", "contrastive loss, nats"), ("consistency", "affinity consistency")):
        cells = []
        for radius in RADII:
            values = table.where(radius=radius).numbers(column)[:-1]
            cells.append(f"{sum(values) / len(values):.2f} ({min(values):.2f} to {max(values):.2f})")
        rows.append([name, *cells, *(f"{share:.0%}" for share in explained(table, column))])
    return markdown(["", *(f"radius {radius:g}°" for radius in RADII), "by radius", "by angle"], rows)


EXPERIMENT = Experiment(
    "affinity-simulation", "contrastive loss and affinity consistency of three pairs", compute, draw, tabulate, seeds=1
)
