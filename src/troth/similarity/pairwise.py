"""Sums of a function of every margin: the losses that compare pairs with negatives one at a time."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from troth import distributed
from troth.similarity.block import Block, Folded, Upstream

#: The functions a margin can go through.
MarginFunction = Literal["identity", "softplus", "hinge"]


class MarginSum:
    """``sum_j eps_ij psi(l_ij - nu l_ii)`` with ``eps_ij = 1`` for ``j != i`` and ``eps`` for the positive.

    Args:
        function: ``psi``: the identity, ``log(1 + exp(v))``, or ``max(0, 1 + v)``.
        positive: ``(B,)`` logits ``l_ii``; differentiable.
        nu: how much of the positive is subtracted.
        positive_weight: ``eps``.
    """

    def __init__(self, function: MarginFunction, positive: Tensor, nu: float, positive_weight: float) -> None:
        self.function = function
        self.positive = positive
        self.nu = nu
        self.positive_weight = positive_weight

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The positive logits."""
        return (self.positive,)

    def start(self, length: int, like: Tensor) -> Folded:
        """Return no logits at all, folded."""
        return (like.new_zeros(length),)

    def _margins(self, block: Block) -> tuple[Tensor, Tensor]:
        """Return the margins of rows and of columns."""
        by_row = block.logits - self.nu * block.row_inputs[0][:, None]
        by_column = block.logits - self.nu * block.column_inputs[0]
        return by_row, by_column

    def _value(self, margin: Tensor) -> Tensor:
        if self.function == "identity":
            return margin
        return F.softplus(margin) if self.function == "softplus" else (margin + 1).relu_()

    def _slope(self, margin: Tensor) -> Tensor:
        if self.function == "identity":
            return torch.ones_like(margin)
        return margin.sigmoid() if self.function == "softplus" else (margin + 1 > 0).to(margin)

    def fold(self, rows: Folded, columns: Folded, block: Block) -> None:
        """Fold one block."""
        for margin, (total,), dim in zip(self._margins(block), (rows, columns), (1, 0), strict=True):
            value = self._value(margin)
            value[block.positives] *= self.positive_weight
            total.add_(value.sum(dim=dim))

    def over_ranks(self, columns: Folded) -> Folded:
        """Combine the ranks' partial columns."""
        return (distributed.sum_over_ranks(columns[0]),)

    def losses(self, state: Folded) -> Tensor:
        """Return one sum a row (or column)."""
        return state[0].clone()

    def gradient(self, block: Block, rows: Folded, columns: Folded, upstream: Upstream) -> Tensor:
        """Return the derivative with respect to the block's logits; the positive logits' is added to the inputs'."""
        by_row, by_column = self._margins(block)
        row_part = self._slope(by_row).mul_(upstream.rows[:, None])
        column_part = self._slope(by_column).mul_(upstream.columns)
        for part in (row_part, column_part):
            part[block.positives] *= self.positive_weight
        for sums, part, dim in (
            (block.row_input_gradients, row_part, 1),
            (block.column_input_gradients, column_part, 0),
        ):
            if sums and sums[0] is not None:
                sums[0].sub_(part.sum(dim=dim), alpha=self.nu)
        return row_part.add_(column_part)
