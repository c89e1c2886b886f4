"""The shapes everything speaks in.

Axis legend, used in every annotation of the package:

======  ================================================================================
letter  meaning
======  ================================================================================
``B``   rows: the samples of this process's part of a batch
``N``   columns: the samples of the whole batch, over all processes (``N = B * world size``)
``D``   dimensions of an embedding
``K``   prototypes
``M``   tokens of one sample
``L``   length of a tokenised caption
======  ================================================================================
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from pydantic import ConfigDict
from torch import Tensor

#: What every configuration dataclass is validated with: an unknown field is an error, never ignored.
STRICT = ConfigDict(extra="forbid")


class Side(enum.Enum):
    """Which modality the rows (anchors) of a similarity block come from."""

    IMAGE = "image"
    TEXT = "text"


@dataclass(frozen=True, slots=True)
class Batch:
    """One process's part of a training batch.

    Attributes:
        index: ``(B,)`` stable sample ids: the sample's number in its data set, whatever the loader's order.
        image: ``(B, 3, H, W)`` pictures, or ``(B, D)`` features of a frozen encoder.
        text: ``(B, L)`` token ids, or ``(B, D)`` features of a frozen encoder.
    """

    index: Int64[Tensor, " B"]
    image: Tensor
    text: Tensor

    def __len__(self) -> int:
        return int(self.index.shape[0])

    def to(self, device: torch.device | str, *, channels_last: bool = False) -> Batch:
        """Return the batch on ``device``; pictures optionally in channels-last memory format."""
        image = self.image
        if channels_last and image.ndim == 4:
            image = image.to(device, memory_format=torch.channels_last, non_blocking=True)
        else:
            image = image.to(device, non_blocking=True)
        return Batch(
            index=self.index.to(device, non_blocking=True),
            image=image,
            text=self.text.to(device, non_blocking=True),
        )

    def slice(self, start: int, stop: int) -> Batch:
        """Return rows ``start`` to ``stop`` as a batch of their own (a micro-batch)."""
        return Batch(self.index[start:stop], self.image[start:stop], self.text[start:stop])


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Points of one geometry, with the ids of the samples they belong to.

    Attributes:
        index: ``(N,)`` stable sample ids.
        image: ``(N, D)`` image embeddings, already projected onto the geometry.
        text: ``(N, D)`` text embeddings, likewise.
    """

    index: Int64[Tensor, " N"]
    image: Float[Tensor, "N D"]
    text: Float[Tensor, "N D"]
