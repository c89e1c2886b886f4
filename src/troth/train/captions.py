"""Which pairs of a batch have the same caption."""

from __future__ import annotations

import torch
from jaxtyping import Int64
from torch import Tensor

from troth.draws import splitmix64

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
    salt = splitmix64(torch.arange(bits.shape[1], device=bits.device))
    return splitmix64(splitmix64(bits ^ salt).sum(dim=1))
