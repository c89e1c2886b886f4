"""What the geometries share: raising precision, unit vectors, equal widths, gradients written out by hand."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from troth.errors import UserError

#: A vector shorter than this has no direction: it is taken for zero.
SHORTEST = 1e-12

#: The backward pass of an autograd function.
Backward = TypeVar("Backward", bound=Callable[..., Any])
#: ``similarity(rows, columns)``
Value = Callable[[Tensor, Tensor], Tensor]
#: ``similarity_gradient(gradient, rows, columns)``
Gradient = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def at_least_float32(features: Tensor) -> Tensor:
    """Raise half precisions to float32; float32 and float64 are kept."""
    return features.float() if features.dtype in (torch.float16, torch.bfloat16) else features


def unit(vectors: Float[Tensor, "... n"]) -> Float[Tensor, "... n"]:
    """Divide by the Euclidean length along the last dimension.

    Vectors shorter than :data:`SHORTEST` become exactly zero and pass no gradient back: dividing by a small constant
    instead, as is often done, multiplies their gradient by its inverse, 1e12.
    """
    length: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    short = length < SHORTEST
    return (vectors / length.masked_fill(short, 1.0)).masked_fill(short, 0.0)


def check_widths(rows: Tensor, columns: Tensor) -> None:
    """Check that points can be compared dimension by dimension.

    Raises:
        UserError: if they are of different widths.
    """
    if rows.shape[-1] != columns.shape[-1]:
        raise UserError(
            f"embeddings of {rows.shape[-1]} and {columns.shape[-1]} dimensions cannot be compared",
            where="geometry",
            remedy="give both towers the same number of dimensions",
        )


def exactly(backward: Backward) -> Backward:
    """Keep autocast away from a gradient written out by hand.

    A backward pass called inside autocast would form its products in half precision and weigh them against what the
    forward pass kept in full.
    """

    @functools.wraps(backward)
    def outside_autocast(ctx: Any, *gradients: Tensor) -> Any:
        with torch.autocast(gradients[0].device.type, enabled=False):
            return backward(ctx, *gradients)

    return cast(Backward, outside_autocast)


class _ByHand(torch.autograd.Function):
    """A value whose gradient is written out, and which keeps nothing but its inputs for it."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, columns: Tensor, value: Value, gradient: Gradient) -> Tensor:
        ctx.save_for_backward(rows, columns)
        ctx.gradient = gradient
        return value(rows, columns)

    @staticmethod
    @once_differentiable
    @exactly
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        rows, columns = ctx.gradient(gradient, *ctx.saved_tensors)
        return rows, columns, None, None


def by_hand(rows: Tensor, columns: Tensor, value: Value, gradient: Gradient) -> Tensor:
    """Return ``value(rows, columns)``, whose backward pass calls ``gradient``."""
    return cast(Tensor, _ByHand.apply(rows, columns, value, gradient))
