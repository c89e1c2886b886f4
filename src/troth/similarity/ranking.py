"""Who is closest: candidates and ranks, one tile of rows at a time."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from troth.geometry import Geometry
from troth.similarity.block import TILE, tiles


@torch.no_grad()
def topk(
    queries: Float[Tensor, "Q D"],
    candidates: Float[Tensor, "C D"],
    k: int,
    geometry: Geometry,
    *,
    tile_rows: int = TILE[0],
) -> tuple[Float[Tensor, "Q k"], Int64[Tensor, "Q k"]]:
    """Return the ``min(k, C)`` most similar candidates of every query, best first, and their similarities.

    Memory is ``O(tile_rows * C)``. Both sides must be projected points.
    """
    k = min(k, len(candidates))
    parts = [
        torch.topk(geometry.similarity(queries[rows], candidates), k, dim=1) for rows in tiles(len(queries), tile_rows)
    ]
    if not parts:
        return queries.new_empty((0, k)), torch.empty((0, k), dtype=torch.int64, device=queries.device)
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])


@torch.no_grad()
def best_rank(
    queries: Float[Tensor, "Q D"],
    candidates: Float[Tensor, "C D"],
    query_group: Int64[Tensor, " Q"],
    candidate_group: Int64[Tensor, " C"],
    geometry: Geometry,
    *,
    tile_rows: int = TILE[0],
) -> Int64[Tensor, " Q"]:
    """Return the rank (0 is best) of every query's best-placed positive among all candidates.

    A candidate is a positive of a query when their groups are equal; there may be several. Only negatives count
    against the positive: those strictly closer, and half of those exactly as close (rounded up), so that a collapsed
    model that gives every candidate one similarity scores chance and not perfection. A query with no positive among
    the candidates, or whose similarity to one is not a number, gets rank ``C``.

    Memory is ``O(tile_rows * C)``.
    """
    ranks = []
    for rows in tiles(len(queries), tile_rows):
        similarity = geometry.similarity(queries[rows], candidates)
        positive = query_group[rows, None] == candidate_group[None, :]
        best = similarity.masked_fill(~positive, -torch.inf).amax(dim=1, keepdim=True)
        negatives = similarity.masked_fill_(positive, -torch.inf)
        ahead = ((negatives > best) | negatives.isnan()).sum(dim=1)
        tied = (negatives == best).sum(dim=1) * torch.isfinite(best[:, 0])
        rank = ahead + (tied + 1) // 2
        placed = positive.any(dim=1) & ~best[:, 0].isnan()
        ranks.append(torch.where(placed, rank, len(candidates)))
    if not ranks:
        return torch.empty(0, dtype=torch.int64, device=queries.device)
    return torch.cat(ranks)
