"""An order of training in which some samples come more often than others."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from troth.data.draws import Int64Array, generator
from troth.data.plan import stand_in
from troth.errors import UserError

Float64Array = np.ndarray[Any, np.dtype[np.float64]]


class WeightedPlan:
    """The order of training when samples are drawn in proportion to shares: passes, which replace epochs.

    A pass puts all samples in a new random order and takes of them, in that order, ``M`` by systematic sampling, with
    the chances ``share_i M / sum_j share_j``, where ``M = floor(sum_j share_j)``. So no sample comes twice in a pass,
    one of share 1 comes in every pass, but for the rounding of ``M``, and every pass is of one size: the chances are
    inclusion probabilities. The ``M % batch_size`` samples at its end sit it out.

    ``steps_per_epoch`` and ``total_steps`` are those of :class:`~troth.data.plan.Plan` on as many samples: a run of so
    many epochs makes the same steps, whatever the shares, and more passes where they are small.

    Source: Madow 1949, "On the theory of systematic sampling", for the draw.

    Args:
        shares: ``(N,)`` in [0, 1].
        batch_size: of the GLOBAL batch, over all ranks.
        seed: the run's seed.

    Attributes:
        num_samples: how many samples there are, of share 0 too.
        batch_size: as given.
        seed: as given.
        pass_size: ``M``, samples of a pass.
        chances: ``(N,)`` of coming in a pass.

    Raises:
        UserError: if a pass has no whole batch.
    """

    def __init__(self, shares: Float64Array, batch_size: int, seed: int) -> None:
        assert len(shares), "there are samples"
        assert 0 <= shares.min() <= shares.max() <= 1, "shares are in [0, 1]"
        self.num_samples = len(shares)
        self.batch_size = batch_size
        self.seed = seed
        total = float(shares.sum())
        self.pass_size = int(total)
        if not 1 <= batch_size <= self.pass_size:
            smaller = f"use 1 to {self.pass_size}, or " if self.pass_size else ""
            raise UserError(
                f"a batch of {batch_size} samples where {self.pass_size} of {self.num_samples} are drawn in a pass",
                where="train.batch_size",
                remedy=f"{smaller}raise judge.draw_wrong, which draws the others more often",
            )
        self.chances = shares.astype(np.float64) * (self.pass_size / total)

    @property
    def steps_per_epoch(self) -> int:
        """Whole global batches of all samples, however often they come."""
        return self.num_samples // self.batch_size

    @property
    def steps_per_pass(self) -> int:
        """Whole global batches of a pass."""
        return self.pass_size // self.batch_size

    def total_steps(self, epochs: int) -> int:
        """Steps of a run of that many epochs."""
        return epochs * self.steps_per_epoch

    def epoch(self, step: int) -> int:
        """The pass that ``step`` belongs to; both count from 0. It keys the draws of captions and augmentation."""
        return step // self.steps_per_pass

    def indices(self, step: int) -> Int64Array:
        """``(batch_size,)`` the samples of the global batch of ``step``."""
        start = (step % self.steps_per_pass) * self.batch_size
        return _pass(self, self.epoch(step))[start : start + self.batch_size].astype(np.int64)

    def replacement(self, step: int, row: int, attempt: int) -> int:
        """The sample that stands in for row ``row`` of the batch of ``step``, as :meth:`Plan.replacement` of a pass."""
        return stand_in(_pass(self, self.epoch(step)), self.batch_size, step % self.steps_per_pass, row, attempt)

    def attempts(self) -> int:
        """How many attempts reach every sample of the pass."""
        return self.pass_size + self.pass_size // self.batch_size + 1


@lru_cache(maxsize=2)  # a pass's end needs two
def _pass(plan: WeightedPlan, number: int) -> np.ndarray[Any, Any]:
    draw = generator(plan.seed, "pass", number)
    order = draw.permutation(plan.num_samples)
    until = np.cumsum(plan.chances[order])
    until *= plan.pass_size / until[-1]
    # Rounding may still leave the last point at the end, behind which nobody is.
    points = np.minimum(np.arange(plan.pass_size) + draw.random(), np.nextafter(until[-1], 0))
    # 32 bits where they suffice: each worker holds two passes.
    kind = np.int32 if plan.num_samples < 2**31 else np.int64
    found: np.ndarray[Any, Any] = order[np.searchsorted(until, points, side="right")].astype(kind)
    found.setflags(write=False)
    return found
