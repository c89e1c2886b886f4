"""Which samples come at which step: a pure function of (seed, epoch, position), so that resuming needs a number."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from troth.data.draws import Int64Array, generator, hash64
from troth.errors import UserError


class BatchPlan(Protocol):
    """Which samples make up the global batch of a step, whatever the order is called.

    Attributes:
        num_samples: how many samples take part.
        batch_size: of the GLOBAL batch, over all ranks.
        seed: the run's seed.
        steps_per_epoch: the run's unit of length: whole global batches in as many samples as there are.
    """

    @property
    def num_samples(self) -> int: ...  # noqa: D102

    @property
    def batch_size(self) -> int: ...  # noqa: D102

    @property
    def seed(self) -> int: ...  # noqa: D102

    @property
    def steps_per_epoch(self) -> int: ...  # noqa: D102

    def total_steps(self, epochs: int) -> int:
        """Steps of a run of that many epochs."""

    def epoch(self, step: int) -> int:
        """What keys the draws of ``step`` beside the seed and the sample: no number comes twice for one pass."""

    def indices(self, step: int) -> Int64Array:
        """``(batch_size,)`` the samples of the global batch of ``step``."""

    def replacement(self, step: int, row: int, attempt: int) -> int:
        """The sample that stands in for row ``row`` at the ``attempt``-th trial, from 1."""

    def attempts(self) -> int:
        """How many attempts are worth making."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The order of training.

    Every epoch is a new permutation of the samples, cut into global batches; the ``num_samples % batch_size`` samples
    at its end sit that epoch out.

    Attributes:
        num_samples: how many samples take part.
        batch_size: of the GLOBAL batch, over all ranks.
        seed: the run's seed.

    Raises:
        UserError: the batch is empty or larger than the data set.
    """

    num_samples: int
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"a batch of {self.batch_size} samples", where="train.batch_size", remedy="use at least 1")
        if self.batch_size > self.num_samples:
            raise UserError(
                f"a batch of {self.batch_size} samples from a set of {self.num_samples}",
                where="train.batch_size",
                remedy=f"use at most {self.num_samples}, or more data",
            )

    @property
    def steps_per_epoch(self) -> int:
        """Whole global batches in an epoch."""
        return self.num_samples // self.batch_size

    def total_steps(self, epochs: int) -> int:
        """Steps of a run of that many epochs."""
        return epochs * self.steps_per_epoch

    def epoch(self, step: int) -> int:
        """The epoch that ``step`` belongs to; both count from 0."""
        return step // self.steps_per_epoch

    def indices(self, step: int) -> Int64Array:
        """``(batch_size,)`` the samples of the global batch of ``step``."""
        start = (step % self.steps_per_epoch) * self.batch_size
        order = _permutation(self.num_samples, self.seed, self.epoch(step))
        return order[start : start + self.batch_size].astype(np.int64)

    def replacement(self, step: int, row: int, attempt: int) -> int:
        """The sample that stands in for row ``row`` of the batch of ``step`` when what came before cannot be read.

        Attempt ``a`` (from 1) takes the sample that has the same row ``a`` batches later, going round through the
        epoch, the rest at its end included. So no two rows of a batch ever get the same stand-in, and none gets a
        sample that is in the batch already. Only when a row has run out of batches (small sets, with most samples
        unreadable) does the search go on through all samples of the epoch from that row's position.

        Args:
            step: the training step.
            row: row of the global batch.
            attempt: from 1 up.
        """
        order = _permutation(self.num_samples, self.seed, self.epoch(step))
        return stand_in(order, self.batch_size, step % self.steps_per_epoch, row, attempt)

    def attempts(self) -> int:
        """How many attempts reach every sample of the epoch."""
        return self.num_samples + self.num_samples // self.batch_size + 1


def stand_in(order: np.ndarray[Any, Any], batch_size: int, batch: int, row: int, attempt: int) -> int:
    """The sample that :meth:`Plan.replacement` describes, of an epoch in the order given.

    Args:
        order: the epoch's samples, each at most once; batches are cut from its start.
        batch_size: rows of a batch.
        batch: which batch of the epoch, from 0.
        row: row of the batch.
        attempt: from 1 up.
    """
    position = batch * batch_size + row
    places = (len(order) - 1 - row) // batch_size + 1
    if attempt < places:
        position = (position // batch_size + attempt) % places * batch_size + row
    else:
        position = (position + attempt - places + 1) % len(order)
    return int(order[position])


@lru_cache(maxsize=4)  # an epoch's end needs two; unpaired images, captions and pairs take turns
def _permutation(num_samples: int, seed: int, epoch: int) -> np.ndarray[Any, Any]:
    # 32 bits where they suffice: this is the one thing of the size of the data set that each worker holds.
    ids = np.arange(num_samples, dtype=np.int32 if num_samples < 2**31 else np.int64)
    generator(seed, "epoch", epoch).shuffle(ids)
    ids.setflags(write=False)
    return ids


def of_view(purpose: str, view: int) -> str:
    """The purpose of a draw for another view of the samples: view 0 is training's own."""
    return purpose if view == 0 else f"{purpose} of view {view}"


def chosen_captions(seed: int, epoch: int, ids: Int64Array, counts: Int64Array, view: int = 0) -> Int64Array:
    """Which of several captions each sample is trained with in an epoch.

    Args:
        seed: the run's seed.
        epoch: which epoch.
        ids: ``(B,)`` sample ids.
        counts: ``(B,)`` how many captions there are to choose from.
        view: which of the independent draws of that epoch.

    Returns:
        ``(B,)`` int64 in ``[0, counts)``, uniform, a pure function of (seed, epoch, id) and the count.
    """
    return (hash64(seed, of_view("caption", view), epoch, ids) % counts.astype(np.uint64)).astype(np.int64)


def rank_rows(batch_size: int, rank: int, world_size: int) -> slice:
    """The rows of the global batch that ``rank`` works on: a contiguous part.

    Raises:
        UserError: the batch cannot be divided evenly.
    """
    assert 0 <= rank < world_size, (rank, world_size)
    if batch_size % world_size:
        raise UserError(
            f"a batch of {batch_size} cannot be divided among {world_size} processes",
            where="train.batch_size",
            remedy=f"use a multiple of {world_size}",
        )
    part = batch_size // world_size
    return slice(rank * part, (rank + 1) * part)
