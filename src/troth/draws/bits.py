"""From names to random bits: sample ids to 64-bit keys, two keys to 64 bits of their own for every pair."""

from __future__ import annotations

import hashlib

import torch
from jaxtyping import Int32, Int64
from torch import Tensor

#: Odd multipliers of the mixing rounds: the primes and mixing constants of xxHash32 and MurmurHash3, as signed numbers.
_MULTIPLIERS = (-1640531535, -2048144777, -1028477379, 668265263, 374761393, -1640531527)
_SHIFTS = (15, 16)


def keys(seed: int, step: int, stream: str, role: str, ids: Int64[Tensor, " B"]) -> Int32[Tensor, "B 2"]:
    """Return a 64-bit key a sample, as two 32-bit lanes; different samples have different keys.

    Args:
        seed: the run's seed, any integer.
        step: the training step.
        stream: what the draws are for, so that two uses of one step are independent.
        role: ``row``, ``column`` or ``sample``: the pair (i, j) is not the pair (j, i).
        ids: ``(B,)`` stable sample ids, any integers.
    """
    if ids.ndim != 1 or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ValueError(f"sample ids are one integer a sample: ({tuple(ids.shape)}, {ids.dtype})")
    digest = hashlib.sha256(repr((int(seed), int(step), stream, role)).encode()).digest()
    first, second = (int.from_bytes(digest[at : at + 8], "little", signed=True) for at in (0, 8))
    # Two rounds: consecutive ids differ in few bits, and the keys of one step must not be a shifted copy of another's.
    return splitmix64(splitmix64(ids.to(torch.int64) ^ first) + second).view(torch.int32).reshape(-1, 2)


def splitmix64(x: Int64[Tensor, ...]) -> Int64[Tensor, ...]:
    """Mix each 64-bit number on its own; equal numbers stay equal, different ones different.

    Source: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators", the mixing function. Products
    and sums wrap around.
    """
    x = x + (0x9E3779B97F4A7C15 - 2**64)
    for shift, multiplier in ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64)):
        x = (x ^ _shifted(x, shift)) * multiplier
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)  # torch's shift of a signed number drags the sign along


def combine(
    row: tuple[Tensor, Tensor], column: tuple[Tensor, Tensor], lanes: tuple[Tensor, Tensor], spare: Tensor
) -> None:
    """Write 64 random bits for every pair into ``lanes``, a pure function of the two keys.

    One lane starts as an exclusive or and the other as a sum, so that the corners (i, j), (i, l), (k, j), (k, l) of a
    rectangle of pairs are tied in neither group alone; three rounds of :func:`mix` leave nothing of the tie that two
    million rectangles could show, and there are six.

    Args:
        row: the rows' two key lanes, int32.
        column: the columns' two key lanes; broadcast against the rows'.
        lanes: two int32 buffers of the broadcast shape.
        spare: a third one, overwritten.
    """
    torch.bitwise_xor(row[0], column[0], out=lanes[0])
    torch.add(row[1], column[1], out=lanes[1])
    mix(lanes, spare)


def mix(lanes: tuple[Tensor, Tensor], spare: Tensor) -> None:
    """Permute the 2^64 states of ``lanes`` in place, every bit of the result depending on every bit of the state.

    A lane changes only by something added to or exclusive-or'ed with it that the *other* lane decides, so each round
    can be undone whatever that something is: the sign that torch's right shift drags along does no harm, and a round
    costs three sweeps. The product carries bits upwards, the shift carries them down again. From five rounds on every
    bit of the state flips every bit of the result with probability 1/2, as far as 20,000 states tell; there are six.
    """
    a, b = lanes
    for number, multiplier in enumerate(_MULTIPLIERS):
        a.add_(b, alpha=multiplier)
        torch.bitwise_right_shift(a, _SHIFTS[number % 2], out=spare)
        b.bitwise_xor_(spare)
        a, b = b, a
