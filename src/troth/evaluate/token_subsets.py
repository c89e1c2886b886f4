"""What a part of an oblique point's spheres knows: zero-shot accuracy with random subsets of the tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from troth.draws import SampleDraws
from troth.errors import UserError
from troth.evaluate.zero_shot import zero_shot
from troth.geometry import Geometry, Oblique


@dataclass(frozen=True)
class SubsetAccuracy:
    """Zero-shot accuracy with some of the spheres.

    Attributes:
        task: whose pictures and classes.
        num_spheres: of whole points.
        chance: the accuracy of guessing, 1 / classes.
        sizes: ``(S,)`` how many spheres took part.
        mean: ``(S,)`` top-1 accuracy, the mean over the draws, a fraction.
        deviation: ``(S,)`` standard deviation over the draws (``n - 1``): how much it matters which spheres.
        draws: ``(S,)`` times ``(draws,)``, top-1 accuracy of every draw; one draw with all spheres.
    """

    task: str
    num_spheres: int
    chance: float
    sizes: tuple[int, ...]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    draws: tuple[tuple[float, ...], ...]


def has_subsets(geometry: Geometry) -> bool:
    """Say whether points are made of several spheres, of which one can take some."""
    return isinstance(geometry, Oblique) and geometry.num_spheres > 1


def subset_sizes(num_spheres: int) -> tuple[int, ...]:
    """Return 1, 2, 4, ... and ``num_spheres`` itself."""
    powers = [1 << exponent for exponent in range(num_spheres.bit_length()) if 1 << exponent < num_spheres]
    return (*powers, num_spheres)


def draw_subset(num_spheres: int, size: int, seed: int, draw: int) -> Int64[Tensor, " size"]:
    """Return ``size`` of the spheres, ascending: any subset is as likely as any other.

    A function of its arguments alone. The subsets of one draw contain each other: a larger size adds spheres.
    """
    keys = SampleDraws.from_ids(seed, draw, "token-subset", torch.arange(num_spheres)).key
    order = keys.view(torch.int64).flatten().argsort()
    return order[:size].sort().values


def restrict(points: Float[Tensor, "*B D"], geometry: Oblique, spheres: Int64[Tensor, " k"]) -> Float[Tensor, "*B E"]:
    """Return the points' places on some of the spheres: points of :func:`sub_geometry`."""
    parts = points.reshape(*points.shape[:-1], geometry.num_spheres, geometry.sub_dim)
    return parts[..., spheres.to(points.device), :].flatten(-2)


def sub_geometry(geometry: Oblique, size: int) -> Oblique:
    """Return the oblique manifold of ``size`` of the spheres, compared in the same way."""
    return replace(geometry, num_spheres=size)


@torch.no_grad()
def token_subset_accuracy(
    image_embeddings: Float[Tensor, "Q D"],
    labels: Int64[Tensor, " Q"],
    class_embeddings: Float[Tensor, "C *T D"],
    geometry: Oblique,
    sizes: Sequence[int] | None = None,
    *,
    draws: int = 20,
    seed: int = 0,
    task: str = "zero-shot",
) -> SubsetAccuracy:
    """Score zero-shot classification with random subsets of the spheres, the same for pictures and texts.

    .. code-block:: text

        inner product    similarity(u, v) = sum over k in S of <u_k, v_k>
        geodesics        the same sums of angles over k in S

    Source: "Design of the topology for contrastive visual-textual alignment" (submission to TMLR), section A.7 and
    table 10. It does not say how many subsets were drawn, nor whether they could repeat; here they can.

    Args:
        image_embeddings: one point a picture.
        labels: the class of each picture.
        class_embeddings: as :func:`~troth.evaluate.zero_shot` takes them.
        geometry: of the points.
        sizes: how many spheres; None: 1, 2, 4, ... and all. With all of them there is one subset, scored once.
        draws: subsets of each size.
        seed: of the draws.
        task: name of the result.

    Raises:
        UserError: for a geometry of one sphere, sizes it has not, fewer than 2 draws, and as
            :func:`~troth.evaluate.zero_shot` does.
    """
    if not has_subsets(geometry):
        raise UserError("there is one sphere only, and no part of it", where="geometry", remedy="an oblique manifold")
    total = geometry.num_spheres
    chosen = tuple(sorted(set(subset_sizes(total) if sizes is None else sizes)))
    if not chosen or chosen[0] < 1 or chosen[-1] > total:
        raise UserError(f"sizes {chosen} of {total} spheres", where="sizes", remedy=f"between 1 and {total}")
    if draws < 2:
        raise UserError(f"{draws} draws have no standard deviation", where="draws", remedy="at least 2")

    def accuracy(size: int, draw: int) -> float:
        spheres = draw_subset(total, size, seed, draw)
        images, classes = (restrict(points, geometry, spheres) for points in (image_embeddings, class_embeddings))
        return zero_shot(images, labels, classes, sub_geometry(geometry, size), (1,)).metrics["top1"]

    rows = [tuple(accuracy(size, draw) for draw in range(1 if size == total else draws)) for size in chosen]
    return SubsetAccuracy(
        task=task,
        num_spheres=total,
        chance=1 / len(class_embeddings),
        sizes=chosen,
        mean=tuple(float(np.mean(row)) for row in rows),
        deviation=tuple(float(np.std(row, ddof=1)) if len(row) > 1 else 0.0 for row in rows),
        draws=tuple(rows),
    )
