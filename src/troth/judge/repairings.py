"""Captions moved on purpose: they are wrong for certain, and show what wrong pairs score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64
from torch import Tensor

from troth.clustering import KMeans

Rows = Int64[np.ndarray, " n"]


@dataclass(frozen=True)
class Repairings:
    """Whose captions samples have when these are moved.

    Attributes:
        parts: samples within which captions are moved; they stay whole when folds are drawn.
        at_random: ``(N,)`` each: the samples' own captions, then those of random others of their part.
        alike: ``(N,)`` each: those of others with like captions; none if nobody asked for them.
    """

    parts: list[Rows]
    at_random: list[Rows]
    alike: list[Rows]

    @classmethod
    def draw(cls, num_samples: int, count: int, rng: np.random.Generator) -> Repairings:
        """Move captions at random: in blocks of one sample more than there are re-pairings."""
        parts = blocks(num_samples, count + 1, rng)
        return cls(parts, pairings(parts, count), [])

    @classmethod
    def among_alike(
        cls, text_features: Float[Tensor, "N G"], size: int, count: int, rng: np.random.Generator
    ) -> Repairings:
        """Move captions among like ones, and at random.

        Captions are clustered by k-means, and clusters cut into groups of one sample more than there are re-pairings,
        at random. A part is as many groups, also at random: within a group captions are alike, between its groups they
        are not. What is left of clusters too small for a group makes groups too, of captions that are not alike.

        Args:
            text_features: ``(N, G)`` of the captions, more than ``count``.
            size: captions in a cluster, on average.
            count: re-pairings of either kind.
            rng: draws groups and parts, and the seed of k-means.
        """
        number = max(1, len(text_features) // size)
        labels = KMeans().fit(text_features, number, int(rng.integers(2**31))).labels.numpy()
        clusters = [rng.permutation(np.flatnonzero(labels == label)) for label in range(number)]
        few = [each for each in clusters if len(each) <= count]
        left = rng.permutation(np.concatenate(few)) if few else np.empty(0, dtype=np.int64)
        groups = [group for each in clusters if len(each) > count for group in _cut(each, count + 1)]
        if len(left) > count:
            groups += _cut(left, count + 1)
        else:
            groups[-1] = np.concatenate([groups[-1], left])
        order = rng.permutation(len(groups))
        parts = [[groups[place] for place in each] for each in _cut(order, count + 1)]
        own = np.arange(len(text_features))
        at_random, alike = [own], []
        for shift in range(1, count + 1):
            moved, near = own.copy(), own.copy()
            for part in parts:
                for place, group in enumerate(part):
                    moved[group] = np.resize(part[(place + shift) % len(part)], len(group))
                    near[group] = np.roll(group, shift)
            at_random.append(moved)
            alike.append(near)
        return cls([np.concatenate(part) for part in parts], at_random, alike)


def _cut(rows: Rows, size: int) -> list[Rows]:
    """Cut into parts of ``size`` or up to twice that; of fewer, one."""
    return np.array_split(rows, max(1, len(rows) // size))


def blocks(num_samples: int, size: int, rng: np.random.Generator) -> list[Rows]:
    """Return all samples in random blocks of ``size`` or, for the last one, at most ``2 size - 1``."""
    order = rng.permutation(num_samples)
    cuts = np.arange(1, max(1, num_samples // size)) * size
    return np.split(order, cuts)


def pairings(parts: Sequence[Rows], repairings: int) -> list[Rows]:
    """Return whose captions each sample has: its own, and in each re-pairing those of another one of its block."""
    owners = []
    for shift in range(repairings + 1):
        owner = np.empty(sum(map(len, parts)), dtype=np.int64)
        for part in parts:
            owner[part] = np.roll(part, shift)
        owners.append(owner)
    return owners


def folds(parts: Sequence[Rows], count: int, rng: np.random.Generator) -> Rows:
    """Return the fold of each sample; blocks stay whole."""
    fold = np.empty(sum(map(len, parts)), dtype=np.int64)
    for part, number in zip(parts, rng.permutation(np.arange(len(parts)) % count), strict=True):
        fold[part] = number
    return fold
