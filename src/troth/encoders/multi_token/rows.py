"""Parameters that grow by the rows of added class tokens."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from troth.errors import UserError


class Added(NamedTuple):
    """Where the rows of the added class tokens are in a parameter.

    Attributes:
        dim: the dimension that counts rows.
        first: the first added row.
        number: how many rows were added.
    """

    dim: int
    first: int
    number: int

    def kept(self, size: int) -> Int64[Tensor, " rows"]:
        """Return which of ``size`` rows a tower with one class token has."""
        rows = torch.arange(size)
        return torch.cat([rows[: self.first], rows[self.first + self.number :]])


def adopt(tower: nn.Module, built: nn.Module) -> None:
    """Make ``tower``, of a subclass of the class of ``built``, own the modules and parameters of ``built``."""
    nn.Module.__init__(tower)
    for name, value in vars(built).items():
        # Containers are copied: what is added to the one must not show up in the other.
        tower.__dict__[name] = copy.copy(value) if isinstance(value, (dict, set)) else value


def grown(parameter: Tensor, added: Added, rows: Tensor) -> nn.Parameter:
    """Return ``parameter`` with ``rows`` inserted where ``added`` says; it learns if ``parameter`` does."""
    before, after = torch.tensor_split(parameter.detach(), [added.first], dim=added.dim)
    together = torch.cat([before, rows.to(parameter), after], added.dim)
    return nn.Parameter(together, requires_grad=parameter.requires_grad)


def new_projection(width: int, sub_dim: int) -> nn.Parameter:
    """Return a projection ``(width, sub_dim)`` drawn from N(0, 1 / width), as open_clip's towers draw theirs."""
    return nn.Parameter(width**-0.5 * torch.randn(width, sub_dim))


def new_linear(width: int, sub_dim: int) -> nn.Linear:
    """Return the projection of :func:`new_projection` as a layer without bias."""
    layer = nn.Linear(width, sub_dim, bias=False)
    with torch.no_grad():
        layer.weight.copy_(new_projection(width, sub_dim).T)
    return layer


def project(tokens: Float[Tensor, "B m W"], projection: Any) -> Float[Tensor, "B m_n"]:
    """Project every token with one matrix or layer, and put the tokens side by side."""
    if isinstance(projection, nn.Module):
        tokens = projection(tokens)
    elif projection is not None:
        tokens = tokens @ projection
    return tokens.flatten(1)


def no_intermediates() -> UserError:
    """Return the error of towers that are asked for what open_clip's keep between their blocks."""
    return UserError(
        "towers with several class tokens do not give the features between their blocks: open_clip's counts on one",
        where="forward_intermediates",
        remedy="register forward hooks on the blocks",
    )
