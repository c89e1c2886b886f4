"""Random draws that are pure functions of their names.

Nothing here keeps a state that could be lost on resume or differ between workers: the same seed, purpose and counters
give the same draw in any process, in any order.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

#: Arrays of 64-bit integers, the shape of ids and hashes.
Int64Array = np.ndarray[Any, np.dtype[np.int64]]
UInt64Array = np.ndarray[Any, np.dtype[np.uint64]]


def generator(seed: int, purpose: str, *counters: int) -> np.random.Generator:
    """A numpy generator keyed by (seed, purpose, counters).

    Args:
        seed: the run's seed, any integer.
        purpose: what the draw is for, so that two uses of one seed are independent.
        counters: an epoch, a step, an attempt.
    """
    key = hashlib.sha256(repr((int(seed), purpose, *map(int, counters))).encode()).digest()[:16]
    return np.random.Generator(np.random.Philox(key=np.frombuffer(key, dtype=np.uint64)))


def hash64(seed: int, purpose: str, epoch: int, ids: Int64Array) -> UInt64Array:
    """64 random bits for each id, a counter-based hash (splitmix64) keyed by (seed, purpose, epoch).

    Args:
        seed: the run's seed.
        purpose: what the bits are for.
        epoch: which epoch.
        ids: sample ids, any shape.

    Returns:
        uint64, the shape of ``ids``.
    """
    key = hashlib.sha256(repr((int(seed), purpose, int(epoch))).encode()).digest()[:8]
    start = np.frombuffer(key, dtype=np.uint64)[0]
    with np.errstate(over="ignore"):
        # Two rounds: consecutive ids differ in few bits, and one key must not be a shifted copy of another.
        return _splitmix64(_splitmix64(np.asarray(ids).astype(np.uint64) ^ start) + start)


def _splitmix64(x: UInt64Array) -> UInt64Array:
    """Steele, Lea and Flood (2014), "Fast splittable pseudorandom number generators", the mixing function."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
