"""The spiked model: synthetic pairs of vectors with a common low-dimensional signal."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from troth.data.draws import generator
from troth.data.vectors import VectorSource
from troth.errors import UserError
from troth.theory import haar_columns
from troth.types import STRICT

Count = Annotated[int, Field(gt=0)]
SpikedSplit = Literal["train", "unpaired", "validation", "test"]


@dataclass(frozen=True, config=STRICT)
class SpikedSource:
    """Pairs of vectors that share a signal of few dimensions, each with noise of its own.

    .. code-block:: text

        x = U1 z + xi,   y = U2 z + xi',   z ~ N(0, I_r),   xi, xi' ~ N(0, noise^2 I)

    U1 and U2 are the first ``rank`` columns of two orthogonal matrices drawn from the Haar measure. They follow from
    ``seed`` and the dimensions alone, so that all splits share them, and the splits' samples are independent. The first
    samples of a split are the same however many are asked for.

    Source: "Understanding multimodal contrastive learning and incorporating unpaired data" (Nakada et al. 2023), its
    numerical experiment on synthetic data.

    Attributes:
        split: which independent sample of the model.
        num_samples: how many pairs.
        image_dim: dimension of x.
        text_dim: dimension of y.
        rank: dimension r of the signal.
        noise: standard deviation of the noise in each coordinate.
        seed: of U1, U2 and the samples.
    """

    kind: Literal["spiked"] = "spiked"
    split: SpikedSplit = "train"
    num_samples: Count = 300
    image_dim: Count = 40
    text_dim: Count = 39
    rank: Count = 10
    noise: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.3
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    @model_validator(mode="after")
    def _rank_fits(self) -> SpikedSource:
        if self.rank > min(self.image_dim, self.text_dim):
            raise ValueError(f"rank must be at most the smaller dimension, {min(self.image_dim, self.text_dim)}")
        return self

    def bases(self) -> tuple[np.ndarray[tuple[int, int], np.dtype[np.float64]], ...]:
        """Return U1 ``(image_dim, rank)`` and U2 ``(text_dim, rank)``, whose columns are orthonormal."""
        return tuple(
            haar_columns(generator(self.seed, f"spiked {side} basis", dim, self.rank), dim, self.rank)
            for side, dim in (("image", self.image_dim), ("text", self.text_dim))
        )

    def open(self) -> VectorSource:
        """Draw the samples.

        Raises:
            UserError: if they are too many for the memory.
        """
        try:
            return self._drawn()
        except MemoryError:
            raise UserError(
                f"{self.num_samples:,} samples do not fit into memory", where="num_samples", remedy="ask for fewer"
            ) from None

    def _drawn(self) -> VectorSource:
        image_basis, text_basis = self.bases()
        rank, image_dim = self.rank, self.image_dim
        # One row of draws a sample, so that a longer sample begins with a shorter one.
        draws = generator(self.seed, f"spiked {self.split} samples", image_dim, self.text_dim, rank).standard_normal(
            (self.num_samples, rank + image_dim + self.text_dim)
        )
        signal, image_noise, text_noise = np.split(draws, [rank, rank + image_dim], axis=1)
        return VectorSource(
            f"spiked {self.split}",
            torch.from_numpy(signal @ image_basis.T + self.noise * image_noise),
            torch.from_numpy(signal @ text_basis.T + self.noise * text_noise),
            [f"{self.split}-{row}" for row in range(self.num_samples)],
        )
