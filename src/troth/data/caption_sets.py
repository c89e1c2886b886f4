"""Which samples share captions, as numbers: what noise must know to be sure that a swapped caption is a wrong one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from troth.data.draws import Int64Array, UInt64Array, hash64
from troth.data.source import Source, captions_column

BoolArray = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True, slots=True)
class CaptionSets:
    """The set of captions of every sample, each distinct caption a number.

    Attributes:
        offsets: ``(N + 1,)`` sample ``i`` owns ``numbers[offsets[i]:offsets[i + 1]]``.
        numbers: the caption numbers, without repeats within a sample.
        identity: ``(N,)`` equal for two samples iff their sets are equal.
    """

    offsets: Int64Array
    numbers: Int64Array
    identity: UInt64Array

    @classmethod
    def of(cls, source: Source, reserve: Source | None = None) -> CaptionSets:
        """The caption sets of ``source``, followed by those of ``reserve``: its samples are numbered from N on."""
        lists = captions_column(source)
        if reserve is not None:
            lists = pa.concat_arrays([lists, captions_column(reserve)])
        numbers = lists.flatten().dictionary_encode().indices.to_numpy(zero_copy_only=False).astype(np.int64)
        lengths = lists.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
        rows = np.repeat(np.arange(len(lengths)), lengths)
        if len(numbers) > len(lengths):
            span = int(numbers.max()) + 1
            pairs = np.unique(rows * span + numbers)
            rows, numbers = pairs // span, pairs % span
        offsets = np.searchsorted(rows, np.arange(len(lengths) + 1)).astype(np.int64)
        # A sum of hashes does not depend on the order; 64 bits make an accidental equality a matter of 1e-6 or less.
        identity = np.add.reduceat(hash64(0, "caption-set", 0, numbers), offsets[:-1])
        return cls(offsets, numbers, identity)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def differ(self, left: Int64Array, right: Int64Array) -> BoolArray:
        """Whether samples ``left[i]`` and ``right[i]`` have different sets of captions."""
        return np.not_equal(self.identity[left], self.identity[right])

    def intersect(self, left: Int64Array, right: Int64Array) -> BoolArray:
        """Whether samples ``left[i]`` and ``right[i]`` have a caption in common."""
        span = int(self.numbers.max(initial=0)) + 1
        common = np.intersect1d(self._pairs(left, span), self._pairs(right, span))
        result = np.zeros(len(left), dtype=np.bool_)
        result[common // span] = True
        return result

    def intersect_one(self, left: int, right: int) -> bool:
        """Whether two samples have a caption in common."""
        mine = self.numbers[self.offsets[left] : self.offsets[left + 1]]
        other = self.numbers[self.offsets[right] : self.offsets[right + 1]]
        return not set(mine.tolist()).isdisjoint(other.tolist())

    def most_common(self, members: Int64Array) -> int:
        """How many of ``members`` have the caption that most of them have."""
        _, counts = np.unique(self._flat(members)[1], return_counts=True)
        return int(counts.max(initial=0))

    def components(self, members: Int64Array) -> Int64Array:
        """Label ``members`` so that samples linked by common captions, directly or through others, are equal."""
        rows, numbers = self._flat(members)
        _, numbers = np.unique(numbers, return_inverse=True)
        labels = np.arange(len(members))
        while True:
            lowest = np.full(int(numbers.max(initial=-1)) + 1, len(members))
            np.minimum.at(lowest, numbers, labels[rows])
            updated = labels.copy()
            np.minimum.at(updated, rows, lowest[numbers])
            if np.array_equal(updated, labels):
                return labels
            labels = updated

    def _flat(self, ids: Int64Array) -> tuple[Int64Array, Int64Array]:
        starts, lengths = self.offsets[ids], self.offsets[ids + 1] - self.offsets[ids]
        rows = np.repeat(np.arange(len(ids)), lengths)
        within = np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return rows, self.numbers[starts[rows] + within]

    def _pairs(self, ids: Int64Array, span: int) -> Int64Array:
        rows, numbers = self._flat(ids)
        return rows * span + numbers
