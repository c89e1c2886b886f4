"""Random permutations that give nobody a caption of their own.

Every function here takes its generator, works on plain arrays and returns None where it finds no arrangement.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from troth.data.caption_sets import CaptionSets
from troth.data.draws import Int64Array

#: Rounds of swaps before the constructive arrangement is used. Each round settles most of what is left.
_REPAIR_ROUNDS = 32
_SUBSET_TRIES = 8


def derange(rng: np.random.Generator, members: Int64Array, sets: CaptionSets) -> Int64Array | None:
    """A random permutation of ``members`` in which no member meets a set that shares a caption with its own.

    A uniform permutation, then random swaps for the places that are wrong in it. Should these not suffice, members
    are sorted by shared captions and shifted, which succeeds whenever no linked group is more than half of all.

    Returns:
        ``donors (n,)``: member ``i`` receives the captions of ``donors[i]``; or None.
    """
    if len(members) < 2 or 2 * sets.most_common(members) > len(members):
        # Whoever has a caption needs a donor without it.
        return None
    donors = members[rng.permutation(len(members))]
    wrong = np.flatnonzero(sets.intersect(members, donors))
    for _ in range(_REPAIR_ROUNDS):
        if not len(wrong):
            return donors
        for place, other in zip(wrong, rng.integers(len(members), size=len(wrong)), strict=True):
            mine, its = donors[place], donors[other]
            if not sets.intersect_one(members[place], its) and not sets.intersect_one(members[other], mine):
                donors[place], donors[other] = its, mine
        wrong = wrong[sets.intersect(members[wrong], donors[wrong])]
    return _shift(rng, members, sets)


def derange_within(
    rng: np.random.Generator, groups: Sequence[Int64Array], count: int, sets: CaptionSets
) -> tuple[Int64Array, Int64Array] | None:
    """Choose exactly ``count`` members at random and derange them within their groups.

    A group gives none or at least two. A lone choice is moved to another group, so ids of groups with few members
    are chosen slightly more or less often than others.

    Returns:
        ``(chosen, donors)``, each ``(count,)``; or None.
    """
    groups = [group for group in groups if len(group) >= 2]
    sizes = np.array([len(group) for group in groups], dtype=np.int64)
    if count > sizes.sum():
        return None
    counts = _without_singles(rng, rng.multivariate_hypergeometric(sizes, count, method="marginals"), sizes)
    if counts is None:
        return None
    parts: list[tuple[Int64Array, Int64Array]] = []
    for group, wanted in zip(groups, counts, strict=True):
        if wanted:
            part = _choose(rng, group, int(wanted), sets)
            if part is None:
                return None
            parts.append(part)
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def arrangeable(rng: np.random.Generator, group: Int64Array, sets: CaptionSets) -> Int64Array:
    """The largest random part of ``group`` that can be deranged: no linked group is more than half of it."""
    labels = sets.components(group)
    found, sizes = np.unique(labels, return_counts=True)
    rest = len(group) - int(sizes.max())
    if sizes.max() <= rest:
        return group
    largest = labels == found[sizes.argmax()]
    return np.sort(np.concatenate([group[~largest], rng.choice(group[largest], rest, replace=False)]))


def foreign(
    rng: np.random.Generator, num_samples: int, count: int, sets: CaptionSets
) -> tuple[Int64Array, Int64Array] | None:
    """Choose ``count`` samples and give each the captions of another reserve sample (ids from ``num_samples`` on)."""
    chosen = np.sort(rng.choice(num_samples, count, replace=False))
    supply = num_samples + rng.permutation(len(sets) - num_samples)
    wrong = np.flatnonzero(sets.intersect(chosen, supply[:count]))
    for _ in range(_REPAIR_ROUNDS):
        if not len(wrong):
            return chosen, supply[:count]
        for place, other in zip(wrong, rng.integers(len(supply), size=len(wrong)), strict=True):
            mine, its = supply[place], supply[other]
            if sets.intersect_one(chosen[place], its):
                continue
            if other >= count or not sets.intersect_one(chosen[other], mine):
                supply[place], supply[other] = its, mine
        wrong = wrong[sets.intersect(chosen[wrong], supply[wrong])]
    return None


def without_excess(rng: np.random.Generator, sizes: Int64Array, count: int) -> Int64Array:
    """How many to choose from each group of a batch: ``count`` in all, or as close below it as groups allow."""
    usable = np.where(sizes >= 2, sizes, 0)
    for total in range(min(count, int(usable.sum())), 1, -1):
        counts = _without_singles(rng, rng.multivariate_hypergeometric(usable, total, method="marginals"), usable)
        if counts is not None:
            return counts
    return np.zeros_like(sizes)


def _choose(
    rng: np.random.Generator, group: Int64Array, count: int, sets: CaptionSets
) -> tuple[Int64Array, Int64Array] | None:
    for _ in range(_SUBSET_TRIES):
        members = np.sort(rng.choice(group, count, replace=False))
        donors = derange(rng, members, sets)
        if donors is not None:
            return members, donors
    return None


def _without_singles(rng: np.random.Generator, counts: Int64Array, sizes: Int64Array) -> Int64Array | None:
    """Change ``counts`` so that none is 1, keeping their sum; None if that cannot be done."""
    counts = counts.copy()
    singles = rng.permutation(np.flatnonzero(counts == 1))
    half = len(singles) // 2
    counts[singles[:half]] = 2
    counts[singles[half : 2 * half]] = 0
    if len(singles) % 2:
        lone = singles[-1]
        rich = np.flatnonzero(counts >= 3)
        roomy = np.flatnonzero((counts >= 2) & (sizes > counts))
        if len(rich):
            counts[rng.choice(rich)] -= 1
            counts[lone] = 2
        elif len(roomy):
            counts[rng.choice(roomy)] += 1
            counts[lone] = 0
        else:
            # Every chosen group is full at 2. One of three or more takes the lone choice and one of these pairs.
            large, pairs = np.flatnonzero(sizes >= 3), np.flatnonzero(counts == 2)
            if not len(large) or not len(pairs):
                return None
            counts[lone] = 0
            counts[rng.choice(pairs)] = 0
            counts[rng.choice(large)] = 3
    return counts


def _shift(rng: np.random.Generator, members: Int64Array, sets: CaptionSets) -> Int64Array | None:
    labels = sets.components(members)
    order = rng.permutation(len(members))
    order = order[np.argsort(labels[order], kind="stable")]
    largest = int(np.bincount(labels).max())
    if 2 * largest > len(members):
        return None
    donors = np.empty_like(members)
    donors[order] = members[np.roll(order, -largest)]
    return donors
