"""How the two modalities lie on the sphere: apart from each other, close in their pairs, spread out in themselves."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from troth.errors import UserError
from troth.evaluate.checks import check_ids, check_points
from troth.geometry import FILIP, Geometry, Sphere
from troth.similarity import TILE, different_pairs
from troth.similarity.gram import unit_rows


def unit_points(points: Float[Tensor, "N D"], geometry: Geometry) -> Float[Tensor, "N D"]:
    """Return points as unit vectors: what :func:`modality_gap`, :func:`alignment` and :func:`uniformity` measure.

    .. code-block:: text

        sphere      u
        oblique     (u_1, ..., u_m) / sqrt(m)     a unit vector again; <u, v> / m is the mean cosine of the spheres
        euclidean   u / |u|                       the direction alone

    One flat vector for an oblique point, not a mean over its spheres, since ``|u - v|^2 / m`` is both: the mean over
    spheres of their squared distances. Euclidean points have no bound, so that all three numbers would measure how
    large a model's features are; of their directions they say what they say elsewhere, and nothing of the lengths.

    Raises:
        UserError: for FILIP, whose points are sets of tokens and have no direction.
    """
    if isinstance(geometry, FILIP):
        raise UserError(
            "a set of tokens has no direction: modality gap, alignment and uniformity are not defined",
            where="geometry",
            remedy="use a geometry of one point a sample",
        )
    return unit_rows(points, geometry)


@torch.no_grad()
def modality_gap(images: Float[Tensor, "N D"], texts: Float[Tensor, "M D"], geometry: Geometry) -> float:
    """Return the distance between the centroids of two modalities, in [0, 2], dimensionless.

    .. code-block:: text

        | 1/N sum_i x_i - 1/M sum_j y_j |         x, y: unit_points

    Source: Liang et al. 2022, "Mind the gap: understanding the modality gap in multi-modal contrastive representation
    learning" (NeurIPS), section 4.2.

    Raises:
        UserError: for empty, non-finite or mismatched tensors, and for FILIP.
    """
    check_points(geometry, images=images, texts=texts)
    centres = [unit_points(points, geometry).double().mean(dim=0) for points in (images, texts)]
    return float(torch.linalg.vector_norm(centres[0] - centres[1]))


@torch.no_grad()
def alignment(images: Float[Tensor, "N D"], texts: Float[Tensor, "N D"], geometry: Geometry) -> float:
    """Return how far the two points of a pair are from each other, the mean squared distance, in [0, 4]: 0 is perfect.

    .. code-block:: text

        1/N sum_i |x_i - y_i|^2                   x, y: unit_points

    Source: Wang and Isola 2020, "Understanding contrastive representation learning through alignment and uniformity on
    the hypersphere" (ICML), section 4.1, with alpha = 2.

    Raises:
        UserError: for empty, non-finite or mismatched tensors, and for FILIP.
    """
    check_points(geometry, images=images, texts=texts)
    if len(images) != len(texts):
        raise UserError(f"{len(images)} images and {len(texts)} captions are not pairs", where="texts")
    apart = unit_points(images, geometry).double() - unit_points(texts, geometry).double()
    return float(apart.square().sum(dim=1).mean())


@torch.no_grad()
def uniformity(
    points: Float[Tensor, "N D"],
    geometry: Geometry,
    group: Int64[Tensor, " N"] | None = None,
    *,
    tile: tuple[int, int] = TILE,
) -> float:
    """Return how evenly the points of one modality are spread, at most 0 (all in one place); lower is more even.

    .. code-block:: text

        log mean over pairs i, j of exp(-2 |x_i - x_j|^2)          group_i != group_j;  x: unit_points

    Streamed in tiles. A zero vector counts as orthogonal to all others.

    Source: Wang and Isola 2020, as :func:`alignment`, with t = 2, over pairs of different samples as in its code.

    Args:
        points: projected points.
        geometry: of the points.
        group: samples of one group, such as those of one caption, are no pair; None: each is on its own.
        tile: rows and columns of a tile.

    Raises:
        UserError: for empty or non-finite tensors, for FILIP, and if no two samples are of different groups.
    """
    check_points(points=points)
    count = len(points)
    groups = (torch.arange(count) if group is None else check_ids("group", group, count)).to(points.device)
    unit = unit_points(points, geometry)
    total, number = 0.0, 0
    for cosine in different_pairs(unit, unit, groups, groups, Sphere(), tile=tile):
        # |x - y|^2 = 2 - 2 <x, y>; rounding may put equal points above 1, and a mean above 0.
        total += float((4 * cosine.double().clamp(max=1.0) - 4).exp().sum())
        number += len(cosine)
    if not number:
        raise UserError("all samples belong together", where="group", remedy="more samples, of different captions")
    return math.log(total / number)
