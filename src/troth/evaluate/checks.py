"""What every task asks of the tensors it is given."""

from __future__ import annotations

import torch
from jaxtyping import Int64
from torch import Tensor

from troth.errors import UserError
from troth.geometry import Geometry


def check_points(geometry: Geometry | None = None, /, **points: Tensor) -> None:
    """Check that named point sets are ``(n, D)``, not empty, finite, and can be compared.

    Sets of different D are compared by nobody but a geometry that knows how (FILIP's, of so many tokens a side).

    Raises:
        UserError: naming the first set that is not, or from the geometry.
    """
    dims: dict[str, int] = {}
    for name, tensor in points.items():
        shape = tuple(tensor.shape)
        if tensor.ndim != 2 or 0 in shape:
            raise UserError(f"expected a non-empty (count, dimensions) tensor, got shape {shape}", where=name)
        if not bool(torch.isfinite(tensor).all()):
            raise UserError(
                "holds values that are not finite",
                where=name,
                remedy="the model diverged or overflowed; see its loss",
            )
        dims[name] = shape[1]
    if len(set(dims.values())) > 1:
        if geometry is not None:
            first, second = points.values()
            geometry.similarity(first[:1], second[:1])
            return
        raise UserError(f"embeddings of different dimensions cannot be compared: {dims}")


def check_ids(name: str, ids: Tensor, count: int) -> Int64[Tensor, " n"]:
    """Return ``ids`` as ``(count,)`` int64 on the CPU.

    Raises:
        UserError: for another shape or values that are not whole numbers.
    """
    if tuple(ids.shape) != (count,):
        raise UserError(f"expected shape ({count},), one a row, got {tuple(ids.shape)}", where=name)
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise UserError(f"expected whole numbers, got {ids.dtype}", where=name)
    return ids.detach().to("cpu", torch.int64)


def check_labels(name: str, labels: Tensor, count: int, num_classes: int) -> Int64[Tensor, " n"]:
    """Return ``labels`` as ``(count,)`` int64 in ``[0, num_classes)``, on the CPU.

    Raises:
        UserError: naming the first label out of range.
    """
    checked = check_ids(name, labels, count)
    outside = ((checked < 0) | (checked >= num_classes)).nonzero().flatten()
    if len(outside):
        row = int(outside[0])
        raise UserError(
            f"label {int(checked[row])} of row {row} is not one of the {num_classes} classes "
            f"({len(outside)} such rows)",
            where=name,
            remedy=f"labels are 0 to {num_classes - 1}",
        )
    return checked


def usable_cutoffs(cutoffs: tuple[int, ...], count: int, what: str) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Split off the cut-offs that mean nothing with ``count`` candidates.

    Returns:
        the cut-offs ``k < count`` (for a single candidate: 1), sorted and unique, and a note for those dropped. With
        ``k >= count`` every query would be "right".

    Raises:
        UserError: for a cut-off below 1.
    """
    if any(k < 1 for k in cutoffs):
        raise UserError(f"cut-offs must be at least 1, got {min(cutoffs)}", where="k")
    wanted = sorted(set(cutoffs))
    kept = tuple(k for k in wanted if k < count or k == 1)
    dropped = [str(k) for k in wanted if k not in kept]
    notes = (f"k = {', '.join(dropped)} left out: there are only {count} {what}.",) if dropped else ()
    return kept, notes
