"""Which pairs of a batch have the same caption."""

from __future__ import annotations

import torch
from jaxtyping import Int64
from torch import Tensor

#: The integer type whose bits are those of one element of so many bytes.
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def caption_groups(text: Tensor) -> Int64[Tensor, " B"]:
    """Return a number for each row of ``text``, equal for equal rows.

    The rows' bits are hashed, not compared: no float is rounded or ordered, every device gives the same numbers, and
    ranks that have never seen each other's rows agree. Two different rows get one number with a probability of about
    ``2 ** -64``.

    Args:
        text: ``(B, L)`` token ids, or ``(B, D)`` frozen features. Rows are equal if their bits are: a caption cut to
            the tokeniser's length is equal to any other that begins so, and 0.0 differs from -0.0.
    """
    rows = text.detach().flatten(start_dim=1).contiguous()
    bits = rows.view(_BITS[rows.element_size()]).to(torch.int64)
    # Each place mixes its value with a salt of its own, so that the order counts although the sum has none.
    salt = _mix(torch.arange(bits.shape[1], device=bits.device))
    return _mix(_mix(bits ^ salt).sum(dim=1))


def _mix(x: Tensor) -> Tensor:
    """Splitmix64's mixing function (Steele, Lea and Flood 2014); products and sums are modulo 2 ** 64."""
    x = x + _signed(0x9E3779B97F4A7C15)
    x = (x ^ _shifted(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shifted(x, 31)


def _signed(constant: int) -> int:
    return constant - 2**64


def _shifted(x: Tensor, places: int) -> Tensor:
    """Shift to the right and fill with zeros, where torch's own shift repeats the sign."""
    shifted: Tensor = (x >> places) & (2 ** (64 - places) - 1)
    return shifted
