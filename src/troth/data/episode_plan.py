"""The order of training in episodes: a few thousand samples drawn from all, gone through once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from troth.data.draws import Int64Array, generator
from troth.errors import UserError


@dataclass(frozen=True, slots=True)
class EpisodePlan:
    """Which samples come at which step, a pure function of (seed, episode, position).

    An episode draws ``episode_size`` samples from all of them and cuts them, in that order, into global batches; the
    ``episode_size % batch_size`` last ones sit it out. A run of ``epochs`` has ``epochs * num_samples / episode_size``
    episodes, rounded, at least one: as many samples as that many passes over the data.

    Source: Chen et al. 2022, "ProtoCLIP: prototypical contrastive language image pretraining", section III-D. The
    released code draws with replacement.

    Attributes:
        num_samples: how many samples take part.
        batch_size: of the GLOBAL batch, over all ranks.
        seed: the run's seed.
        episode_size: samples of an episode.
        with_replacement: whether a sample may come twice in an episode.

    Raises:
        UserError: the batch is larger than an episode, or an episode without replacement larger than the data.
    """

    num_samples: int
    batch_size: int
    seed: int
    episode_size: int
    with_replacement: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.batch_size <= self.episode_size:
            raise UserError(
                f"an episode of {self.episode_size} samples has no whole batch of {self.batch_size}",
                where="episodes.size",
                remedy="larger episodes, or a smaller train.batch_size",
            )
        if self.num_samples < 1 or (not self.with_replacement and self.episode_size > self.num_samples):
            raise UserError(
                f"an episode of {self.episode_size} samples from a set of {self.num_samples}",
                where="episodes.size",
                remedy=f"use at most {self.num_samples}, or draw with replacement",
            )

    @property
    def steps_per_episode(self) -> int:
        """Whole global batches in an episode."""
        return self.episode_size // self.batch_size

    @property
    def steps_per_epoch(self) -> int:
        """Steps of the episodes that make one pass over the data, rounded."""
        return max(1, round(self.steps_per_episode * self.num_samples / self.episode_size))

    def episodes(self, epochs: int) -> int:
        """How many episodes a run of that many epochs has."""
        return max(1, round(epochs * self.num_samples / self.episode_size))

    def total_steps(self, epochs: int) -> int:
        """Steps of a run of that many epochs: those of its whole episodes."""
        return self.episodes(epochs) * self.steps_per_episode

    def epoch(self, step: int) -> int:
        """The episode that ``step`` belongs to; both count from 0. It keys the draws of captions and augmentation."""
        return step // self.steps_per_episode

    def indices(self, step: int) -> Int64Array:
        """``(batch_size,)`` the samples of the global batch of ``step``."""
        start = (step % self.steps_per_episode) * self.batch_size
        return _episode(self, self.epoch(step))[start : start + self.batch_size].copy()

    def replacement(self, step: int, row: int, attempt: int) -> int:
        """The sample that stands in for row ``row`` of the batch of ``step``: the next in the data, going round."""
        planned = int(_episode(self, self.epoch(step))[(step % self.steps_per_episode) * self.batch_size + row])
        return (planned + attempt) % self.num_samples

    def attempts(self) -> int:
        """How many attempts reach every sample."""
        return self.num_samples


@lru_cache(maxsize=2)
def _episode(plan: EpisodePlan, episode: int) -> Int64Array:
    draw = generator(plan.seed, "episode", episode)
    return draw.choice(plan.num_samples, plan.episode_size, replace=plan.with_replacement).astype(np.int64)
