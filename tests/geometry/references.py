"""Every geometry's similarity of two raw feature vectors, as plain loops over the equation; and features to try."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from troth.geometry import FILIP, Euclidean, Oblique, Sphere

Reference = Callable[[Tensor, Tensor], Tensor]


def dot(u: Tensor, v: Tensor) -> Tensor:
    total = torch.zeros((), dtype=u.dtype)
    for a, b in zip(u, v, strict=True):
        total = total + a * b
    return total


def direction(u: Tensor) -> Tensor:
    return u / dot(u, u).sqrt()


def sphere(u: Tensor, v: Tensor) -> Tensor:
    return dot(direction(u), direction(v))


def euclidean(u: Tensor, v: Tensor) -> Tensor:
    return -dot(u - v, u - v).sqrt()


def oblique(sub_dim: int, distance: str) -> Reference:
    def similarity(u: Tensor, v: Tensor) -> Tensor:
        total = torch.zeros((), dtype=u.dtype)
        for start in range(0, len(u), sub_dim):
            cosine = sphere(u[start : start + sub_dim], v[start : start + sub_dim])
            if distance == "inner_product":
                total = total + cosine
            elif distance == "geodesic":
                total = total - torch.arccos(cosine) ** 2
            else:
                total = total - torch.arccos(cosine)
        return -(-total).sqrt() if distance == "geodesic" else total

    return similarity


def filip(sub_dim: int, to_row_mean: bool) -> Reference:
    def similarity(u: Tensor, v: Tensor) -> Tensor:
        mine, others = (u, v) if to_row_mean else (v, u)
        tokens = [mine[start : start + sub_dim] for start in range(0, len(mine), sub_dim)]
        candidates = [others[start : start + sub_dim] for start in range(0, len(others), sub_dim)]
        best = [
            torch.stack([sphere(token, other) for other in candidates if other.any()]).max()
            for token in tokens
            if token.any()
        ]
        return torch.stack(best).mean()

    return similarity


@dataclass(frozen=True)
class Case:
    """A geometry with the loop it must equal, and the widths of features it is tried on."""

    geometry: Any
    reference: Reference
    row_width: int
    column_width: int
    lowest: float
    highest: float

    @property
    def name(self) -> str:
        return "-".join(str(value) for value in vars(self.geometry).values() if not str(value).startswith("_"))


#: Every geometry a recipe may name, listed once.
CASES = [
    Case(Sphere(), sphere, 12, 12, -1, 1),
    Case(Euclidean(), euclidean, 12, 12, -math.inf, 0),
    Case(Oblique(sub_dim=4, num_spheres=3), oblique(4, "inner_product"), 12, 12, -3, 3),
    Case(
        Oblique(sub_dim=4, num_spheres=3, distance="geodesic"),
        oblique(4, "geodesic"),
        12,
        12,
        -math.sqrt(3) * math.pi,
        0,
    ),
    Case(Oblique(sub_dim=12, num_spheres=1, distance="geodesic"), oblique(12, "geodesic"), 12, 12, -math.pi, 0),
    Case(
        Oblique(sub_dim=4, num_spheres=3, distance="geodesic_sum"),
        oblique(4, "geodesic_sum"),
        12,
        12,
        -3 * math.pi,
        0,
    ),
    Case(FILIP(sub_dim=4), filip(4, True), 12, 20, -1, 1),
    Case(FILIP(sub_dim=4, direction="text_to_image"), filip(4, False), 12, 20, -1, 1),
]


def features(case: Case, kind: str, rows: int = 6, columns: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return float64 rows and columns: strangers; a few pairs close or nearly opposite; or all of them close."""
    generator = torch.Generator().manual_seed(seed)

    def normal(count: int, width: int) -> Tensor:
        return torch.randn(count, width, generator=generator, dtype=torch.float64)

    u, v = normal(rows, case.row_width), normal(columns, case.column_width)
    shared = min(case.row_width, case.column_width)
    if kind == "paired":
        v[0, :shared] = u[0, :shared] + 0.05 * normal(1, shared)[0]
        v[1, :shared] = -1.3 * u[1, :shared] + 0.05 * normal(1, shared)[0]
        v[2, :4] = u[2, :4] + 0.01 * normal(1, 4)[0]
    if kind == "collapsed":
        centre = 3 + normal(1, max(case.row_width, case.column_width))
        u, v = centre[:, : case.row_width] + 0.1 * u, centre[:, : case.column_width] + 0.1 * v
        v[3:] = -v[3:]
    return u, v
