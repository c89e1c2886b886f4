"""The fused pass: every row and every column of the logits reduced in one sweep, its gradient written out by hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from troth import distributed
from troth.geometry import Geometry
from troth.geometry.points import exactly
from troth.similarity.block import Block, Folded, Upstream, tiles


class Reduction(Protocol):
    """How a fused pass folds logits into one number a row and one a column.

    The positive of a row or column is taken from the same tile as its negatives: the rounding of the product that made
    them is then the same, and cancels where a pair fits well and its loss is small.
    """

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Tensors of ``(B, ...)``, one row for each of this rank's pairs, that blocks shall carry (gathered for
        the columns)."""
        ...

    def start(self, length: int, like: Tensor) -> Folded:
        """Return the folded state of no logits at all, ``length`` times."""
        ...

    def fold(self, rows: Folded, columns: Folded, block: Block) -> None:
        """Fold ``block`` into views of the state of its rows and columns, in place; may overwrite its logits."""
        ...

    def over_ranks(self, columns: Folded) -> Folded:
        """Combine every rank's partial column states."""
        ...

    def losses(self, state: Folded) -> Tensor:
        """Return one number for each folded row (or column)."""
        ...

    def gradient(self, block: Block, rows: Folded, columns: Folded, upstream: Upstream) -> Tensor:
        """Return the derivative with respect to the block's logits, and add that of the inputs to the block's
        gradients; may overwrite its logits."""
        ...


@dataclass(frozen=True, slots=True)
class Sweep:
    """What a pass sweeps over: this rank's images, all captions, and how their logits are made."""

    image: Tensor
    all_text: Tensor
    scale: Tensor
    bias: Tensor | None
    geometry: Geometry
    tile: tuple[int, int]

    def blocks(
        self, inputs: tuple[Tensor, ...], all_inputs: tuple[Tensor, ...], gradients: Gradients | None = None
    ) -> Iterator[Block]:
        """Yield every block of the matrix, one at a time."""
        offset = distributed.rank() * len(self.image)
        for row in tiles(len(self.image), self.tile[0]):
            for column in tiles(len(self.all_text), self.tile[1]):
                similarity = self.geometry.similarity(self.image[row], self.all_text[column])
                logits = similarity * self.scale
                if self.bias is not None:
                    logits.add_(self.bias)
                yield Block(
                    row,
                    column,
                    offset,
                    similarity,
                    logits,
                    views(inputs, row),
                    views(all_inputs, column),
                    () if gradients is None else gradients.views(gradients.rows, row),
                    () if gradients is None else gradients.views(gradients.columns, column),
                )


@dataclass(frozen=True, slots=True)
class Gradients:
    """Where the gradients of a reduction's inputs add up: own rows and all columns, None for inputs without one."""

    rows: tuple[Tensor | None, ...]
    columns: tuple[Tensor | None, ...]

    @staticmethod
    def zeros(inputs: tuple[Tensor, ...], wanted: tuple[bool, ...]) -> Gradients:
        """Start from nothing."""
        return Gradients(
            tuple(torch.zeros_like(x) if need else None for x, need in zip(inputs, wanted, strict=True)),
            tuple(
                x.new_zeros((len(x) * distributed.world_size(), *x.shape[1:])) if need else None
                for x, need in zip(inputs, wanted, strict=True)
            ),
        )

    @staticmethod
    def views(parts: tuple[Tensor | None, ...], part: slice) -> tuple[Tensor | None, ...]:
        """Return what belongs to some rows (or columns)."""
        return tuple(None if values is None else values[part] for values in parts)

    def together(self) -> tuple[Tensor | None, ...]:
        """Return each input's whole gradient: from its pairs as rows, and as columns of every rank."""
        return tuple(
            None if row is None or column is None else row + distributed.sum_and_scatter(column)
            for row, column in zip(self.rows, self.columns, strict=True)
        )


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
        *inputs: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return one number for each of this rank's images, and one for each of its captions."""
        all_text = distributed.gather(text)
        all_inputs = tuple(distributed.gather(x) for x in inputs)
        rows = reduction.start(len(image), like=image)
        columns = reduction.start(len(all_text), like=image)
        for block in Sweep(image, all_text, scale, bias, geometry, tile).blocks(inputs, all_inputs):
            reduction.fold(views(rows, block.row), views(columns, block.column), block)
        columns = reduction.over_ranks(columns)
        ctx.save_for_backward(image, text, scale, bias, *inputs, *rows, *columns)
        ctx.geometry, ctx.reduction, ctx.tile, ctx.num_inputs = geometry, reduction, tile, len(inputs)
        own = tuple(distributed.own_rows(part) for part in columns)
        return reduction.losses(rows), reduction.losses(own)

    @staticmethod
    @once_differentiable
    @exactly
    def backward(ctx: Any, row_gradient: Tensor, column_gradient: Tensor) -> tuple[Any, ...]:
        """Return the gradients of image, text, scale, bias and inputs: those of the sum of all ranks' losses."""
        image, text, scale, bias, *rest = ctx.saved_tensors
        inputs, state = tuple(rest[: ctx.num_inputs]), tuple(rest[ctx.num_inputs :])
        rows, columns = state[: len(state) // 2], state[len(state) // 2 :]
        all_text = distributed.gather(text)
        all_inputs = tuple(distributed.gather(x) for x in inputs)
        all_column_gradient = distributed.gather(column_gradient)
        image_gradient = torch.zeros_like(image)
        all_text_gradient = torch.zeros_like(all_text)
        scale_gradient = torch.zeros((), dtype=image.dtype, device=image.device)
        bias_gradient = torch.zeros((), dtype=image.dtype, device=image.device)
        input_gradients = Gradients.zeros(inputs, ctx.needs_input_grad[7:])
        sweep = Sweep(image, all_text, scale, bias, ctx.geometry, ctx.tile)
        for block in sweep.blocks(inputs, all_inputs, input_gradients):
            row, column = block.row, block.column
            gradient = ctx.reduction.gradient(
                block,
                views(rows, row),
                views(columns, column),
                Upstream(row_gradient[row], all_column_gradient[column]),
            )
            scale_gradient += torch.dot(gradient.flatten(), block.similarity.flatten())
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
            *input_gradients.together(),
        )


def views(state: tuple[Tensor, ...], part: slice) -> tuple[Tensor, ...]:
    """Return ``part`` of each tensor, without copies."""
    return tuple(values[part] for values in state)
