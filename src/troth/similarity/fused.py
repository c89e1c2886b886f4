"""The fused pass: every row and every column of the logits reduced in one sweep, its gradient written out by hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from troth import distributed
from troth.geometry import Geometry

#: Rows and columns of a tile. A 1,024 x 1,024 float32 tile is 4 MiB: it stays close to the core while it is reduced,
#: and is large enough for the matrix product to run at full rate (``python -m benchmarks.similarity``).
TILE = (1024, 1024)

#: Rows and columns, within a tile, of the positives that lie in it: two index tensors of one length.
Positives = tuple[Tensor, Tensor]


def tiles(length: int, size: int) -> Iterator[slice]:
    """Yield slices of at most ``size`` that cover ``length``."""
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))


class Reduction(Protocol):
    """How a fused pass folds logits into one loss a row and one a column.

    The positive of a row or column is taken from the same tile as its negatives: the rounding of the product that made
    them is then the same, and cancels where a pair fits well and its loss is small.
    """

    def start(self, length: int, like: Tensor) -> tuple[Tensor, ...]:
        """Return the folded state of no logits at all, ``length`` times."""
        ...

    def fold(self, rows: tuple[Tensor, ...], columns: tuple[Tensor, ...], tile: Tensor, positives: Positives) -> None:
        """Fold ``tile`` into views of the state of its rows and columns, in place; may overwrite ``tile``."""
        ...

    def over_ranks(self, columns: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Combine every rank's partial column states."""
        ...

    def losses(self, state: tuple[Tensor, ...]) -> Tensor:
        """Return one loss for each folded row (or column)."""
        ...

    def gradient(
        self,
        tile: Tensor,
        rows: tuple[Tensor, ...],
        columns: tuple[Tensor, ...],
        row_gradient: Tensor,
        column_gradient: Tensor,
        positives: Positives,
    ) -> Tensor:
        """Return the derivative with respect to the logits of ``tile``; may overwrite ``tile``."""
        ...


class CrossEntropy:
    """``log sum exp - positive``, kept as the largest logit, the sum of exponentials below it, and the positive."""

    def start(self, length: int, like: Tensor) -> tuple[Tensor, ...]:
        """Return no logits at all, folded."""
        return like.new_full((length,), -torch.inf), like.new_zeros(length), like.new_zeros(length)

    def fold(self, rows: tuple[Tensor, ...], columns: tuple[Tensor, ...], tile: Tensor, positives: Positives) -> None:
        """Fold one tile."""
        at_row, at_column = positives
        rows[2][at_row] = columns[2][at_column] = tile[at_row, at_column]
        for (largest, total, _), dim in ((rows, 1), (columns, 0)):
            new = torch.maximum(largest, tile.amax(dim=dim))
            shifted = tile - new.unsqueeze(dim) if dim == 1 else tile.sub_(new)  # the second sweep may use the tile up
            total.mul_((largest - new).exp_()).add_(shifted.exp_().sum(dim=dim))
            largest.copy_(new)

    def over_ranks(self, columns: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Combine the ranks' partial columns."""
        largest, total, positive = columns
        overall = distributed.max_over_ranks(largest)
        return overall, distributed.sum_over_ranks(total * (largest - overall).exp()), positive

    def losses(self, state: tuple[Tensor, ...]) -> Tensor:
        """Return one loss a row (or column), in nats."""
        largest, total, positive = state
        return (largest - positive) + total.log()

    def gradient(
        self,
        tile: Tensor,
        rows: tuple[Tensor, ...],
        columns: tuple[Tensor, ...],
        row_gradient: Tensor,
        column_gradient: Tensor,
        positives: Positives,
    ) -> Tensor:
        """Return the derivative with respect to the tile's logits."""
        at_row, at_column = positives
        row_softmax = (tile - rows[0][:, None]).exp_().mul_((1 / rows[1])[:, None])
        row_softmax[at_row, at_column] -= 1
        column_softmax = tile.sub_(columns[0]).exp_().mul_(1 / columns[1])
        column_softmax[at_row, at_column] -= 1
        return column_softmax.mul_(column_gradient).add_(row_softmax.mul_(row_gradient[:, None]))


class BinaryCrossEntropy:
    """``sum log(1 + exp(-z l))`` with ``z = 1`` for the positive and -1 for the others."""

    def start(self, length: int, like: Tensor) -> tuple[Tensor, ...]:
        """Return no logits at all, folded."""
        return (like.new_zeros(length),)

    def fold(self, rows: tuple[Tensor, ...], columns: tuple[Tensor, ...], tile: Tensor, positives: Positives) -> None:
        """Fold one tile."""
        tile[positives] *= -1
        softplus = F.softplus(tile)
        rows[0].add_(softplus.sum(dim=1))
        columns[0].add_(softplus.sum(dim=0))

    def over_ranks(self, columns: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Combine the ranks' partial columns."""
        return (distributed.sum_over_ranks(columns[0]),)

    def losses(self, state: tuple[Tensor, ...]) -> Tensor:
        """Return one loss a row (or column), in nats."""
        return state[0].clone()

    def gradient(
        self,
        tile: Tensor,
        rows: tuple[Tensor, ...],
        columns: tuple[Tensor, ...],
        row_gradient: Tensor,
        column_gradient: Tensor,
        positives: Positives,
    ) -> Tensor:
        """Return the derivative with respect to the tile's logits."""
        tile[positives] *= -1
        gradient = tile.sigmoid_().mul_(row_gradient[:, None] + column_gradient)
        gradient[positives] *= -1
        return gradient


def _positives(row: slice, column: slice, offset: int, device: torch.device) -> Positives:
    """Return where the positives (row ``i``, column ``offset + i``) lie in the tile ``[row, column]``."""
    start, stop = max(row.start, column.start - offset), min(row.stop, column.stop - offset)
    own = torch.arange(start, max(start, stop), device=device)
    return own - row.start, own + offset - column.start


class FusedPass(torch.autograd.Function):
    """One sweep over this rank's rows and all columns, reducing both ways; the backward sweep recomputes each tile."""

    @staticmethod
    def forward(
        ctx: Any,
        image: Tensor,
        text: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        geometry: Geometry,
        reduction: Reduction,
        tile: tuple[int, int],
    ) -> tuple[Tensor, Tensor]:
        """Return one loss for each of this rank's images, and one for each of its captions."""
        all_text = distributed.gather(text)
        rows = reduction.start(len(image), like=image)
        columns = reduction.start(len(all_text), like=image)
        offset = distributed.rank() * len(image)
        for row in tiles(len(image), tile[0]):
            for column in tiles(len(all_text), tile[1]):
                logits = geometry.similarity(image[row], all_text[column]).mul_(scale)
                if bias is not None:
                    logits.add_(bias)
                positives = _positives(row, column, offset, image.device)
                reduction.fold(_views(rows, row), _views(columns, column), logits, positives)
        columns = reduction.over_ranks(columns)
        ctx.save_for_backward(image, text, scale, bias, *rows, *columns)
        ctx.geometry, ctx.reduction, ctx.tile = geometry, reduction, tile
        own = tuple(distributed.own_rows(part) for part in columns)
        return reduction.losses(rows), reduction.losses(own)

    @staticmethod
    def backward(ctx: Any, row_gradient: Tensor, column_gradient: Tensor) -> tuple[Any, ...]:
        """Return the gradients of image, text, scale and bias: those of the sum of all ranks' losses."""
        image, text, scale, bias, *state = ctx.saved_tensors
        rows, columns = tuple(state[: len(state) // 2]), tuple(state[len(state) // 2 :])
        all_text = distributed.gather(text)
        all_column_gradient = distributed.gather(column_gradient)
        image_gradient = torch.zeros_like(image)
        all_text_gradient = torch.zeros_like(all_text)
        scale_gradient = torch.zeros((), dtype=image.dtype, device=image.device)
        bias_gradient = torch.zeros((), dtype=image.dtype, device=image.device)
        offset = distributed.rank() * len(image)
        for row in tiles(len(image), ctx.tile[0]):
            for column in tiles(len(all_text), ctx.tile[1]):
                similarity = ctx.geometry.similarity(image[row], all_text[column])
                logits = similarity * scale
                if bias is not None:
                    logits.add_(bias)
                gradient = ctx.reduction.gradient(
                    logits,
                    _views(rows, row),
                    _views(columns, column),
                    row_gradient[row],
                    all_column_gradient[column],
                    _positives(row, column, offset, image.device),
                )
                scale_gradient += torch.dot(gradient.flatten(), similarity.flatten())
                if bias is not None:
                    bias_gradient += gradient.sum()
                row_part, column_part = ctx.geometry.similarity_gradient(gradient, image[row], all_text[column])
                image_gradient[row] += row_part
                all_text_gradient[column] += column_part
        return (
            image_gradient.mul_(scale),
            distributed.sum_and_scatter(all_text_gradient.mul_(scale)),
            scale_gradient.to(scale).reshape(scale.shape),
            None if bias is None else bias_gradient.to(bias).reshape(bias.shape),
            None,
            None,
            None,
        )


def _views(state: tuple[Tensor, ...], part: slice) -> tuple[Tensor, ...]:
    return tuple(values[part] for values in state)
