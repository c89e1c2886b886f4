"""How similarities are spread: those of all pairs that do not belong together, a tile at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from troth.geometry import Geometry
from troth.similarity.block import TILE, tiles


def different_pairs(
    rows: Float[Tensor, "R D"],
    columns: Float[Tensor, "C E"],
    row_group: Int64[Tensor, " R"],
    column_group: Int64[Tensor, " C"],
    geometry: Geometry,
    *,
    tile: tuple[int, int] = TILE,
) -> Iterator[Float[Tensor, " n"]]:
    """Yield the similarities of every row to every column of another group, those of one tile at a time.

    The order is that of the tiles: whoever folds the values must not care for it. Memory is one tile.

    Args:
        rows: projected points.
        columns: projected points.
        row_group: what each row belongs to; a row and a column of one group are no pair.
        column_group: what each column belongs to.
        geometry: of the points.
        tile: rows and columns of a tile.
    """
    for row in tiles(len(rows), tile[0]):
        for column in tiles(len(columns), tile[1]):
            with torch.no_grad():
                similarity = geometry.similarity(rows[row], columns[column])
                values = similarity[row_group[row, None] != column_group[None, column]]
            yield values
