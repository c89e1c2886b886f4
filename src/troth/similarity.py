"""The only code that forms a block of similarities; streaming lives here and nowhere else.

Everything an objective wants to know about the ``N x N`` matrix of logits

.. code-block:: text

    logits[i, j] = scale * similarity(image_i, text_j) + bias

it asks of :class:`Pairs`, which forms the matrix one tile at a time, reduces it, and forgets it. Memory is
``O(B * (D + tile))`` instead of ``O(B * N)``; values and gradients are those of the whole matrix, to rounding.

Two ways through the matrix:

* a *fused pass* reduces every row and every column in one sweep, with the gradient written out by hand
  (:meth:`Pairs.cross_entropy`, :meth:`Pairs.binary_cross_entropy`): two products forward in the dense way become one,
  and with several ranks each forms only its own rows against all columns, yet every column is reduced completely;
* :meth:`Pairs.row_losses` hands *complete rows* to any function of the objective's and recomputes them in the
  backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from troth import distributed
from troth.geometry import Geometry, Sphere
from troth.types import Side

#: Rows and columns of a tile. A 1,024 x 1,024 float32 tile is 4 MiB: it stays close to the core while it is reduced,
#: and is large enough for the matrix product to run at full rate (``python -m benchmarks.similarity``).
TILE = (1024, 1024)


class TwoWay(NamedTuple):
    """One number per sample for each direction.

    Attributes:
        image: ``(B,)`` reductions over this rank's image rows (all captions are columns).
        text: ``(B,)`` reductions over this rank's captions (all images are rows).
    """

    image: Float[Tensor, " B"]
    text: Float[Tensor, " B"]


#: Rows and columns, within a tile, of the positives that lie in it: two index tensors of one length.
Positives = tuple[Tensor, Tensor]


def _tiles(length: int, size: int) -> Iterator[slice]:
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))


class _Reduction(Protocol):
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


class _CrossEntropy:
    """``log sum exp - positive``, kept as the largest logit, the sum of exponentials below it, and the positive."""

    def start(self, length: int, like: Tensor) -> tuple[Tensor, ...]:
        return like.new_full((length,), -torch.inf), like.new_zeros(length), like.new_zeros(length)

    def fold(self, rows: tuple[Tensor, ...], columns: tuple[Tensor, ...], tile: Tensor, positives: Positives) -> None:
        at_row, at_column = positives
        rows[2][at_row] = columns[2][at_column] = tile[at_row, at_column]
        for (largest, total, _), dim in ((rows, 1), (columns, 0)):
            new = torch.maximum(largest, tile.amax(dim=dim))
            shifted = tile - new.unsqueeze(dim) if dim == 1 else tile.sub_(new)  # the second sweep may use the tile up
            total.mul_((largest - new).exp_()).add_(shifted.exp_().sum(dim=dim))
            largest.copy_(new)

    def over_ranks(self, columns: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        largest, total, positive = columns
        overall = distributed.max_over_ranks(largest)
        return overall, distributed.sum_over_ranks(total * (largest - overall).exp()), positive

    def losses(self, state: tuple[Tensor, ...]) -> Tensor:
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
        at_row, at_column = positives
        row_softmax = (tile - rows[0][:, None]).exp_().mul_((1 / rows[1])[:, None])
        row_softmax[at_row, at_column] -= 1
        column_softmax = tile.sub_(columns[0]).exp_().mul_(1 / columns[1])
        column_softmax[at_row, at_column] -= 1
        return column_softmax.mul_(column_gradient).add_(row_softmax.mul_(row_gradient[:, None]))


class _BinaryCrossEntropy:
    """``sum log(1 + exp(-z l))`` with ``z = 1`` for the positive and -1 for the others."""

    def start(self, length: int, like: Tensor) -> tuple[Tensor, ...]:
        return (like.new_zeros(length),)

    def fold(self, rows: tuple[Tensor, ...], columns: tuple[Tensor, ...], tile: Tensor, positives: Positives) -> None:
        tile[positives] *= -1
        softplus = F.softplus(tile)
        rows[0].add_(softplus.sum(dim=1))
        columns[0].add_(softplus.sum(dim=0))

    def over_ranks(self, columns: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (distributed.sum_over_ranks(columns[0]),)

    def losses(self, state: tuple[Tensor, ...]) -> Tensor:
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
        tile[positives] *= -1
        gradient = tile.sigmoid_().mul_(row_gradient[:, None] + column_gradient)
        gradient[positives] *= -1
        return gradient


def _positives(row: slice, column: slice, offset: int, device: torch.device) -> Positives:
    """Return where the positives (row ``i``, column ``offset + i``) lie in the tile ``[row, column]``."""
    start, stop = max(row.start, column.start - offset), min(row.stop, column.stop - offset)
    own = torch.arange(start, max(start, stop), device=device)
    return own - row.start, own + offset - column.start


class _FusedPass(torch.autograd.Function):
    """One sweep over this rank's rows and all columns, reducing both ways; the backward sweep recomputes each tile."""

    @staticmethod
    def forward(
        ctx: Any,
        image: Tensor,
        text: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        geometry: Geometry,
        reduction: _Reduction,
        tile: tuple[int, int],
    ) -> tuple[Tensor, Tensor]:
        all_text = distributed.gather(text)
        rows = reduction.start(len(image), like=image)
        columns = reduction.start(len(all_text), like=image)
        offset = distributed.rank() * len(image)
        for row in _tiles(len(image), tile[0]):
            for column in _tiles(len(all_text), tile[1]):
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
        image, text, scale, bias, *state = ctx.saved_tensors
        rows, columns = tuple(state[: len(state) // 2]), tuple(state[len(state) // 2 :])
        all_text = distributed.gather(text)
        all_column_gradient = distributed.gather(column_gradient)
        image_gradient = torch.zeros_like(image)
        all_text_gradient = torch.zeros_like(all_text)
        scale_gradient = torch.zeros((), dtype=image.dtype, device=image.device)
        bias_gradient = torch.zeros((), dtype=image.dtype, device=image.device)
        offset = distributed.rank() * len(image)
        for row in _tiles(len(image), ctx.tile[0]):
            for column in _tiles(len(all_text), ctx.tile[1]):
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


@dataclass(frozen=True, slots=True)
class Pairs:
    """The pairs of a batch, as an objective sees them: no ranks, tiles, devices or precisions.

    Attributes:
        image: ``(B, D)`` projected image embeddings of this rank, float32 or float64.
        text: ``(B, D)`` projected caption embeddings; row ``i`` is given as the caption of image ``i``.
        scale: ``()`` multiplier of the similarities (never a temperature).
        bias: ``()`` added to the logits, or None.
        index: ``(B,)`` stable sample ids, or None where no objective needs them.
        geometry: how embeddings are compared.
        tile: rows and columns of a tile.
    """

    image: Float[Tensor, "B D"]
    text: Float[Tensor, "B D"]
    scale: Float[Tensor, ""]
    bias: Float[Tensor, ""] | None = None
    index: Int64[Tensor, " B"] | None = None
    geometry: Geometry = field(default_factory=Sphere)
    tile: tuple[int, int] = TILE

    _EXACT: ClassVar[tuple[torch.dtype, ...]] = (torch.float32, torch.float64)

    def __post_init__(self) -> None:
        if self.image.shape != self.text.shape or self.image.ndim != 2:
            raise ValueError(
                f"image and text embeddings must both be (B, D): {tuple(self.image.shape)} and {tuple(self.text.shape)}"
            )
        if self.image.dtype not in self._EXACT or self.image.dtype != self.text.dtype:
            raise ValueError(
                f"similarities are formed in float32 or float64, not {self.image.dtype} and {self.text.dtype}: "
                "project() raises half precisions"
            )

    def __len__(self) -> int:
        return len(self.image)

    def _without_autocast(self) -> torch.autocast:
        return torch.autocast(self.image.device.type, enabled=False)

    def _logits(self, similarity: Tensor) -> Tensor:
        logits = similarity * self.scale.to(similarity)
        return logits if self.bias is None else logits + self.bias.to(similarity)

    def positive_similarities(self) -> Float[Tensor, " B"]:
        """Return the unscaled similarity of every given pair."""
        with self._without_autocast():
            return self.geometry.paired_similarity(self.image, self.text)

    def _fused(self, reduction: _Reduction) -> TwoWay:
        with self._without_autocast():
            rows, columns = cast(
                tuple[Tensor, Tensor],
                _FusedPass.apply(
                    self.image,
                    self.text,
                    self.scale.to(self.image),
                    None if self.bias is None else self.bias.to(self.image),
                    self.geometry,
                    reduction,
                    self.tile,
                ),
            )
        return TwoWay(rows, columns)

    def cross_entropy(self) -> TwoWay:
        """Return how surprising each pair is, both ways, in nats.

        .. code-block:: text

            image[i] = log sum_j exp(logits[i, j]) - logits[i, i]           j over all captions
            text[i]  = log sum_j exp(logits[j, i]) - logits[i, i]           j over all images

        The probability of the given pair is ``exp`` of the negative. Differentiable; one fused pass.
        """
        return self._fused(_CrossEntropy())

    def binary_cross_entropy(self) -> TwoWay:
        """Return the summed losses of yes-or-no questions, both ways, in nats.

        .. code-block:: text

            image[i] = sum_j log(1 + exp(-z_ij logits[i, j]))     z_ij = 1 if i = j else -1,  j over all captions
            text[i]  = sum_j log(1 + exp(-z_ij logits[j, i]))     j over all images

        Differentiable; one fused pass.
        """
        return self._fused(_BinaryCrossEntropy())

    def row_losses(
        self, function: Callable[[Float[Tensor, "b N"], Int64[Tensor, " b"]], Float[Tensor, " b"]], side: Side
    ) -> Float[Tensor, " B"]:
        """Apply ``function`` to complete rows of logits, some rows at a time.

        Args:
            function: takes ``(b, N)`` logits and the ``(b,)`` column of each row's positive, and returns one loss a
                row. It must treat rows independently of each other; it is called again in the backward pass.
            side: which modality the rows are.

        Returns:
            ``(B,)`` losses, differentiable in the embeddings, scale, bias and whatever ``function`` closes over.
        """
        rows, others = (self.image, self.text) if side is Side.IMAGE else (self.text, self.image)
        columns = distributed.gather_with_gradient(others)
        positives = torch.arange(len(rows), device=rows.device) + distributed.rank() * len(rows)

        def block(block_rows: Tensor, block_columns: Tensor, block_positives: Tensor) -> Tensor:
            with self._without_autocast():
                logits = self._logits(self.geometry.similarity(block_rows, block_columns))
                return function(logits, block_positives)

        losses = [
            checkpoint(block, rows[part], columns, positives[part], use_reentrant=False)
            for part in _tiles(len(rows), self.tile[0])
        ]
        return torch.cat(losses)


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
        torch.topk(geometry.similarity(queries[rows], candidates), k, dim=1) for rows in _tiles(len(queries), tile_rows)
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
    the candidates gets rank ``C``.

    Memory is ``O(tile_rows * C)``.
    """
    ranks = []
    for rows in _tiles(len(queries), tile_rows):
        similarity = geometry.similarity(queries[rows], candidates)
        positive = query_group[rows, None] == candidate_group[None, :]
        best = similarity.masked_fill(~positive, -torch.inf).amax(dim=1, keepdim=True)
        negatives = similarity.masked_fill_(positive, -torch.inf)
        ahead = (negatives > best).sum(dim=1)
        tied = (negatives == best).sum(dim=1) * torch.isfinite(best[:, 0])
        rank = ahead + (tied + 1) // 2
        ranks.append(torch.where(positive.any(dim=1), rank, len(candidates)))
    if not ranks:
        return torch.empty(0, dtype=torch.int64, device=queries.device)
    return torch.cat(ranks)
