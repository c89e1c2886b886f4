"""Images and captions that come from two sources and are no pairs, beside a stream of pairs.

A run has two stages: the pairs alone, then batches of unpaired images and captions, with or without a batch of pairs in
front. Images and captions are shuffled by permutations of their own: which row an image is in says nothing about the
captions, even where both sources are the same data. To replicate published results, a batch can be made to hold the
partners of all its images, in rows that tell nothing (:class:`WithinBatches`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from troth.data.caption_sets import BoolArray
from troth.data.draws import Int64Array, generator
from troth.data.loader import BatchStream, LoadedBatch, UnpairedRows
from troth.data.plan import Plan, chosen_captions, rank_rows
from troth.data.source import Source, captions_column
from troth.errors import UserError
from troth.types import Batch

#: By what an image and a caption are known to belong together: see :class:`DetectionTruth`.
TruthKind = Literal["caption", "category"]

#: Whether a batch's captions are any of the source's, or those at the places that its images have in theirs.
UnpairedOrder = Literal["independent", "aligned"]


@dataclass(frozen=True)
class WithinBatches:
    """The batches of another order, the rows of each shuffled: which samples come together, not which row is whose.

    Attributes:
        plan: whose batches.
        seed: of the rows' order, which is another one at each step.
    """

    plan: Plan
    seed: int

    @property
    def batch_size(self) -> int:
        """Of the global batch."""
        return self.plan.batch_size

    @property
    def steps_per_epoch(self) -> int:
        """Whole global batches in an epoch."""
        return self.plan.steps_per_epoch

    def indices(self, step: int) -> Int64Array:
        """``(batch_size,)`` the samples of the global batch of ``step``."""
        return generator(self.seed, "rows of a batch", step).permutation(self.plan.indices(step))


@dataclass(frozen=True)
class UnpairedPlans:
    """The order of the unpaired images, and that of the captions.

    Attributes:
        images: over the images that can be used.
        texts: over the samples whose captions are used.
    """

    images: Plan
    texts: Plan | WithinBatches

    @staticmethod
    def draw(
        num_images: int,
        num_texts: int,
        batch_size: int,
        seed: int,
        world_size: int = 1,
        order: UnpairedOrder = "independent",
    ) -> UnpairedPlans:
        """Draw two orders.

        Args:
            num_images: how many images there are.
            num_texts: how many samples with captions.
            batch_size: of each, over all ranks.
            seed: the run's seed.
            world_size: how many processes share each batch.
            order: ``independent``: two permutations; ``aligned``: one, so that the captions of a batch are those at
                its images' places, in an order that is drawn anew within each batch.

        Raises:
            UserError: if a source is smaller than the batch, or the batch cannot be divided among the ranks, or aligned
                sources are not of one size.
        """
        if order == "aligned" and num_images != num_texts:
            raise UserError(
                f"{num_images} unpaired images and {num_texts} texts cannot be read in one order",
                where="unpaired.order",
                remedy='use "independent", which assumes nothing about places',
            )
        smallest = min(num_images, num_texts)
        if batch_size > smallest:
            which = "images" if num_images == smallest else "texts"
            raise UserError(
                f"a batch of {batch_size} from {smallest} unpaired {which}",
                where="unpaired.batch_size",
                remedy=f"use at most {smallest}, or more data",
            )
        if batch_size % world_size:
            raise UserError(
                f"a batch of {batch_size} cannot be divided among {world_size} processes",
                where="unpaired.batch_size",
                remedy=f"use a multiple of {world_size}",
            )
        image_seed, text_seed = (
            int(generator(seed, f"unpaired {what}").integers(2**63)) for what in ("images", "texts")
        )
        images = Plan(num_images, batch_size, image_seed)
        if order == "aligned":
            return UnpairedPlans(images, WithinBatches(images, text_seed))
        return UnpairedPlans(images, Plan(num_texts, batch_size, text_seed))

    @property
    def steps_per_epoch(self) -> int:
        """Steps of a pass over the larger of the two; the smaller one begins anew meanwhile."""
        return max(self.images.steps_per_epoch, self.texts.steps_per_epoch)


@dataclass(frozen=True)
class UnpairedTexts:
    """Gives every image of a batch the next caption of another source, as a stream of pairs takes its captions.

    Attributes:
        plan: the order of the captions' samples.
        num_images: how many samples the images' source has; captions' samples are counted from there.
        fingerprint: of the captions' source.
    """

    plan: Plan | WithinBatches
    num_images: int
    fingerprint: str

    @property
    def identity(self) -> str:
        """What the captions add to a stream's fingerprint."""
        return f"unpaired {self.fingerprint} {self.plan}"

    def draw(self, index: Int64Array, step: int) -> tuple[Int64Array, BoolArray]:
        """``(caption_of, mismatched)`` of a global batch: the images do not matter, and no row is a wrong pair."""
        return self.num_images + self.plan.indices(step), np.zeros(len(index), dtype=np.bool_)

    def replaced(self, planned: int, actual: int, caption: int) -> tuple[int, bool]:
        """The caption stays where another image stands in for an unreadable one."""
        del planned, actual
        return caption, False

    def check(self, batch_size: int) -> None:
        """Make sure that as many captions come as images."""
        assert batch_size == self.plan.batch_size, (batch_size, self.plan.batch_size)


class DetectionTruth:
    """Which unpaired images and captions do belong together, to tell how much of what is detected is right.

    ``caption``: an image fits a caption that its own source gives it. This is the truth where the two sources overlap;
    a caption that would fit as well in other words counts as wrong. ``category``: an image and a caption fit if their
    samples' categories are equal.

    Args:
        images: where the images come from.
        texts: where the captions come from.
        kind: by what they fit.

    Raises:
        UserError: if they are to fit by category, and one source knows none.
    """

    def __init__(self, images: Source, texts: Source, kind: TruthKind) -> None:
        self._by_sample = kind == "category"
        image_lists, text_lists = (_categories(s) if self._by_sample else captions_column(s) for s in (images, texts))
        counts = captions_column(texts).value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
        self._counts = counts
        self._starts = np.arange(len(texts)) if self._by_sample else np.cumsum(counts) - counts
        known = pc.unique(text_lists.flatten())
        self._text = _numbers(text_lists.flatten(), known)
        flat, lengths = (
            _numbers(image_lists.flatten(), known),
            image_lists.value_lengths().to_numpy(zero_copy_only=False),
        )
        self._image = np.zeros((len(images), int(lengths.max())), dtype=np.int64)
        self._image[np.arange(self._image.shape[1]) < lengths[:, None]] = flat

    def rows(self, images: Int64Array, texts: Int64Array, plan: Plan, step: int) -> tuple[Tensor, Tensor]:
        """Return the truth of some rows: ``(M, C)`` of the images and ``(M,)`` of the captions.

        Args:
            images: ``(M,)`` sample ids.
            texts: ``(M,)`` sample ids.
            plan: of the stream that made the rows, which decides between several captions of a sample.
            step: of that plan.
        """
        places = self._starts[texts]
        if not self._by_sample:
            places = places + chosen_captions(plan.seed, plan.epoch(step), images, self._counts[texts])
        return torch.from_numpy(self._image[images]), torch.from_numpy(self._text[places])


class UnpairedStream:
    """A stream of pairs, then one of unpaired images and captions.

    Args:
        paired: the first stage, and the pairs of the second.
        unpaired: images with captions that are not theirs: a stream whose noise is :class:`UnpairedTexts`.
        plans: the orders that ``unpaired`` was made with.
        truth: which of its images and captions belong together.
        paired_epochs: passes over the pairs in the first stage.
        epochs: passes over the larger unpaired source in the second.
        with_pairs: whether a batch of pairs comes with each of the second stage. Their passes go on where the first
            stage ended.
        rank: of this process.
        world_size: how many processes share each batch.

    Attributes:
        paired_steps: how many steps the first stage has.
    """

    def __init__(
        self,
        paired: BatchStream,
        unpaired: BatchStream,
        plans: UnpairedPlans,
        truth: DetectionTruth,
        *,
        paired_epochs: int,
        epochs: int,
        with_pairs: bool,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.num_samples = paired.num_samples
        self.steps_per_epoch = paired.steps_per_epoch
        self.batch_size = paired.batch_size
        self.plan = paired.plan
        self.fingerprint = hashlib.sha256(
            f"{paired.fingerprint} {unpaired.fingerprint} {with_pairs}".encode()
        ).hexdigest()
        self.paired_steps = paired.total_steps(paired_epochs)
        self._paired, self._unpaired = paired, unpaired
        self._plans, self._truth = plans, truth
        self._paired_epochs, self._epochs, self._with_pairs = paired_epochs, epochs, with_pairs
        self._rows = rank_rows(plans.texts.batch_size, rank, world_size)

    def total_steps(self, epochs: int) -> int:
        """How many steps both stages have, ``epochs`` passes over the pairs in the first."""
        assert epochs == self._paired_epochs, (epochs, self._paired_epochs)
        return self.paired_steps + self._epochs * self._plans.steps_per_epoch

    @property
    def steps_with_pairs(self) -> int:
        """How many steps bring pairs, from the first on: those of both stages, or of the first alone."""
        return self.total_steps(self._paired_epochs) if self._with_pairs else self.paired_steps

    def epochs_complete(self, done: int) -> tuple[int, bool]:
        """How many passes are complete after ``done`` steps, over both stages, and whether the last step ended one."""
        first, rest = divmod(min(done, self.paired_steps), self._paired.steps_per_epoch)
        if done <= self.paired_steps:
            return first, rest == 0
        second, rest = divmod(done - self.paired_steps, self._plans.steps_per_epoch)
        return self._paired_epochs + second, rest == 0

    def batches(self, start_step: int, stop_step: int, *, view: int = 0) -> Iterator[LoadedBatch]:
        """This rank's rows of the batches of steps ``start_step`` to ``stop_step - 1``, as :class:`BatchStream`."""
        border = min(max(start_step, self.paired_steps), stop_step)
        if start_step < border:
            yield from self._paired.batches(start_step, border, view=view)
        if border == stop_step:
            return
        loaded = self._unpaired.batches(border - self.paired_steps, stop_step - self.paired_steps, view=view)
        pairs = self._paired.batches(border, stop_step, view=view) if self._with_pairs else repeat(None)
        for step, rows, given in zip(range(border - self.paired_steps, stop_step), loaded, pairs, strict=False):
            yield self._joined(step, rows, given)

    def _joined(self, step: int, rows: LoadedBatch, pairs: LoadedBatch | None) -> LoadedBatch:
        """Put the pairs in front of unpaired rows, whose image and caption share no sample id: theirs is -1."""
        texts = self._plans.texts.indices(step)[self._rows]
        truth = self._truth.rows(rows.batch.index.numpy(), texts, self._plans.images, step)
        batch = replace(rows.batch, index=torch.full_like(rows.batch.index, -1))
        if pairs is None:
            return replace(rows, batch=batch, mismatched=rows.mismatched[:0], unpaired=UnpairedRows(0, *truth))
        given = pairs.batch
        both = ((given.index, batch.index), (given.image, batch.image), (given.text, batch.text))
        return replace(
            pairs,
            batch=Batch(*map(torch.cat, both)),
            skipped=(*pairs.skipped, *rows.skipped),
            unpaired=UnpairedRows(len(given), *truth),
        )


def _categories(source: Source) -> pa.LargeListArray:
    """Return each sample's category as a list of one."""
    names = [source.category(index) for index in range(len(source))]
    if not any(names):
        raise UserError(f"{source.name} knows no categories", where="unpaired.truth", remedy='use truth = "caption"')
    return pa.array([[name] for name in names], type=pa.large_list(pa.large_string()))


def _numbers(values: pa.Array, known: pa.Array) -> Int64Array:
    """Return the place from 1 of each value among the known ones, 0 for another, -1 for none."""
    places = pc.add(pc.fill_null(pc.index_in(values, value_set=known), -1), 1).to_numpy(zero_copy_only=False)
    return np.where(values.is_null().to_numpy(zero_copy_only=False), -1, places.astype(np.int64))
