"""Wrong pairs on purpose: which samples get whose captions.

Everything is a pure function of the seed (and the step, for batch noise) and of the data set, so that it is the same
on any number of workers or ranks and after any resume.
"""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass as plain_dataclass
from pathlib import Path
from typing import Annotated, Literal, Protocol

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from troth.data import derange
from troth.data.caption_sets import BoolArray, CaptionSets
from troth.data.draws import Int64Array, generator
from troth.data.files import atomic_path
from troth.data.source import Source, categories_array
from troth.data.sources import SourceConfig
from troth.errors import UserError
from troth.types import STRICT

_ATTEMPTS = 16


class CaptionChoice(Protocol):
    """Whose captions the samples of a batch get; see :class:`CaptionAssignment` for the meaning of each method."""

    @property
    def identity(self) -> str:
        """What the choice adds to a stream's fingerprint: empty if everyone gets their own."""
        ...

    def draw(self, index: Int64Array, step: int) -> tuple[Int64Array, BoolArray]:
        """``(caption_of, mismatched)`` of the samples of a global batch."""
        ...

    def replaced(self, planned: int, actual: int, caption: int) -> tuple[int, bool]:
        """(caption_of, mismatched) of ``actual``, which stands in for the unreadable sample ``planned``."""
        ...

    def check(self, batch_size: int) -> None:
        """Raise UserError if a batch of ``batch_size`` is too small."""
        ...


def caption_owner(caption_of: int, source: Source, reserve: Source | None) -> tuple[Source, int]:
    """Which sample's captions a place in ``caption_of`` means: its source and its number there.

    Args:
        caption_of: below N a sample of the set, from N on one of the reserve.
        source: the set, of N samples.
        reserve: where foreign captions come from; None if there are none.
    """
    if caption_of < len(source):
        return source, caption_of
    assert reserve is not None, "foreign captions without their reserve"
    return reserve, caption_of - len(source)


@plain_dataclass(frozen=True, slots=True)
class CaptionAssignment:
    """Whose captions each sample is trained with.

    Attributes:
        caption_of: ``(N,)`` int64: below N the sample of the set whose captions are used (the sample itself where the
            pair is whole), from N on a sample of the reserve (minus N).
        mismatched: ``(N,)`` True exactly where the captions given share none with the sample's own.
        fingerprint: the data set's.
        reserve_fingerprint: that of the reserve the foreign captions come from; empty for other partners.
    """

    caption_of: Int64Array
    mismatched: BoolArray
    fingerprint: str
    reserve_fingerprint: str = ""

    @classmethod
    def clean(cls, source: Source) -> CaptionAssignment:
        """Every sample with its own captions."""
        count = len(source)
        return cls(np.arange(count, dtype=np.int64), np.zeros(count, dtype=np.bool_), source.fingerprint)

    def draw(self, index: Int64Array, step: int) -> tuple[Int64Array, BoolArray]:
        """``(caption_of, mismatched)`` of the samples of a batch; the step does not matter."""
        del step
        return self.caption_of[index], self.mismatched[index]

    def replaced(self, planned: int, actual: int, caption: int) -> tuple[int, bool]:
        """(caption_of, mismatched) of ``actual``, which stands in for the unreadable sample ``planned``."""
        del planned, caption
        return int(self.caption_of[actual]), bool(self.mismatched[actual])

    def check(self, batch_size: int) -> None:
        """Nothing about static noise depends on the batch."""

    @property
    def identity(self) -> str:
        """What this noise adds to a stream's fingerprint: empty if no pair is wrong."""
        if not self.mismatched.any():
            return ""
        # Numbers from N on mean nothing without the reserve they count in.
        return hashlib.sha256(self.caption_of.tobytes() + self.reserve_fingerprint.encode()).hexdigest()

    def save(self, path: str | Path) -> None:
        """Write every attribute to an npz file, atomically."""
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(
                file,
                caption_of=self.caption_of,
                mismatched=self.mismatched,
                fingerprint=np.array(self.fingerprint),
                reserve_fingerprint=np.array(self.reserve_fingerprint),
            )

    @classmethod
    def load(cls, path: str | Path, fingerprint: str | None = None) -> CaptionAssignment:
        """Read what :meth:`save` wrote.

        Raises:
            UserError: the file is missing or damaged, or belongs to a data set other than ``fingerprint``.
        """
        try:
            with np.load(path, allow_pickle=False) as stored:
                # Older files do not have it.
                reserve = str(stored["reserve_fingerprint"]) if "reserve_fingerprint" in stored else ""
                found = cls(stored["caption_of"], stored["mismatched"], str(stored["fingerprint"]), reserve)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"not a saved caption assignment: {error}", where=str(path)) from error
        if fingerprint is not None and found.fingerprint != fingerprint:
            raise UserError(
                "this caption assignment belongs to another data set",
                where=str(path),
                remedy="use the data it was drawn for, or draw it again",
            )
        return found


@plain_dataclass(frozen=True, slots=True)
class BatchNoise:
    """Wrong pairs drawn anew in every global batch, as "Learning ... alignments from noisy data-pairs" has them.

    Made by :meth:`Noise.bind`. ``floor(fraction * batch size)`` rows are chosen at random and their captions shifted
    cyclically along a random order of them: wrong positives and, in the same batch, true partners as false negatives.
    A swap between samples that have a caption in common is left as it falls, and is not marked as a mismatch: whether
    the pair is wrong cannot be told.
    """

    fraction: float
    partners: str
    seed: int
    num_samples: int
    sets: CaptionSets
    categories: Int64Array | None

    def count(self, batch_size: int) -> int:
        """How many rows of a global batch are chosen: ``floor(fraction * batch_size)``."""
        return int(np.floor(self.fraction * batch_size + 1e-9))

    def check(self, batch_size: int) -> None:
        """Raise UserError unless a batch of ``batch_size`` has enough rows to swap captions between."""
        lowest = 1 if self.partners == "foreign" else 2
        count = self.count(batch_size)
        if count < lowest:
            raise UserError(
                f"{self.fraction:g} of a batch of {batch_size} is {count} pairs, too few to exchange captions",
                where="noise.fraction",
                remedy=f"raise it to at least {lowest / batch_size:g}, or enlarge the batch",
            )
        if self.partners == "foreign" and count > len(self.sets) - self.num_samples:
            raise _reserve_too_small(count, len(self.sets) - self.num_samples)

    def draw(self, index: Int64Array, step: int) -> tuple[Int64Array, BoolArray]:
        """Draw the noise of one global batch.

        Args:
            index: ``(N,)`` sample ids of the whole batch, over all ranks.
            step: the training step.

        Returns:
            ``caption_of (N,)`` and ``mismatched (N,)``, as in :class:`CaptionAssignment`.
        """
        rng = generator(self.seed, "batch-noise", step)
        count = self.count(len(index))
        caption_of = index.astype(np.int64, copy=True)
        if self.partners == "foreign":
            rows = rng.permutation(len(index))[:count]
            supply = len(self.sets) - self.num_samples
            caption_of[rows] = self.num_samples + rng.choice(supply, count, replace=False)
        elif self.categories is None:
            rows = rng.permutation(len(index))[:count]
            caption_of[rows] = index[np.roll(rows, 1)]
        else:
            found, group, sizes = np.unique(self.categories[index], return_inverse=True, return_counts=True)
            counts = derange.without_excess(rng, np.where(found >= 0, sizes, 0), count)
            for number in np.flatnonzero(counts):
                rows = rng.permutation(np.flatnonzero(group == number))[: counts[number]]
                caption_of[rows] = index[np.roll(rows, 1)]
        return caption_of, ~self.sets.intersect(caption_of, index)

    def replaced(self, planned: int, actual: int, caption: int) -> tuple[int, bool]:
        """(caption_of, mismatched) of ``actual``, which stands in for the unreadable sample ``planned``."""
        caption = actual if caption == planned else caption
        return caption, not self.sets.intersect_one(caption, actual)

    @property
    def identity(self) -> str:
        """What this noise adds to a stream's fingerprint."""
        facts = (self.fraction, self.partners, self.seed)
        return hashlib.sha256(repr(facts).encode() + self.sets.identity[self.num_samples :].tobytes()).hexdigest()


@dataclass(frozen=True, config=STRICT)
class Noise:
    """Noise injection: a fraction of the pairs gets captions that belong to something else.

    Attributes:
        fraction: of the pairs of the data set (``static``: exactly ``round(fraction * N)``) or of every global batch
            (``batch``: ``floor(fraction * batch size)``, as in the work on Gamma weights).
        mode: ``static``: drawn once for the whole training; ``batch``: drawn anew in every batch.
        partners: ``uniform``: captions move among the chosen pairs, whichever these are; ``same-category``: only
            within a category (pairs without a category are never chosen; batch noise takes as many as the batch's
            categories allow); ``foreign``: captions come from the reserve, each of its samples used at most once.
        seed: None takes the run's seed.
        reserve: the source of foreign captions; its images are not used.
    """

    fraction: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    mode: Literal["static", "batch"] = "static"
    partners: Literal["uniform", "same-category", "foreign"] = "uniform"
    seed: int | None = None
    reserve: SourceConfig | None = None

    def bind(self, source: Source, seed: int, reserve: Source | None = None) -> CaptionAssignment | BatchNoise:
        """What the loader needs: :meth:`draw` for static noise, a :class:`BatchNoise` for batch noise.

        Args:
            source: the data set.
            seed: used if the configuration names none.
            reserve: the opened reserve; None opens the configured one.

        Raises:
            UserError: the noise asked for is impossible with this data.
        """
        if self.mode == "static" or self.fraction == 0.0:
            return self.draw(source, seed, reserve)
        reserve = self.open_reserve(reserve)
        return BatchNoise(
            fraction=self.fraction,
            partners=self.partners,
            seed=seed if self.seed is None else self.seed,
            num_samples=len(source),
            sets=CaptionSets.of(source, reserve),
            categories=self._categories(source) if self.partners == "same-category" else None,
        )

    def draw(self, source: Source, seed: int, reserve: Source | None = None) -> CaptionAssignment:
        """Draw static noise: exactly ``round(fraction * N)`` samples whose new captions share none with their own.

        Arguments and errors as in :meth:`bind`.
        """
        num_samples = len(source)
        count = round(self.fraction * num_samples)
        clean = CaptionAssignment.clean(source)
        if count == 0:
            return clean
        reserve = self.open_reserve(reserve)
        chosen, donors = self._arrange(source, count, seed if self.seed is None else self.seed, reserve)
        caption_of = clean.caption_of.copy()
        caption_of[chosen] = donors
        mismatched = clean.mismatched.copy()
        mismatched[chosen] = True
        reserve_fingerprint = "" if reserve is None else reserve.fingerprint
        return CaptionAssignment(caption_of, mismatched, source.fingerprint, reserve_fingerprint)

    def open_reserve(self, reserve: Source | None = None) -> Source | None:
        """The reserve to draw foreign captions from: ``reserve``, else the configured one; None for other partners.

        Raises:
            UserError: ``foreign`` partners without a reserve.
        """
        if self.partners != "foreign":
            return None
        if reserve is not None:
            return reserve
        if self.reserve is None:
            raise UserError(
                "foreign captions need a reserve to come from", where="noise.reserve", remedy="name a source"
            )
        return self.reserve.open()

    def _arrange(self, source: Source, count: int, seed: int, reserve: Source | None) -> tuple[Int64Array, Int64Array]:
        sets = CaptionSets.of(source, reserve)
        if reserve is not None and count > len(reserve):
            raise _reserve_too_small(count, len(reserve))
        groups = [] if reserve is not None else self._groups(source)
        for attempt in range(_ATTEMPTS):
            rng = generator(seed, "noise", attempt)
            if reserve is not None:
                found = derange.foreign(rng, len(source), count, sets)
            else:
                # Only once chance has failed is it worth knowing which groups share too many captions.
                usable = groups if attempt == 0 else [derange.arrangeable(rng, group, sets) for group in groups]
                found = derange.derange_within(rng, usable, count, sets)
            if found is not None:
                return found
        scope = " within their categories" if self.partners == "same-category" else ""
        raise UserError(
            f"no way was found to give {count} of {len(source)} pairs captions unlike their own{scope}",
            where="noise.fraction",
            remedy="lower it, or remove repeated captions",
        )

    def _groups(self, source: Source) -> list[Int64Array]:
        if self.partners == "uniform":
            return [np.arange(len(source), dtype=np.int64)]
        categories = self._categories(source)
        order = np.argsort(categories, kind="stable")
        starts = np.flatnonzero(np.diff(categories[order], prepend=-2))
        return [group for group in np.split(order, starts[1:]) if categories[group[0]] >= 0]

    def _categories(self, source: Source) -> Int64Array:
        categories = categories_array(source)
        if (categories < 0).all():
            raise UserError(
                f"{source.name} has no categories",
                where="noise.partners",
                remedy="name the source's category column, or use partners = 'uniform'",
            )
        return categories


def _reserve_too_small(count: int, supply: int) -> UserError:
    return UserError(
        f"{count} foreign captions are needed and the reserve has {supply} samples",
        where="noise.reserve",
        remedy="use a larger reserve or a smaller fraction",
    )
