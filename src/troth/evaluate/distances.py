"""How far apart pairs are: those that belong together, those that do not, and the two modalities among themselves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from troth.errors import UserError
from troth.evaluate.checks import check_ids, check_points
from troth.geometry import Geometry
from troth.similarity import TILE, different_pairs

#: The four kinds of pairs, in the order of reports.
PairKind = Literal["positive", "negative", "image_image", "text_text"]
PAIR_KINDS: tuple[PairKind, ...] = ("positive", "negative", "image_image", "text_text")

#: Distances that differ by no more than this share of their size are one, told apart by rounding.
_POINT = 1e-6


@dataclass(frozen=True)
class Distances:
    """The distances of one kind of pairs.

    Attributes:
        number: how many pairs.
        mean: of their distances.
        deviation: standard deviation of their distances.
        low: the smallest.
        high: the largest.
        closer: the share of them closer than the median positive pair, equal ones half; about 0.5 for positives.
        counts: ``(bins,)`` how many lie between :attr:`PairDistances.edges`.
    """

    number: int
    mean: float
    deviation: float
    low: float
    high: float
    closer: float
    counts: tuple[int, ...]


@dataclass(frozen=True)
class PairDistances:
    """Distances of the four kinds of pairs, counted between the same edges ``(bins + 1,)``."""

    edges: tuple[float, ...]
    kinds: Mapping[PairKind, Distances]


@torch.no_grad()
def pair_distances(
    images: Float[Tensor, "N D"],
    texts: Float[Tensor, "N E"],
    geometry: Geometry,
    group: Int64[Tensor, " N"] | None = None,
    *,
    bins: int = 60,
    limits: tuple[float, float] | None = None,
    tile: tuple[int, int] = TILE,
) -> PairDistances:
    """Measure all pairs in the geometry's own distance, which is its similarity with the sign turned.

    .. code-block:: text

        d(u, v)      = -similarity(u, v)           an inner product's is negative; a geodesic's is in radians
        positive     d(image_i, text_i)            N
        negative     d(image_i, text_j)            group_i != group_j
        image_image  d(image_i, image_j)           group_i != group_j
        text_text    d(text_i, text_j)             group_i != group_j

    A pair within a modality is counted in both orders, which differ for FILIP alone. The source does not say whether
    pictures of one caption count as negatives of each other; here they do not, as one caption twice is at distance 0
    and says nothing. No more than one tile of distances exists at a time; each is formed twice.

    Source: "Design of the topology for contrastive visual-textual alignment" (submission to TMLR), section A.3 and
    figure 6.

    Args:
        images: projected points.
        texts: projected points of the captions, in the same order.
        geometry: of the points.
        group: which samples belong together, such as those of one caption; None: each is on its own.
        bins: number of intervals.
        limits: lowest and highest edge, what lies beyond is counted in the outermost bins; None: of the distances
            themselves. Give them (:func:`distance_limits`) to compare data sets.
        tile: rows and columns of a tile.

    Raises:
        UserError: for empty, non-finite or mismatched tensors, and if no two samples are of different groups.
    """
    streams = _streams(images, texts, geometry, group, tile)
    summaries = {kind: _summary(stream()) for kind, stream in streams.items()}
    low, high = limits if limits is not None else _limits(summaries.values())
    edges = torch.linspace(low, high, bins + 1, dtype=torch.float64, device=images.device)
    # Neither torch.median (the lower of two middle values) nor torch.quantile (16 Mi values at most).
    middle = float(np.median(torch.cat(list(streams["positive"]())).double().cpu().numpy()))
    return PairDistances(
        edges=tuple(edges.tolist()),
        kinds={kind: _counted(summaries[kind], stream(), edges, middle) for kind, stream in streams.items()},
    )


@torch.no_grad()
def distance_limits(
    images: Float[Tensor, "N D"],
    texts: Float[Tensor, "N E"],
    geometry: Geometry,
    group: Int64[Tensor, " N"] | None = None,
    *,
    tile: tuple[int, int] = TILE,
) -> tuple[float, float]:
    """Return the smallest and the largest distance of all pairs of :func:`pair_distances`, whose errors it raises."""
    return _limits(_summary(stream()) for stream in _streams(images, texts, geometry, group, tile).values())


@dataclass(frozen=True)
class _Summary:
    number: int = 0
    mean: float = 0.0
    squares: float = 0.0
    low: float = math.inf
    high: float = -math.inf


def _streams(
    images: Tensor, texts: Tensor, geometry: Geometry, group: Tensor | None, tile: tuple[int, int]
) -> dict[PairKind, partial[Iterable[Tensor]]]:
    """Return what gives the distances of each kind, some at a time, as often as it is called."""
    check_points(geometry, images=images, texts=texts)
    count = len(images)
    if len(texts) != count:
        raise UserError(f"one caption an image is needed, got {count} images and {len(texts)} captions", where="texts")
    groups = (torch.arange(count) if group is None else check_ids("group", group, count)).to(images.device)
    if bool((groups == groups[0]).all()):
        raise UserError(
            "there are no negative pairs: all samples belong together",
            where="group",
            remedy="more samples, of different captions",
        )

    def negated(values: Iterable[Tensor]) -> Iterable[Tensor]:
        return (-part for part in values)

    def own() -> Iterable[Tensor]:
        return (
            -geometry.paired_similarity(image, text)
            for image, text in zip(torch.split(images, tile[0]), torch.split(texts, tile[0]), strict=True)
        )

    def different(rows: Tensor, columns: Tensor) -> Iterable[Tensor]:
        return negated(different_pairs(rows, columns, groups, groups, geometry, tile=tile))

    return {
        "positive": partial(own),
        "negative": partial(different, images, texts),
        "image_image": partial(different, images, images),
        "text_text": partial(different, texts, texts),
    }


def _summary(values: Iterable[Tensor]) -> _Summary:
    """Fold parts into count, mean, sum of squared deviations and range, in float64 (Chan et al. 1983)."""
    total = _Summary()
    for part in values:
        if not len(part):
            continue
        exact = part.double()
        number, mean = total.number + len(part), float(exact.mean())
        squares = float((exact - mean).square().sum())
        apart = mean - total.mean
        total = _Summary(
            number,
            total.mean + apart * len(part) / number,
            total.squares + squares + apart**2 * total.number * len(part) / number,
            min(total.low, float(exact.min())),
            max(total.high, float(exact.max())),
        )
    return total


def _limits(summaries: Iterable[_Summary]) -> tuple[float, float]:
    """Return the range of all, widened where it is a single point up to rounding."""
    known = list(summaries)
    low, high = min(one.low for one in known), max(one.high for one in known)
    return (low, high) if high - low > _POINT * max(abs(low), abs(high)) else (low - 0.5, high + 0.5)


def _counted(
    summary: _Summary, values: Iterable[Tensor], edges: Float64[Tensor, " bins_and_one"], middle: float
) -> Distances:
    bins = len(edges) - 1
    counts = torch.zeros(bins, dtype=torch.int64, device=edges.device)
    closer = 0.0
    for part in values:
        exact = part.double()
        counts += torch.bincount(torch.bucketize(exact, edges[1:-1], right=True), minlength=bins)
        closer += float((exact < middle).sum()) + 0.5 * float((exact == middle).sum())
    return Distances(
        number=summary.number,
        mean=summary.mean,
        deviation=math.sqrt(summary.squares / summary.number),
        low=summary.low,
        high=summary.high,
        closer=closer / summary.number,
        counts=tuple(counts.tolist()),
    )
