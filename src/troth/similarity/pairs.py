"""The pairs of a batch, and what an objective may ask about their logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from troth import distributed
from troth.geometry import Geometry, Sphere
from troth.similarity.fused import TILE, BinaryCrossEntropy, CrossEntropy, FusedPass, Reduction, tiles
from troth.types import Side


class TwoWay(NamedTuple):
    """One number per sample for each direction.

    Attributes:
        image: ``(B,)`` reductions over this rank's image rows (all captions are columns).
        text: ``(B,)`` reductions over this rank's captions (all images are rows).
    """

    image: Float[Tensor, " B"]
    text: Float[Tensor, " B"]


@dataclass(frozen=True, slots=True)
class Pairs:
    """The pairs of a batch, as an objective sees them: no ranks, tiles, devices or precisions.

    Attributes:
        image: ``(B, D)`` projected image embeddings of this rank, float32 or float64.
        text: ``(B, D)`` projected caption embeddings; row ``i`` is given as the caption of image ``i``.
        scale: ``()`` multiplier of the similarities (never a temperature).
        bias: ``()`` added to the logits, or None.
        index: ``(B,)`` stable sample ids, or None where no objective needs them.
        geometry: how embeddings are compared.
        tile: rows and columns of a tile.
    """

    image: Float[Tensor, "B D"]
    text: Float[Tensor, "B D"]
    scale: Float[Tensor, ""]
    bias: Float[Tensor, ""] | None = None
    index: Int64[Tensor, " B"] | None = None
    geometry: Geometry = field(default_factory=Sphere)
    tile: tuple[int, int] = TILE

    _EXACT: ClassVar[tuple[torch.dtype, ...]] = (torch.float32, torch.float64)

    def __post_init__(self) -> None:
        if self.image.shape != self.text.shape or self.image.ndim != 2:
            raise ValueError(
                f"image and text embeddings must both be (B, D): {tuple(self.image.shape)} and {tuple(self.text.shape)}"
            )
        if self.image.dtype not in self._EXACT or self.image.dtype != self.text.dtype:
            raise ValueError(
                f"similarities are formed in float32 or float64, not {self.image.dtype} and {self.text.dtype}: "
                "project() raises half precisions"
            )

    def __len__(self) -> int:
        return len(self.image)

    def _without_autocast(self) -> torch.autocast:
        return torch.autocast(self.image.device.type, enabled=False)

    def _logits(self, similarity: Tensor) -> Tensor:
        logits = similarity * self.scale.to(similarity)
        return logits if self.bias is None else logits + self.bias.to(similarity)

    def positive_similarities(self) -> Float[Tensor, " B"]:
        """Return the unscaled similarity of every given pair."""
        with self._without_autocast():
            return self.geometry.paired_similarity(self.image, self.text)

    def _fused(self, reduction: Reduction) -> TwoWay:
        with self._without_autocast():
            rows, columns = cast(
                tuple[Tensor, Tensor],
                FusedPass.apply(
                    self.image,
                    self.text,
                    self.scale.to(self.image),
                    None if self.bias is None else self.bias.to(self.image),
                    self.geometry,
                    reduction,
                    self.tile,
                ),
            )
        return TwoWay(rows, columns)

    def cross_entropy(self) -> TwoWay:
        """Return how surprising each pair is, both ways, in nats.

        .. code-block:: text

            image[i] = log sum_j exp(logits[i, j]) - logits[i, i]           j over all captions
            text[i]  = log sum_j exp(logits[j, i]) - logits[i, i]           j over all images

        The probability of the given pair is ``exp`` of the negative. Differentiable; one fused pass.
        """
        return self._fused(CrossEntropy())

    def binary_cross_entropy(self) -> TwoWay:
        """Return the summed losses of yes-or-no questions, both ways, in nats.

        .. code-block:: text

            image[i] = sum_j log(1 + exp(-z_ij logits[i, j]))     z_ij = 1 if i = j else -1,  j over all captions
            text[i]  = sum_j log(1 + exp(-z_ij logits[j, i]))     j over all images

        Differentiable; one fused pass.
        """
        return self._fused(BinaryCrossEntropy())

    def row_losses(
        self, function: Callable[[Float[Tensor, "b N"], Int64[Tensor, " b"]], Float[Tensor, " b"]], side: Side
    ) -> Float[Tensor, " B"]:
        """Apply ``function`` to complete rows of logits, some rows at a time.

        Args:
            function: takes ``(b, N)`` logits and the ``(b,)`` column of each row's positive, and returns one loss a
                row. It must treat rows independently of each other; it is called again in the backward pass.
            side: which modality the rows are.

        Returns:
            ``(B,)`` losses, differentiable in the embeddings, scale, bias and whatever ``function`` closes over.
        """
        rows, others = (self.image, self.text) if side is Side.IMAGE else (self.text, self.image)
        columns = distributed.gather_with_gradient(others)
        positives = torch.arange(len(rows), device=rows.device) + distributed.rank() * len(rows)

        def block(block_rows: Tensor, block_columns: Tensor, block_positives: Tensor) -> Tensor:
            with self._without_autocast():
                logits = self._logits(self.geometry.similarity(block_rows, block_columns))
                return function(logits, block_positives)

        losses = [
            checkpoint(block, rows[part], columns, positives[part], use_reentrant=False)
            for part in tiles(len(rows), self.tile[0])
        ]
        return torch.cat(losses)
