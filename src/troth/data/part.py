"""A part of a source: some of its samples, chosen by their keys."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
from jaxtyping import Float64

from troth.data.draws import Int64Array
from troth.data.source import IndexedSource
from troth.data.vectors import VectorSource
from troth.errors import UserError

#: A key's place is the first 64 bits of its hash, as a fraction of all there are.
_PLACES = 2.0**64


def key_fractions(source: IndexedSource | VectorSource, seed: int) -> Float64[np.ndarray, " N"]:
    """Return a number in [0, 1) for every sample, a function of the seed and the sample's key alone.

    Args:
        source: the samples.
        seed: another one gives other, independent numbers.
    """
    hashes = (hashlib.sha256(f"{seed} {key}".encode("utf-8", "surrogatepass")).digest()[:8] for key in _keys(source))
    fractions = np.fromiter((int.from_bytes(part, "big") for part in hashes), dtype=np.float64, count=len(source))
    # Numbers just below 2^64 round up to it.
    return np.minimum(fractions / _PLACES, np.nextafter(1.0, 0.0))


def part_of(source: IndexedSource | VectorSource, start: float, stop: float, seed: int) -> IndexedSource | VectorSource:
    """Return the samples of ``source`` whose :func:`key_fractions` lie in ``[start, stop)``, in their order.

    Keys, captions, categories, metadata and pictures are the source's; sample ids are counted anew. The source's ledger
    goes with every part: what could not be indexed has no place.

    Raises:
        UserError: if no sample lies there.
    """
    fractions = key_fractions(source, seed)
    chosen = (fractions >= start) & (fractions < stop)
    if not chosen.any():
        raise UserError(
            f"none of the {len(source)} samples of {source.name} lies in the part from {start:g} to {stop:g}",
            where="stop",
            remedy="make the part larger",
        )
    return rows_of(source, np.flatnonzero(chosen), f"{source.name}, {start:g} to {stop:g}")


def sample_rows(source: IndexedSource | VectorSource, count: int, seed: int) -> Int64Array:
    """Return the ids, ascending, of at most ``count`` samples: those of the smallest :func:`key_fractions`.

    A function of the seed and the samples' keys. A larger count adds samples to those of a smaller one.
    """
    return np.sort(np.argsort(key_fractions(source, seed), kind="stable")[:count]).astype(np.int64)


def rows_of(source: IndexedSource | VectorSource, rows: Int64Array, name: str) -> IndexedSource | VectorSource:
    """Return a source called ``name`` of some samples, in the order of ``rows``; sample ids are counted anew."""
    if isinstance(source, VectorSource):
        return source.of_rows(name, rows)
    return IndexedSource(name, source.index.take(pa.array(rows)).combine_chunks(), source.reader, source.ledger)


def _keys(source: IndexedSource | VectorSource) -> list[str]:
    if isinstance(source, VectorSource):
        return [source.key(index) for index in range(len(source))]
    keys: list[str] = source.index["key"].to_pylist()
    return keys
