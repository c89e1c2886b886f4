"""Distances and angles between every row and every column, exact where points (nearly) coincide.

A matrix product gives all distances at once, ``|u - v|^2 = |u|^2 + |v|^2 - 2 <u, v>``, and all angles,
``arccos <u, v>``; but where two points nearly coincide the terms cancel, and in float32 a distance below about
``3e-4 |u|`` is rounding and nothing else. Clamping does not help: it biases the values and cuts the gradient. Where the
product loses digits (:data:`NEAR`) the difference of the two points is taken instead, entry by entry, for the value and
for the gradient, which is exact to a few units in the last place. In a batch these are the well-fitted pairs and few
others, so that the cost stays that of the product; where more than :data:`MANY` of a block are near, all its
differences are taken in one sweep (``torch.cdist`` without its matrix product), which forms no ``(b, N, D)`` tensor.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float, Int64
from torch import Tensor

#: Row and column numbers of entries of a block: two index tensors of one length.
Entries = tuple[Int64[Tensor, " n"], ...]

#: Points are near where ``|u - v|^2 <= NEAR (|u|^2 + |v|^2)``. At the border the product's rounding is magnified
#: ``1 / NEAR`` times in the squared distance, half of that in the distance.
NEAR = 1 / 32
#: Share of a block that is near from which on all differences are taken: gathered, a difference costs eight times more.
MANY = 1 / 8
#: Numbers gathered at a time: 4 Mi, 16 MiB in float32.
GATHERED = 2**22
#: Numbers the sweep's gradient handles at a time: on a GPU it forms the differences, 256 MiB of them in float32.
SWEPT = 2**26


def distances(rows: Float[Tensor, "b D"], columns: Float[Tensor, "N D"]) -> Float[Tensor, "b N"]:
    """Return ``|rows_i - columns_j|`` to a relative error of some ``1 / NEAR`` roundings, 0 for equal points."""
    squared, near = _squared_distances(rows, columns)
    # Where rounding made a square negative the points are near, and the entry is replaced.
    result = squared.clamp_min_(0.0).sqrt_()
    result[near] = _lengths(near, rows, columns)
    return result


def distances_gradient(
    gradient: Float[Tensor, "b N"], rows: Float[Tensor, "b D"], columns: Float[Tensor, "N D"]
) -> tuple[Float[Tensor, "b D"], Float[Tensor, "N D"]]:
    """Pull a gradient with respect to :func:`distances` back: ``(u - v) / |u - v|`` a pair, 0 for equal points."""
    weight, near = _squared_distances(rows, columns)
    # The near entries leave the products: their large weights would magnify the rounding of everything beside them.
    weight[near] = torch.inf
    weight.rsqrt_().mul_(gradient)
    near_rows, near_columns = _lengths_gradient(gradient[near], near, rows, columns)
    return (
        near_rows.add_(weight.sum(dim=1, keepdim=True) * rows).sub_(weight @ columns),
        near_columns.add_(weight.sum(dim=0).unsqueeze(1) * columns).sub_(weight.T @ rows),
    )


def angles(rows: Float[Tensor, "b n"], columns: Float[Tensor, "N n"]) -> Float[Tensor, "b N"]:
    """Return the angles between unit vectors, in radians in [0, pi].

    Near 0 the angle is ``2 arcsin(|u - v| / 2)``, near pi it is ``pi - 2 arcsin(|u + v| / 2)``; equal vectors are at
    exactly 0, opposite ones at pi. A zero vector is at pi / 2 from every other. The error is a few roundings of the
    angle, or of pi near pi; not counting that the vectors' lengths are 1 to a rounding only, which is felt below 1e-6.
    """
    cosine = rows @ columns.T
    equal, opposite = _near_ends(cosine)
    angle = cosine.acos_()
    if len(equal[0]):
        angle[equal] = _angle_of_chord(_lengths(equal, rows, columns))
    if len(opposite[0]):
        angle[opposite] = math.pi - _angle_of_chord(_lengths(opposite, rows, -columns))
    return angle


def angles_gradient(
    gradient: Float[Tensor, "b N"],
    rows: Float[Tensor, "b n"],
    columns: Float[Tensor, "N n"],
) -> tuple[Float[Tensor, "b n"], Float[Tensor, "N n"]]:
    """Pull a gradient with respect to :func:`angles` back, tangent to the sphere.

    .. code-block:: text

        d angle / d u = -(v - <u, v> u) / sin(angle)

    has length one wherever there is a direction; for equal and for opposite vectors it is 0.
    """
    cosine = rows @ columns.T
    equal, opposite = _near_ends(cosine)
    weight = torch.addcmul(cosine.new_ones(()), cosine, cosine, value=-1)
    weight[equal] = weight[opposite] = torch.inf
    weight.rsqrt_().mul_(gradient)
    row_gradient, column_gradient = (weight @ columns).neg_(), (weight.T @ rows).neg_()
    # Near pi the angle is pi minus that of u and -v: a minus for the rows, and a second one for the columns.
    for entries, row_sign, ends in ((equal, 1, columns), (opposite, -1, -columns)):
        if len(entries[0]):
            # d angle / d chord = 1 / cos(angle / 2), and cos(angle / 2)^2 = (1 + cos(angle)) / 2.
            pull = gradient[entries] / cosine[entries].abs().add_(1.0).mul_(0.5).sqrt_()
            near_rows, near_columns = _lengths_gradient(pull, entries, rows, ends)
            row_gradient.add_(near_rows, alpha=row_sign)
            column_gradient.add_(near_columns)
    return _tangent(row_gradient, rows), _tangent(column_gradient, columns)


def _squared_distances(rows: Tensor, columns: Tensor) -> tuple[Float[Tensor, "b N"], Entries]:
    squares = rows.square().sum(dim=1).unsqueeze(1) + columns.square().sum(dim=1)
    squared = torch.addmm(squares, rows, columns.T, alpha=-2)
    return squared, (squared <= squares.mul_(NEAR)).nonzero(as_tuple=True)


def _near_ends(cosine: Float[Tensor, "b N"]) -> tuple[Entries, Entries]:
    """Return the entries of nearly equal and of nearly opposite unit vectors."""
    border = 1 - NEAR
    # Mostly there are none, which one pass without a table of flags finds out.
    if not cosine.numel() or bool(torch.stack(cosine.aminmax()).abs().max() < border):
        nothing = torch.empty(0, dtype=torch.int64, device=cosine.device)
        return (nothing, nothing), (nothing, nothing)
    i, j = (cosine.abs() >= border).nonzero(as_tuple=True)
    opposite = cosine[i, j] < 0
    return (i[~opposite], j[~opposite]), (i[opposite], j[opposite])


def _angle_of_chord(chord: Tensor) -> Tensor:
    """Return the angle that a chord of the unit circle spans."""
    return chord.mul(0.5).clamp_(max=1.0).asin_().mul_(2.0)


def _tangent(gradient: Tensor, at: Tensor) -> Tensor:
    """Remove from each row of ``gradient`` its part along the unit vector ``at``."""
    return gradient - (gradient * at).sum(dim=1, keepdim=True) * at


def _sweep(rows: Tensor, columns: Tensor) -> Float[Tensor, "b N"]:
    return torch.cdist(rows, columns, compute_mode="donot_use_mm_for_euclid_dist")


def _is_many(entries: Entries, rows: Tensor, columns: Tensor) -> bool:
    return len(entries[0]) > MANY * len(rows) * len(columns)


def _pieces(entries: Entries, width: int) -> Iterator[slice]:
    """Yield parts of the list of entries whose differences are at most :data:`GATHERED` numbers."""
    size = max(1, GATHERED // width)
    for start in range(0, len(entries[0]), size):
        yield slice(start, start + size)


def _lengths(entries: Entries, rows: Float[Tensor, "b D"], columns: Float[Tensor, "N D"]) -> Float[Tensor, " n"]:
    """Return ``|rows_i - columns_j|`` of the entries, from differences."""
    if _is_many(entries, rows, columns):
        return _sweep(rows, columns)[entries]
    lengths = rows.new_empty(len(entries[0]))
    i, j = entries
    for part in _pieces(entries, rows.shape[1]):
        lengths[part] = torch.linalg.vector_norm(rows[i[part]] - columns[j[part]], dim=1)
    return lengths


def _lengths_gradient(
    gradient: Float[Tensor, " n"], entries: Entries, rows: Float[Tensor, "b D"], columns: Float[Tensor, "N D"]
) -> tuple[Float[Tensor, "b D"], Float[Tensor, "N D"]]:
    """Pull a gradient with respect to :func:`_lengths` back."""
    row_gradient, column_gradient = torch.zeros_like(rows), torch.zeros_like(columns)
    i, j = entries
    if _is_many(entries, rows, columns):
        block = rows.new_zeros(len(rows), len(columns))
        block[entries] = gradient
        size = max(1, SWEPT // columns.numel())
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            with torch.enable_grad():
                ends = rows[part].detach().requires_grad_(), columns.detach().requires_grad_()
                distance = _sweep(*ends)
            row_gradient[part], columns_part = torch.autograd.grad(distance, ends, block[part])
            column_gradient += columns_part
        return row_gradient, column_gradient
    for part in _pieces(entries, rows.shape[1]):
        difference = rows[i[part]] - columns[j[part]]
        length = torch.linalg.vector_norm(difference, dim=1, keepdim=True)
        pull = (gradient[part].unsqueeze(1) * (difference / length)).masked_fill_(length == 0, 0.0)
        row_gradient.index_add_(0, i[part], pull)
        column_gradient.index_add_(0, j[part], pull, alpha=-1)
    return row_gradient, column_gradient
