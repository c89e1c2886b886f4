"""The pairs of a batch, and what an objective may ask about their logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from troth import distributed
from troth.geometry import Geometry, Sphere
from troth.similarity.block import TILE, tiles
from troth.similarity.fused import FusedPass, Reduction
from troth.similarity.gram import (
    AffinityDistance,
    AffinityReduction,
    affinity_distance,
    cyclic_consistency,
    unit_rows,
)
from troth.similarity.logsumexp import LogPartition, LogWeights
from troth.similarity.matches import Matches
from troth.similarity.pairwise import MarginFunction, MarginSum
from troth.similarity.prototypes import PrototypePairs
from troth.similarity.soft import (
    Affinities,
    Evidence,
    OwnLogits,
    SoftCrossEntropy,
    SwappedLogits,
    TeacherCosines,
)
from troth.similarity.targets import BinaryCrossEntropy, KnownMatches, TargetCrossEntropy
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
        matches: which captions are known to fit which images beyond the given pairs, or None.
        weight: ``(B,)`` how much each pair's loss counts, given with the data, or None.
        teacher_image: ``(B, Dt)`` a frozen teacher's image features, or None.
        teacher_points: ``(B, r)`` unit points of the images and of the captions in a frozen teacher's common space, or
            None.
        prototypes: projected embeddings with the clusters they belong to, or None where the run has no episodes.
        tile: rows and columns of a tile.
    """

    image: Float[Tensor, "B D"]
    text: Float[Tensor, "B D"]
    scale: Float[Tensor, ""]
    bias: Float[Tensor, ""] | None = None
    index: Int64[Tensor, " B"] | None = None
    geometry: Geometry = field(default_factory=Sphere)
    matches: Matches | None = None
    weight: Float[Tensor, " B"] | None = None
    teacher_image: Float[Tensor, "B Dt"] | None = None
    teacher_points: TwoWay | None = None
    prototypes: PrototypePairs | None = None
    tile: tuple[int, int] = TILE

    _EXACT: ClassVar[tuple[torch.dtype, ...]] = (torch.float32, torch.float64)

    def __post_init__(self) -> None:
        if len(self.image) != len(self.text) or self.image.ndim != 2 or self.text.ndim != 2:
            raise ValueError(
                f"image and text embeddings must both be (B, D): {tuple(self.image.shape)} and {tuple(self.text.shape)}"
            )
        if self.image.dtype not in self._EXACT or self.image.dtype != self.text.dtype:
            raise ValueError(
                f"similarities are formed in float32 or float64, not {self.image.dtype} and {self.text.dtype}: "
                "project() raises half precisions"
            )

        for name, values in (("index", self.index), ("weight", self.weight)):
            if values is not None and values.shape != (len(self.image),):
                raise ValueError(f"{name} must be ({len(self.image)},), one for each pair, not {tuple(values.shape)}")
        if self.teacher_image is not None and len(self.teacher_image) != len(self.image):
            raise ValueError(f"teacher_image has {len(self.teacher_image)} rows for {len(self.image)} pairs")
        if self.teacher_points is not None and {len(points) for points in self.teacher_points} != {len(self.image)}:
            raise ValueError(f"teacher_points must have {len(self.image)} rows of images and of captions")
        for name, number in (("scale", self.scale), ("bias", self.bias)):
            if number is not None and number.numel() != 1:
                raise ValueError(f"{name} must be one number, not {tuple(number.shape)}")
        if self.matches is not None:
            self.matches.check(len(self.image), self.num_pairs)

    def __len__(self) -> int:
        return len(self.image)

    @property
    def num_pairs(self) -> int:
        """How many pairs the whole batch has, over all processes: ``N``."""
        return len(self.image) * distributed.world_size()

    def memory_ids(self) -> Int64[Tensor, " B"]:
        """Return the stable sample ids that memories are kept under.

        Raises:
            ValueError: if the pairs have none. Places in the batch would mix the memories of unrelated pairs.
        """
        if self.index is None:
            raise ValueError("this objective remembers each pair: give Pairs the sample ids, index=")
        return self.index

    def sample_ids(self) -> Int64[Tensor, " B"]:
        """Return the stable sample ids that random draws follow from; places in the whole batch if there are none."""
        if self.index is not None:
            return self.index
        return torch.arange(len(self), device=self.image.device) + distributed.rank() * len(self)

    def weighted(self, losses: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Return the losses times the pairs' given weights, if there are any."""
        return losses if self.weight is None else self.weight.to(losses) * losses

    def _without_autocast(self) -> torch.autocast:
        return torch.autocast(self.image.device.type, enabled=False)

    def _logits(self, similarity: Tensor) -> Tensor:
        logits = similarity * self.scale.to(similarity)
        return logits if self.bias is None else logits + self.bias.to(similarity)

    def positive_similarities(self) -> Float[Tensor, " B"]:
        """Return the unscaled similarity of every given pair."""
        with self._without_autocast():
            return self.geometry.paired_similarity(self.image, self.text)

    def positive_logits(self) -> TwoWay:
        """Return the logit ``l_ii`` of every given pair, differentiable; both ways, for geometries that differ."""
        with self._without_autocast():
            image, text = (self._logits(each.paired_similarity(self.image, self.text)) for each in self._views())
        return TwoWay(image, text)

    def _check_negatives(self) -> None:
        if self.num_pairs < 2:
            raise ValueError("a batch of one pair has no negatives: this objective needs two pairs at least")

    def _views(self) -> tuple[Geometry, Geometry]:
        """Return the geometries of image rows and of caption columns: one and the same unless they differ."""
        return self.geometry.views() or (self.geometry, self.geometry)

    def _fused(self, reduction: Callable[[Side], Reduction]) -> TwoWay:
        """Sweep once for both directions; a geometry that compares differently in each is swept twice."""
        with self._without_autocast():
            for_images, for_captions = self._views()
            image, text = self._sweep(for_images, reduction(Side.IMAGE))
            if for_captions is not for_images:
                text = self._sweep(for_captions, reduction(Side.TEXT))[1]
        return TwoWay(image, text)

    def _sweep(self, geometry: Geometry, reduction: Reduction) -> tuple[Tensor, Tensor]:
        return cast(
            tuple[Tensor, Tensor],
            FusedPass.apply(
                self.image,
                self.text,
                self.scale.to(self.image),
                None if self.bias is None else self.bias.to(self.image),
                geometry,
                reduction,
                self.tile,
                *reduction.inputs,
            ),
        )

    def cross_entropy(self, weights: LogWeights | None = None) -> TwoWay:
        """Return how surprising each pair is, both ways, in nats.

        .. code-block:: text

            image[i] = log sum_j w_ij exp(logits[i, j]) - log w_ii - logits[i, i]         j over all captions
            text[i]  = log sum_j v_ji exp(logits[j, i]) - log v_ii - logits[i, i]         j over all images

        The probability of the given pair is ``exp`` of the negative. Differentiable, but for the weights; one fused
        pass.

        Args:
            weights: ``log w`` and ``log v`` block by block; None: all weights 1.
        """
        return self._fused(lambda _: LogPartition(weights))

    def log_partition(self, weights: LogWeights | None = None) -> TwoWay:
        """Return ``log sum_j w_ij exp(logits[i, j])`` for images, and the like for captions. Differentiable."""
        return self._fused(lambda _: LogPartition(weights, less_positive=False))

    def log_negatives(self) -> TwoWay:
        """Return by how much all negatives together outweigh each positive, both ways, in nats; differentiable.

        .. code-block:: text

            image[i] = log sum_{j != i} exp(logits[i, j]) - logits[i, i]

        ``softplus`` of it is the cross-entropy.

        Raises:
            ValueError: if the whole batch is one pair, which has no negative.
        """
        self._check_negatives()
        return self._fused(lambda _: LogPartition(negatives_only=True))

    def target_cross_entropy(self, known: KnownMatches = "positive", smoothing: float = 0.0) -> TwoWay:
        """Return cross-entropies against targets that know of other matches, both ways, in nats; differentiable.

        .. code-block:: text

            image[i] = log sum_j exp(logits[i, j]) - sum_j t_ij logits[i, j]
            t_ij     = (1 - smoothing) m_ij / sum_k m_ik + smoothing / K

        Args:
            known: what :attr:`matches` are taken for: positives (``m_ij`` their degrees), nothing (left out of both
                sums) or negatives like any other.
            smoothing: how much of the target is spread evenly over the ``K`` columns that are not left out.
        """
        return self._fused(lambda _: TargetCrossEntropy(self.matches, known, smoothing))

    def binary_cross_entropy(self, known: KnownMatches = "negative", smoothing: float = 0.0) -> TwoWay:
        """Return the summed losses of yes-or-no questions, both ways, in nats.

        .. code-block:: text

            image[i] = sum_j log(1 + exp(-z_ij logits[i, j]))     z_ij = 1 if i = j else -1,  j over all captions
            text[i]  = sum_j log(1 + exp(-z_ij logits[j, i]))     j over all images

        Known matches are answered yes (to their degree) or left out; smoothing moves every answer towards a half.
        Differentiable; one fused pass.
        """
        return self._fused(lambda _: BinaryCrossEntropy(self.matches, known, smoothing))

    def soft_cross_entropy(self, evidence: Callable[[Side], Evidence], share: float) -> TwoWay:
        """Return cross-entropies against soft targets that are a softmax over the batch, both ways, in nats.

        .. code-block:: text

            image[i] = log sum_j exp(logits[i, j]) - (1 - share) logits[i, i] - share sum_j q_ij logits[i, j]
            q_ij     = softmax over j of evidence[i, j], held fixed

        Args:
            evidence: one of :meth:`affinities`, :meth:`own_logits`, :meth:`swapped_logits`, :meth:`teacher_cosines`.
            share: how much of the target is soft.
        """
        return self._fused(lambda side: SoftCrossEntropy(evidence(side), share))

    def affinities(self, sharpness: float) -> Callable[[Side], Evidence]:
        """Return each modality's cosines within itself, times ``sharpness``, as evidence."""
        image, text = (F.normalize(points.detach(), dim=-1) for points in (self.image, self.text))
        return lambda _: Affinities(image, text, sharpness)

    def teacher_cosines(self, sharpness: float) -> Callable[[Side], Evidence]:
        """Return the cosines of the teacher's images with its captions, times ``sharpness``, as evidence.

        Raises:
            ValueError: if the pairs carry no :attr:`teacher_points`.
        """
        if self.teacher_points is None:
            raise ValueError("there is no teacher of both modalities: give Pairs its points, teacher_points=")
        image, text = (points.detach().to(self.image) for points in self.teacher_points)
        return lambda _: TeacherCosines(image, text, sharpness)

    def own_logits(self, sharpness: float) -> Callable[[Side], Evidence]:
        """Return the logits themselves, times ``sharpness``, as evidence."""
        return lambda _: OwnLogits(sharpness)

    def swapped_logits(self, sharpness: float) -> Callable[[Side], Evidence]:
        """Return the other direction's logits, times ``sharpness``, as evidence."""
        image, text, scale = (part.detach() for part in (self.image, self.text, self.scale.to(self.image)))
        views = self._views()
        return lambda side: SwappedLogits(image, text, views[side is Side.IMAGE], scale, sharpness)

    def margin_sums(self, function: MarginFunction, nu: float = 1.0, positive_weight: float = 0.0) -> TwoWay:
        """Return ``sum_j eps_ij psi(logits[i, j] - nu logits[i, i])``, and the like for captions; differentiable.

        Args:
            function: ``psi``.
            nu: how much of the positive is subtracted.
            positive_weight: ``eps_ii``; the other ``eps_ij`` are 1.

        Raises:
            ValueError: if the whole batch is one pair, which has no negative.
        """
        self._check_negatives()
        positive = dict(zip(Side, self.positive_logits(), strict=True))
        return self._fused(lambda side: MarginSum(function, positive[side], nu, positive_weight))

    def unit_rows(self) -> TwoWay:
        """Return ``(B, D)`` images and captions as rows of unit length, whose inner products are affinities."""
        with self._without_autocast():
            return TwoWay(*(unit_rows(points, self.geometry) for points in (self.image, self.text)))

    def affinity_distance(
        self,
        left: Float[Tensor, "B D"],
        right: Float[Tensor, "B E"],
        distance: AffinityDistance,
        reduction: AffinityReduction = "mean",
        keep: Bool[Tensor, " B"] | None = None,
    ) -> Float[Tensor, " B"]:
        """Return how far each sample's affinities in one view are from those in the other; differentiable.

        See :func:`troth.similarity.gram.affinity_distance`; ``left`` and ``right`` are unit rows of this rank's pairs.
        """
        with self._without_autocast():
            return affinity_distance(left, right, distance, reduction, keep, self.tile)

    def cyclic_consistency(self, in_modal: float, cross_modal: float) -> Float[Tensor, " B"]:
        """Return CyCLIP's two squared inconsistencies for each pair; differentiable.

        See :func:`troth.similarity.gram.cyclic_consistency`.
        """
        with self._without_autocast():
            return cyclic_consistency(*self.unit_rows(), in_modal, cross_modal, self.tile)

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
        geometry = self._views()[side is Side.TEXT]

        def block(block_rows: Tensor, block_columns: Tensor, block_positives: Tensor) -> Tensor:
            with self._without_autocast():
                if side is Side.IMAGE:
                    similarity = geometry.similarity(block_rows, block_columns)
                else:
                    similarity = geometry.similarity(block_columns, block_rows).T
                return function(self._logits(similarity), block_positives)

        losses = [
            checkpoint(block, rows[part], columns, positives[part], use_reentrant=False)
            for part in tiles(len(rows), self.tile[0])
        ]
        return torch.cat(losses)
