"""Reductions built on one log-sum-exp a row and one a column."""

from __future__ import annotations

from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from troth import distributed
from troth.similarity.block import Block, Folded, Upstream


class LogWeights(Protocol):
    """Logarithms of weights on the terms of a partition sum, made block by block and not differentiated.

    A function of the block alone: it is called again, and must answer the same, in the backward pass.
    """

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What the blocks shall carry about each pair."""
        ...

    def __call__(self, block: Block) -> tuple[Float[Tensor, "b n"], Float[Tensor, "b n"]]:
        """Return the log-weights for the image rows and those for the caption columns, maybe one tensor twice."""
        ...


def fold_exponentials(largest: Tensor, total: Tensor, tile: Tensor, dim: int, *, overwrite: bool = False) -> None:
    """Fold ``tile`` along ``dim`` into a largest value and a sum of exponentials below it; -inf counts nothing."""
    new = torch.maximum(largest, tile.amax(dim=dim))
    shifted = tile.sub_(new.unsqueeze(dim)) if overwrite else tile - new.unsqueeze(dim)
    total.mul_((largest - new).exp_()).add_(shifted.exp_().sum(dim=dim))
    largest.copy_(new)


def no_exponentials(length: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return what :func:`fold_exponentials` starts from; finite, so that a row of -inf alone folds to nothing."""
    return like.new_full((length,), torch.finfo(like.dtype).min), like.new_zeros(length)


def combine_exponentials(largest: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """Combine the ranks' partial log-sum-exps."""
    overall = distributed.max_over_ranks(largest)
    return overall, distributed.sum_over_ranks(total * (largest - overall).exp())


class LogPartition:
    """``log sum_j w_ij exp(l_ij)``, optionally less the weighted positive, optionally without it in the sum.

    Args:
        weights: on the terms; None: all 1.
        less_positive: subtract ``log w_ii + l_ii``: the cross-entropy, ``-log`` of the positive's share.
        negatives_only: leave the positive out of the sum.
    """

    def __init__(
        self, weights: LogWeights | None = None, *, less_positive: bool = True, negatives_only: bool = False
    ) -> None:
        self.weights = weights
        self.less_positive = less_positive
        self.negatives_only = negatives_only

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What the weights ask for."""
        return () if self.weights is None else self.weights.inputs

    def start(self, length: int, like: Tensor) -> Folded:
        """Return no logits at all, folded."""
        return *no_exponentials(length, like), like.new_zeros(length)

    def _weighted(self, block: Block) -> tuple[Tensor, Tensor]:
        """Return the logits with the log-weights of each direction; one tensor twice without weights."""
        if self.weights is None:
            return block.logits, block.logits
        row, column = self.weights(block)
        if row is column:
            both = block.logits.add_(row)
            return both, both
        return row + block.logits, block.logits.add_(column)

    def fold(self, rows: Folded, columns: Folded, block: Block) -> None:
        """Fold one block."""
        by_row, by_column = self._weighted(block)
        at_row, at_column = positives = block.positives
        rows[2][at_row] = by_row[positives]
        columns[2][at_column] = by_column[positives]
        if self.negatives_only:
            by_row[positives] = by_column[positives] = -torch.inf
        fold_exponentials(rows[0], rows[1], by_row, 1, overwrite=by_row is not by_column)
        fold_exponentials(columns[0], columns[1], by_column, 0, overwrite=True)

    def over_ranks(self, columns: Folded) -> Folded:
        """Combine the ranks' partial columns."""
        return *combine_exponentials(columns[0], columns[1]), columns[2]

    def losses(self, state: Folded) -> Tensor:
        """Return one number a row (or column), in nats."""
        largest, total, positive = state
        return (largest - positive) + total.log() if self.less_positive else largest + total.log()

    def gradient(self, block: Block, rows: Folded, columns: Folded, upstream: Upstream) -> Tensor:
        """Return the derivative with respect to the block's logits."""
        by_row, by_column = self._weighted(block)
        positives = block.positives
        if self.negatives_only:
            by_row[positives] = by_column[positives] = -torch.inf
        row_shifted = by_row - rows[0][:, None] if by_row is by_column else by_row.sub_(rows[0][:, None])
        row_softmax = row_shifted.exp_().mul_((1 / rows[1])[:, None])
        column_softmax = by_column.sub_(columns[0]).exp_().mul_(1 / columns[1])
        if self.less_positive:
            row_softmax[positives] -= 1
            column_softmax[positives] -= 1
        return column_softmax.mul_(upstream.columns).add_(row_softmax.mul_(upstream.rows[:, None]))
