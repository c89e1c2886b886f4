"""Streams of training batches, from pictures or from features computed before.

A batch is a pure function of (data, seed, step): workers, ranks and the step one starts from change when and where it
is made, never what is in it.
"""

from __future__ import annotations

import copy
import hashlib
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from troth.data.draws import Int64Array, UInt64Array, hash64
from troth.data.ledger import Ledger, LedgerEntry, SampleError
from troth.data.noise import CaptionAssignment, CaptionChoice, caption_owner
from troth.data.plan import BatchPlan, chosen_captions, of_view, rank_rows
from troth.data.source import Source
from troth.errors import UserError
from troth.types import Batch

#: A transform of encoded bytes to a tensor; may raise SampleError. See :class:`~troth.data.transforms.ImageTransform`.
ImageTransformLike = Callable[[bytes], Tensor]
Tokenize = Callable[[Sequence[str]], Tensor]

#: After so many unreadable samples in a row it is not the samples that are broken.
_MOST_ATTEMPTS = 1000


@dataclass(frozen=True, slots=True)
class UnpairedRows:
    """What is known of rows of a batch whose image and caption have nothing to do with each other.

    The truth, by which detected pairs are judged in the log, is a number; equal numbers fit. Nothing learns from it.

    Attributes:
        num_paired: how many rows before them are pairs.
        image_truth: ``(M, C)`` what would fit each image: numbers from 1; 0 stands for what no caption has, -1 in the
            first place for an image of which nothing is known.
        text_truth: ``(M,)`` the number of each caption; -1 for one of which nothing is known.
    """

    num_paired: int
    image_truth: Int64[Tensor, "M C"]
    text_truth: Int64[Tensor, " M"]


@dataclass(frozen=True, slots=True)
class JudgedRows:
    """What a judge thinks of the pairs of a batch.

    Attributes:
        weight: ``(B,)`` how much each counts: the probability that it is right, less what the draw did of it.
        image: ``(B, r)`` unit points of the images in the judge's space.
        text: ``(B, r)`` unit points of the captions that the pairs have.
    """

    weight: Float[Tensor, " B"]
    image: Float[Tensor, "B r"]
    text: Float[Tensor, "B r"]


@dataclass(frozen=True, slots=True)
class LoadedBatch:
    """This rank's part of a batch, and what is known about it.

    Attributes:
        batch: ids, images (or features) and texts.
        skipped: the samples that could not be read and were replaced.
        mismatched: ``(B,)`` True where noise injection gave the pair other captions than its own.
        teacher_image: ``(B, F)`` a frozen teacher's features of the images, or None.
        judged: what a judge thinks of the pairs, or None.
        unpaired: what is known of rows behind the pairs that are none, or None. Where there are such rows,
            ``mismatched`` and ``teacher_image`` are of the pairs only.
    """

    batch: Batch
    skipped: tuple[LedgerEntry, ...]
    mismatched: Bool[Tensor, " B"]
    teacher_image: Float[Tensor, "B F"] | None = None
    judged: JudgedRows | None = None
    unpaired: UnpairedRows | None = None


class BatchStream(Protocol):
    """Batches by step number.

    Attributes:
        num_samples: sample ids are below this.
        fingerprint: of the data and the noise, static or drawn per batch; memory keyed by sample id belongs to it.
        steps_per_epoch: whole global batches in an epoch.
        batch_size: of the global batch.
        plan: which samples come at which step.
    """

    num_samples: int
    fingerprint: str
    steps_per_epoch: int
    batch_size: int
    plan: BatchPlan

    def total_steps(self, epochs: int) -> int:
        """How many steps a run of that many epochs has."""

    def batches(self, start_step: int, stop_step: int, *, view: int = 0) -> Iterator[LoadedBatch]:
        """This rank's rows of the batches of steps ``start_step`` to ``stop_step - 1``.

        Args:
            start_step: the first.
            stop_step: one after the last.
            view: which of a sample's independent draws of augmentation and caption; training has 0.
        """


class ImageTextStream:
    """Batches of pictures and tokenised captions, read by worker processes.

    An unreadable sample is replaced by :meth:`Plan.replacement` and told in ``skipped``; batches keep their size.

    Args:
        source: the pairs.
        plan: over ``len(source)`` samples.
        image_transform: encoded bytes to ``(3, H, W)``. It runs with torch's, numpy's and Python's global generators
            seeded by (seed, epoch, sample id), so any augmentation is reproducible.
        tokenize: captions to ``(B, L)`` token ids; runs in the worker.
        noise: whose captions to use; None for everyone's own.
        reserve: where foreign captions come from, if the noise has such.
        num_workers: 0 reads in this process, with the same result.
        rank: of this process.
        world_size: how many processes share each batch.
        prefetch: batches each worker prepares ahead.

    Attributes:
        ledger: the source's entries and everything skipped so far by this rank.

    Raises:
        UserError: the batch cannot be divided among the ranks, or the noise is impossible at this batch size.
    """

    def __init__(
        self,
        source: Source,
        plan: BatchPlan,
        *,
        image_transform: ImageTransformLike,
        tokenize: Tokenize,
        noise: CaptionChoice | None = None,
        reserve: Source | None = None,
        num_workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
        prefetch: int = 2,
    ) -> None:
        assert plan.num_samples == len(source), "the plan is for another number of samples"
        noise = checked_noise(noise, source, plan)
        self.num_samples = len(source)
        self.fingerprint = stream_fingerprint(source, noise)
        self.steps_per_epoch = plan.steps_per_epoch
        self.batch_size = plan.batch_size
        self.ledger = Ledger(source.ledger)
        rows = rank_rows(plan.batch_size, rank, world_size)
        self.plan = plan
        self._steps = _Steps(source, plan, image_transform, tokenize, noise, reserve, rows)
        self._num_workers = num_workers
        self._prefetch = prefetch

    def total_steps(self, epochs: int) -> int:
        """How many steps a run of that many epochs has."""
        return self.plan.total_steps(epochs)

    def batches(self, start_step: int, stop_step: int, *, view: int = 0) -> Iterator[LoadedBatch]:
        """This rank's rows of the batches of steps ``start_step`` to ``stop_step - 1``, as :class:`BatchStream`.

        Raises:
            UserError: no readable sample could be found to stand in for an unreadable one.
        """
        with warnings.catch_warnings():
            # torch counts cores and warns; Python 3.12 warns of any fork beside threads. Neither is the user's doing.
            warnings.filterwarnings("ignore", message="This DataLoader will create")
            warnings.filterwarnings("ignore", message=".*use of fork", category=DeprecationWarning)
            loader = iter(
                DataLoader(
                    self._steps.of_view(view),
                    batch_size=None,
                    sampler=range(start_step, stop_step),
                    num_workers=self._num_workers,
                    prefetch_factor=self._prefetch if self._num_workers else None,
                    # Without one of its own a loader draws from the global generator, which belongs to training.
                    generator=torch.Generator(),
                )
            )
        for loaded in loader:
            if isinstance(loaded, UserError):
                raise loaded
            self.ledger.extend(loaded.skipped)
            yield loaded


class _Steps(Dataset[LoadedBatch | UserError]):
    """Step number to this rank's part of its batch. Lives in the workers."""

    def __init__(
        self,
        source: Source,
        plan: BatchPlan,
        image_transform: ImageTransformLike,
        tokenize: Tokenize,
        noise: CaptionChoice,
        reserve: Source | None,
        rows: slice,
    ) -> None:
        self.source = source
        self.plan = plan
        self.image_transform = image_transform
        self.tokenize = tokenize
        self.noise = noise
        self.reserve = reserve
        self.rows = rows
        self.view = 0

    def of_view(self, view: int) -> _Steps:
        other = copy.copy(self)
        other.view = view
        return other

    def __getitem__(self, step: int) -> LoadedBatch | UserError:
        planned = self.plan.indices(step)
        caption_of, mismatched = self.noise.draw(planned, step)
        index, caption_of, mismatched = planned[self.rows], caption_of[self.rows], mismatched[self.rows]
        skipped: list[LedgerEntry] = []
        images: list[Tensor] = []
        seeds = self._augmentation_seeds(step, index)
        with _generators_restored():
            for place in range(len(index)):
                try:
                    actual, image = self._read(step, place, int(index[place]), int(seeds[place]), skipped)
                except UserError as error:
                    # A worker's exceptions reach the user as tracebacks; as a value this one stays a line.
                    return error
                images.append(image)
                if actual != index[place]:
                    caption_of[place], mismatched[place] = self.noise.replaced(
                        int(index[place]), actual, int(caption_of[place])
                    )
                    index[place] = actual
        texts = self._texts(self.plan.epoch(step), index, caption_of)
        batch = Batch(torch.from_numpy(index), torch.stack(images), self.tokenize(texts))
        return LoadedBatch(batch, tuple(dict.fromkeys(skipped)), torch.from_numpy(mismatched))

    def _augmentation_seeds(self, step: int, index: Int64Array) -> UInt64Array:
        return hash64(self.plan.seed, of_view("augment", self.view), self.plan.epoch(step), index)

    def _read(self, step: int, place: int, sample: int, seed: int, skipped: list[LedgerEntry]) -> tuple[int, Tensor]:
        """The image of ``sample``, or of the first stand-in that can be read."""
        for attempt in range(1, min(self.plan.attempts(), _MOST_ATTEMPTS) + 1):
            try:
                data = self.source.read_image(sample)
                _seed_generators(seed)
                return sample, self.image_transform(data)
            except SampleError as error:
                skipped.append(error.entry(self.source.key(sample)))
            sample = self.plan.replacement(step, self.rows.start + place, attempt)
            seed = int(self._augmentation_seeds(step, np.array([sample]))[0])
        raise UserError(
            f"{len(skipped)} samples in a row cannot be read",
            where=self.source.name,
            remedy=f"the last one: {skipped[-1].key}: {skipped[-1].reason} {skipped[-1].detail}".rstrip(),
        )

    def _texts(self, epoch: int, index: Int64Array, caption_of: Int64Array) -> list[str]:
        available = [self._captions(int(caption)) for caption in caption_of]
        counts = np.array([len(captions) for captions in available], dtype=np.int64)
        chosen = chosen_captions(self.plan.seed, epoch, index, counts, self.view)
        return [captions[choice] for captions, choice in zip(available, chosen, strict=True)]

    def _captions(self, caption: int) -> tuple[str, ...]:
        owner, index = caption_owner(caption, self.source, self.reserve)
        return owner.captions(index)


@contextmanager
def _generators_restored() -> Iterator[None]:
    """Leave the global generators as they were, so that reading in the training process does not touch its draws."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        random.setstate(states[2])


def _seed_generators(seed: int) -> None:
    """Seed the generators that anyone's augmentations may draw from, by 64 bits."""
    # Not torch.manual_seed: that also queues work for every kind of accelerator, for each sample.
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002
    random.seed(seed)


def checked_noise(noise: CaptionChoice | None, source: Source, plan: BatchPlan) -> CaptionChoice:
    """The noise a stream uses, once it is known to fit the data and the batch; raises UserError if it does not."""
    if noise is None:
        return CaptionAssignment.clean(source)
    if isinstance(noise, CaptionAssignment) and noise.fingerprint != source.fingerprint:
        raise UserError(
            "the caption assignment was drawn for another data set",
            where="noise",
            remedy="draw it for this one",
        )
    noise.check(plan.batch_size)
    return noise


def stream_fingerprint(source: Source, noise: CaptionChoice) -> str:
    """The data set's fingerprint, or a hash of it and of the noise if pairs are wrong on purpose."""
    if not noise.identity:
        return source.fingerprint
    return hashlib.sha256(f"{source.fingerprint} {noise.identity}".encode()).hexdigest()
