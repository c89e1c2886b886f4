"""Which captions are known to fit which images, beyond the given pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from troth import distributed
from troth.similarity.block import Block


class Matches(Protocol):
    """A matrix of degrees ``m_ij >= 0`` to which caption ``j`` of the batch fits image ``i``; 0: not known to.

    It is read block by block and never whole.
    """

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What the blocks shall carry about each pair."""
        ...

    def check(self, rows: int, columns: int) -> None:
        """Raise ValueError unless this is about ``rows`` images of this rank and ``columns`` captions in all."""
        ...

    def block(self, block: Block) -> Float[Tensor, "b n"]:
        """Return the degrees of one block, a new tensor."""
        ...


@dataclass(frozen=True, slots=True)
class GroupMatches:
    """Samples of one group fit each other wholly: one caption, one product, one class.

    Attributes:
        group: ``(B,)`` this rank's samples' groups; equal numbers are one group.
    """

    group: Int64[Tensor, " B"]

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The groups."""
        return (self.group,)

    def check(self, rows: int, columns: int) -> None:
        """See :class:`Matches`."""
        if self.group.shape != (rows,):
            raise ValueError(f"groups must be ({rows},), one for each pair, not {tuple(self.group.shape)}")

    def block(self, block: Block) -> Float[Tensor, "b n"]:
        """Return 1 where the groups are equal, 0 elsewhere."""
        return (block.row_inputs[0][:, None] == block.column_inputs[0]).to(block.logits)


@dataclass(frozen=True, slots=True)
class DenseMatches:
    """Degrees in a matrix of the user's own, who pays for its memory.

    Attributes:
        degree: ``(B, N)`` this rank's images against all captions; the given pairs' own degrees are in it too.
    """

    degree: Float[Tensor, "B N"]

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Nothing."""
        return ()

    def check(self, rows: int, columns: int) -> None:
        """See :class:`Matches`."""
        if self.degree.shape != (rows, columns):
            raise ValueError(f"degrees must be ({rows}, {columns}), not {tuple(self.degree.shape)}")
        if bool((self.degree < 0).any()):
            raise ValueError("degrees of matches must not be negative")

    def block(self, block: Block) -> Float[Tensor, "b n"]:
        """Return the block's part of the matrix."""
        return self.degree[block.row, block.column].to(block.logits, copy=True)


@dataclass(frozen=True, slots=True)
class ListedMatches:
    """A list of combinations that fit, by their places in the batch; each given pair fits wholly unless listed.

    Attributes:
        row: ``(E,)`` places of images among this rank's, in increasing order.
        column: ``(E,)`` places of captions in the whole batch.
        degree: ``(E,)`` how well they fit.
        size: how many pairs this rank has.
    """

    row: Int64[Tensor, " E"]
    column: Int64[Tensor, " E"]
    degree: Float[Tensor, " E"]
    size: int

    def __post_init__(self) -> None:
        if bool((self.degree < 0).any()):
            raise ValueError("degrees of matches must not be negative")

    @classmethod
    def from_samples(
        cls,
        image: Int64[Tensor, " K"],
        caption: Int64[Tensor, " K"],
        degree: Float[Tensor, " K"],
        index: Int64[Tensor, " B"],
    ) -> ListedMatches:
        """Find the listed combinations of samples whose image is on this rank and whose caption is in the batch.

        Args:
            image: ``(K,)`` sample ids of images.
            caption: ``(K,)`` sample ids of the captions that fit them.
            degree: ``(K,)`` how well.
            index: ``(B,)`` the sample ids of this rank's pairs, no id twice in a batch.
        """
        device = index.device
        image, caption, degree = image.to(device), caption.to(device), degree.to(device)
        own, row = _find(image, index)
        present, column = _find(caption, distributed.gather(index))
        kept = own & present
        row, column, degree = row[kept], column[kept], degree[kept]
        pair = torch.arange(len(index), device=device)
        listed = torch.zeros(len(index), dtype=torch.bool, device=device)
        listed[row[column == row + distributed.rank() * len(index)]] = True
        row = torch.cat([row, pair[~listed]])
        column = torch.cat([column, pair[~listed] + distributed.rank() * len(index)])
        degree = torch.cat([degree, degree.new_ones(int((~listed).sum()))])
        order = torch.argsort(row, stable=True)
        return cls(row[order], column[order], degree[order], len(index))

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Nothing."""
        return ()

    def check(self, rows: int, columns: int) -> None:
        """See :class:`Matches`."""
        if self.size != rows:
            raise ValueError(f"the list of matches is about {self.size} pairs, not {rows}")

    def block(self, block: Block) -> Float[Tensor, "b n"]:
        """Return the listed degrees that lie in the block."""
        bounds = torch.tensor([block.row.start, block.row.stop], device=self.row.device)
        first, last = torch.searchsorted(self.row, bounds).tolist()
        row, column, degree = self.row[first:last], self.column[first:last], self.degree[first:last]
        inside = (column >= block.column.start) & (column < block.column.stop)
        dense = torch.zeros_like(block.logits)
        dense[row[inside] - block.row.start, column[inside] - block.column.start] = degree[inside].to(dense)
        return dense


def _find(wanted: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return whether each wanted id is among ``ids``, and where (somewhere, if it is not)."""
    ordered, place = torch.sort(ids)
    at = torch.searchsorted(ordered, wanted).clamp_max(len(ids) - 1)
    return ordered[at] == wanted, place[at]
