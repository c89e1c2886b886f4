"""Affinities: how similar the samples of one modality are among themselves, and how far two such tables agree.

For rows of unit length, the affinities of two views of the same ``N`` samples (images and captions; a student and its
teacher) are

.. code-block:: text

    S_ij = <left_i, left_j>,      R_ij = <right_i, right_j>,      d_ij = S_ij - R_ij

and both tables are symmetric with ones on the diagonal. Absolute differences have to be formed one by one: one sweep
over tiles, the upper triangle only, recomputed in the backward pass. Whatever is quadratic in the affinities (squared
differences, correlations) needs no table at all, because sums over ``j`` go inside:

.. code-block:: text

    sum_j S_ij^2    = left_i' (sum_j left_j left_j') left_i
    sum_j S_ij R_ij = left_i' (sum_j left_j right_j') right_i

so that products with ``D x D`` second moments, ``O(N D^2)``, are exact. They are taken in float64: the squares of two
nearly equal tables cancel almost completely.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal, NamedTuple, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from troth import distributed
from troth.errors import UserError
from troth.geometry import Geometry, Sphere
from troth.geometry.points import exactly, unit
from troth.similarity.block import TILE, tiles

#: How two rows of affinities are compared.
AffinityDistance = Literal["l1", "l2", "pearson"]

#: What the mean over pairs of the losses is: the mean over entries, the mean over rows of sums, or the plain sum.
AffinityReduction = Literal["mean", "row", "sum"]

#: Affinities that vary by less than a millionth of their size (a collapsed model's) have no correlation with anything.
_CONSTANT = 1e-12


def unit_rows(points: Float[Tensor, "B ..."], geometry: Geometry) -> Float[Tensor, "B D"]:
    """Return points of any geometry as rows of unit length, whose inner products are affinities.

    Points of the sphere are taken as they are; others are flattened and normalised, which divides an oblique point of
    ``m`` unit vectors by ``sqrt(m)``.
    """
    return points if isinstance(geometry, Sphere) else unit(points.flatten(1))


def affinity_distance(
    left: Float[Tensor, "B D"],
    right: Float[Tensor, "B E"],
    distance: AffinityDistance,
    reduction: AffinityReduction = "mean",
    keep: Bool[Tensor, " B"] | None = None,
    tile: tuple[int, int] = TILE,
) -> Float[Tensor, " B"]:
    """Return how far each sample's affinities in one view are from those in the other.

    With ``n`` of the ``N`` samples of all ranks kept, and ``i``, ``j`` kept (a sample that is not kept gets 0):

    .. code-block:: text

        l1       D_i = sum_j |S_ij - R_ij|
        l2       D_i = sum_j (S_ij - R_ij)^2
        pearson  D_i = 1 - correlation over j != i of S_ij and R_ij

        mean     loss_i = N / n^2 D_i    mean over i: the mean over entries    (pearson: as "row")
        row      loss_i = N / n   D_i    mean over i: the mean over rows
        sum      loss_i = N       D_i    mean over i: the plain sum

    The diagonal is 0 for l1 and l2, in value and gradient. A correlation with affinities that do not vary, or with
    fewer than two others, is 0 and has no gradient. The l1 derivative is 0 where two affinities are equal.

    Args:
        left: this rank's rows of unit length.
        right: the other view of the same samples, of unit length; another width is fine.
        distance: how rows of affinities are compared.
        reduction: what the mean of the losses over all pairs is.
        keep: which of this rank's samples take part, as rows and as columns; None: all.
        tile: rows and columns of a tile; the rows whose float64 copies are held at once, for the others.

    Returns:
        ``(B,)`` losses in the dtype of ``left``, differentiable in ``left`` and ``right`` of all ranks. What a rank
        gets is the derivative of the sum of all ranks' losses. A side that needs no gradient is not computed one.
    """
    total = len(left) * distributed.world_size()
    kept = left.new_tensor(float(len(left))) if keep is None else keep.sum().to(left)
    kept = distributed.sum_over_ranks(kept).clamp(min=1)
    if distance == "l1":
        distances = cast(Tensor, _AbsoluteDifferences.apply(left, right, keep, tile))
    else:
        function = _squared_differences if distance == "l2" else _decorrelations
        rows = (left, right) if keep is None else (left[keep], right[keep])
        distances = cast(Tensor, _Rows.apply(*rows, function, tile[0]))
        if keep is not None:
            distances = left.new_zeros(len(left)).masked_scatter(keep, distances)
    if reduction == "sum":
        return distances * total
    per_entry = reduction == "mean" and distance != "pearson"
    return distances * (total / kept.square() if per_entry else total / kept)


def cyclic_consistency(
    image: Float[Tensor, "B D"],
    text: Float[Tensor, "B D"],
    in_modal: float,
    cross_modal: float,
    tile: tuple[int, int] = TILE,
) -> Float[Tensor, " B"]:
    """Return CyCLIP's two squared inconsistencies, summed over each image's row, ``j`` over all ranks.

    .. code-block:: text

        in_modal sum_j (<I_i, I_j> - <T_i, T_j>)^2  +  cross_modal sum_j (<I_i, T_j> - <T_i, I_j>)^2

    Differentiable as :func:`affinity_distance`.

    Raises:
        UserError: if images and captions have different widths, and no inner product.
    """
    if image.shape != text.shape:
        raise UserError(
            f"images and captions cannot be compared: they have {image.shape[1]} and {text.shape[1]} numbers",
            where="objective",
            remedy="use a geometry of one point a sample",
        )

    def rows(moments: Moments, image: Tensor, text: Tensor) -> Tensor:
        both, ours, theirs = moments.cross, moments.left, moments.right
        return (
            _paired(image, in_modal * ours + cross_modal * theirs, image)
            - 2 * _paired(image, in_modal * both + cross_modal * both.T, text)
            + _paired(text, in_modal * theirs + cross_modal * ours, text)
        ).clamp(min=0)

    return cast(Tensor, _Rows.apply(image, text, rows, tile[0]))


@torch.no_grad()
def row_correlations(
    left: Float[Tensor, "N D"], right: Float[Tensor, "N E"], *, with_self: bool
) -> Float[Tensor, " N"]:
    """Return the correlation of each sample's two rows of affinities, in float64; nothing is asked of other ranks.

    Args:
        left: rows of unit length.
        right: the other view of the same samples, of unit length.
        with_self: whether a sample's affinity to itself, 1 in both views, is among its affinities.
    """
    left, right = left.double(), right.double()
    moments = Moments.of(left, right, TILE[0])
    return _by_rows(partial(_correlation, with_self=with_self), moments, left, right, TILE[0])


class Moments(NamedTuple):
    """Sums over samples ``j`` in float64: how many, of each view, and of the products of their dimensions."""

    number: Tensor
    left_sum: Tensor
    right_sum: Tensor
    left: Tensor
    cross: Tensor
    right: Tensor

    @staticmethod
    def of(left: Tensor, right: Tensor, size: int) -> Moments:
        """Sum over this rank's rows, ``size`` at a time."""
        shapes = (left.shape[1:], right.shape[1:])
        sums = [(), *shapes, *((*one, *other) for one, other in ((shapes[0],) * 2, shapes, (shapes[1],) * 2))]
        moments = Moments(*(left.new_zeros(shape, dtype=torch.float64) for shape in sums))
        moments.number.add_(len(left))
        for part in tiles(len(left), size):
            one, other = left[part].double(), right[part].double()
            moments.left_sum.add_(one.sum(dim=0))
            moments.right_sum.add_(other.sum(dim=0))
            moments.left.addmm_(one.T, one)
            moments.cross.addmm_(one.T, other)
            moments.right.addmm_(other.T, other)
        return moments


#: Makes one number a row of ``(moments, left, right)``, all float64, treating rows independently of each other.
RowFunction = Callable[[Moments, Tensor, Tensor], Tensor]


class _Rows(torch.autograd.Function):
    """A :data:`RowFunction` of the moments over all ranks, some rows at a time, recomputed in the backward pass.

    A row has two gradients: its own value's, and every value's on every rank through the moments it is summed into.
    """

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, function: RowFunction, size: int) -> Tensor:
        moments = Moments(*(distributed.sum_over_ranks(each) for each in Moments.of(left, right, size)))
        ctx.save_for_backward(left, right, *moments)
        ctx.function, ctx.size = function, size
        return _by_rows(function, moments, left, right, size)

    @staticmethod
    @once_differentiable
    @exactly
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        views, sums = [x.detach() for x in ctx.saved_tensors[:2]], ctx.saved_tensors[2:]
        for_left, for_right = ctx.needs_input_grad[:2]
        parts = [
            torch.zeros_like(x) if needed else None for x, needed in zip(views, (for_left, for_right), strict=True)
        ]
        wanted = (False, for_left, for_right, for_left, True, for_right)
        moments = Moments(*(x.detach().requires_grad_(needed) for x, needed in zip(sums, wanted, strict=True)))
        through = Moments(*(torch.zeros_like(x) for x in sums))
        for part in tiles(len(gradient), ctx.size):
            rows = [x[part].double() for x in views]
            rows = [x.detach().requires_grad_(y is not None) for x, y in zip(rows, parts, strict=True)]
            with torch.enable_grad():
                values = ctx.function(moments, *rows)
            leaves = [x for x in (*rows, *moments) if x.requires_grad]
            totals = [x[part] for x in parts if x is not None]
            totals += [total for total, needed in zip(through, wanted, strict=True) if needed]
            found = torch.autograd.grad(values, leaves, gradient[part].double(), materialize_grads=True)
            for total, each in zip(totals, found, strict=True):
                total.add_(each)
        through = Moments(*(distributed.sum_over_ranks(each) for each in through))
        for part in tiles(len(gradient), ctx.size):
            one, other = (x[part].double() for x in views)
            if parts[0] is not None:
                indirect = one @ (through.left + through.left.T) + other @ through.cross.T + through.left_sum
                parts[0][part].add_(indirect)
            if parts[1] is not None:
                indirect = other @ (through.right + through.right.T) + one @ through.cross + through.right_sum
                parts[1][part].add_(indirect)
        return *parts, None, None


def _by_rows(function: RowFunction, moments: Moments, left: Tensor, right: Tensor, size: int) -> Tensor:
    values = left.new_zeros(len(left))
    for part in tiles(len(left), size):
        values[part] = function(moments, left[part].double(), right[part].double())
    return values


def _paired(rows: Tensor, matrix: Tensor, others: Tensor) -> Tensor:
    """Return ``rows_i' matrix others_i``."""
    return ((rows @ matrix) * others).sum(dim=1)


def _squared_differences(moments: Moments, left: Tensor, right: Tensor) -> Tensor:
    """Return ``sum_j (S_ij - R_ij)^2``."""
    squares = _paired(left, moments.left, left) + _paired(right, moments.right, right)
    return (squares - 2 * _paired(left, moments.cross, right)).clamp(min=0)  # rounding may go below


def _decorrelations(moments: Moments, left: Tensor, right: Tensor) -> Tensor:
    """Return one minus the correlation of ``S_ij`` and ``R_ij`` over ``j != i``."""
    return (1 - _correlation(moments, left, right, with_self=False)).clamp(min=0)


def _correlation(moments: Moments, left: Tensor, right: Tensor, *, with_self: bool) -> Tensor:
    """Return the correlation of each row's affinities, from what can be summed over ``j`` beforehand."""
    own_left, own_right = left.square().sum(dim=1), right.square().sum(dim=1)
    weight = 0.0 if with_self else 1.0
    count = (moments.number - weight).clamp(min=1)
    mean_left = (left @ moments.left_sum - weight * own_left) / count
    mean_right = (right @ moments.right_sum - weight * own_right) / count
    square_left = (_paired(left, moments.left, left) - weight * own_left.square()) / count
    square_right = (_paired(right, moments.right, right) - weight * own_right.square()) / count
    product = (_paired(left, moments.cross, right) - weight * own_left * own_right) / count
    variance_left, variance_right = square_left - mean_left.square(), square_right - mean_right.square()
    varies = (variance_left > _CONSTANT * square_left) & (variance_right > _CONSTANT * square_right)
    # Where it is not defined, the root is taken of 1, so that its derivative stays finite before it is thrown away.
    scale = torch.where(varies, variance_left * variance_right, 1.0).sqrt()
    return torch.where(varies, (product - mean_left * mean_right) / scale, 0.0)


class _AbsoluteDifferences(torch.autograd.Function):
    """``sum_j |S_ij - R_ij|`` over kept samples. By symmetry every derivative comes from own rows:

    ``d/d left_i = sum_j (g_i + g_j) sign(d_ij) left_j``, with ``g_j`` the gradient that arrives for row ``j``, wherever
    that row is; ``right`` has the same with the other sign.
    """

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, keep: Tensor | None, tile: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(left, right, keep)
        ctx.tile = tile
        sweep = _Sweep(left, right, keep, tile)
        sums = left.new_zeros(sweep.count)
        for row, _, mirror, difference in sweep:
            difference.abs_()
            sums[row] += difference.sum(dim=1)
            if mirror is not None:
                sums[mirror] += difference.sum(dim=0)
        return sweep.all_own(sums)

    @staticmethod
    @once_differentiable
    @exactly
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        left, right, keep = ctx.saved_tensors
        sweep = _Sweep(left, right, keep, ctx.tile)
        own, every = sweep.kept(gradient)
        sides = [(1, *sweep.left), (-1, *sweep.right)]
        parts = [
            torch.zeros_like(rows) if ctx.needs_input_grad[which] else None for which, (_, rows, _) in enumerate(sides)
        ]
        for row, column, mirror, difference in sweep:
            difference.sign_().mul_(own[row, None] + every[column])
            for part, (sign, rows, columns) in zip(parts, sides, strict=True):
                if part is not None:
                    part[row].addmm_(difference, columns[column], alpha=sign)
                    if mirror is not None:
                        part[mirror].addmm_(difference.T, rows[row], alpha=sign)
        return *(None if part is None else sweep.all_own(part) for part in parts), None, None


class _Sweep:
    """The differences ``S - R`` between this rank's kept samples and all kept samples, tile by tile.

    What lies within this rank's own samples is symmetric, and only its upper triangle is formed.
    """

    def __init__(self, left: Tensor, right: Tensor, keep: Tensor | None, tile: tuple[int, int]) -> None:
        self._keep, self._tile = keep, tile
        self._all_keep = None if keep is None else distributed.gather(keep)
        self.left, self.right = self.kept(left), self.kept(right)
        self.count = len(self.left[0])
        before = distributed.rank() * len(left)
        self._offset = before if self._all_keep is None else int(self._all_keep[:before].sum())

    def kept(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return the kept among this rank's ``(B, ...)`` values, and among all ranks'."""
        every = distributed.gather(values)
        if self._keep is None or self._all_keep is None:
            return values, every
        return values[self._keep], every[self._all_keep]

    def all_own(self, values: Tensor) -> Tensor:
        """Put values of this rank's kept samples among zeros for the others."""
        if self._keep is None:
            return values
        result = values.new_zeros((len(self._keep), *values.shape[1:]))
        result[self._keep] = values
        return result

    def __iter__(self) -> Iterator[tuple[slice, slice, slice | None, Tensor]]:
        """Yield rows, columns, those rows that the columns are too if the tile stands for its mirror, and the tile."""
        first, last = self._offset, self._offset + self.count
        for row in tiles(self.count, self._tile[0]):
            for other in tiles(self.count, self._tile[0]):
                if other.start >= row.start:
                    tile = self._difference(row, column := slice(first + other.start, first + other.stop))
                    if other == row:
                        tile.fill_diagonal_(0)  # both are 1; what rounding leaves would have a sign
                    yield row, column, None if other == row else other, tile
            for start, stop in ((0, first), (last, len(self.left[1]))):
                for part in tiles(stop - start, self._tile[1]):
                    column = slice(start + part.start, start + part.stop)
                    yield row, column, None, self._difference(row, column)

    def _difference(self, row: slice, column: slice) -> Tensor:
        difference = self.left[0][row] @ self.left[1][column].T
        return difference.addmm_(self.right[0][row], self.right[1][column].T, alpha=-1)
