"""One tile of the batch's logits, and everything about the pairs it lies between."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

#: Rows and columns of a tile. A 1,024 x 1,024 float32 tile is 4 MiB: it stays close to the core while it is reduced,
#: and is large enough for the matrix product to run at full rate (``python -m benchmarks.similarity``).
TILE = (1024, 1024)

#: What a reduction keeps of the logits it has seen: tensors of one number a row (or column).
Folded = tuple[Tensor, ...]


class Upstream(NamedTuple):
    """The gradients that arrive for a block's rows and for its columns.

    Attributes:
        rows: ``(b,)``
        columns: ``(n,)``
    """

    rows: Tensor
    columns: Tensor


def tiles(length: int, size: int) -> Iterator[slice]:
    """Yield slices of at most ``size`` that cover ``length``."""
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))


@dataclass(frozen=True, slots=True)
class Block:
    """A tile: some of this rank's images against some of all captions.

    Attributes:
        row: which of this rank's images.
        column: which of all captions.
        offset: the column of this rank's first pair.
        similarity: ``(b, n)`` as the geometry has it; not to be overwritten.
        logits: ``(b, n)``; whoever reduces the block last may overwrite it.
        row_inputs: what a reduction asked for about each pair, for the rows.
        column_inputs: the same for the columns.
        row_input_gradients: where the gradients of the inputs are added up, for the rows; None in a forward pass and
            for inputs that have none.
        column_input_gradients: the same for the columns.
    """

    row: slice
    column: slice
    offset: int
    similarity: Float[Tensor, "b n"]
    logits: Float[Tensor, "b n"]
    row_inputs: tuple[Tensor, ...] = ()
    column_inputs: tuple[Tensor, ...] = ()
    row_input_gradients: tuple[Tensor | None, ...] = ()
    column_input_gradients: tuple[Tensor | None, ...] = ()

    @property
    def positives(self) -> tuple[Tensor, Tensor]:
        """Rows and columns, within the tile, of the given pairs that lie in it: two index tensors of one length."""
        start = max(self.row.start, self.column.start - self.offset)
        stop = min(self.row.stop, self.column.stop - self.offset)
        own = torch.arange(start, max(start, stop), device=self.logits.device)
        return own - self.row.start, own + self.offset - self.column.start
