"""Cross-entropy against soft targets that are themselves a softmax over the batch, folded in the same sweep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from troth import distributed
from troth.geometry import Geometry
from troth.similarity.block import Block, Folded, Upstream
from troth.similarity.logsumexp import combine_exponentials, fold_exponentials, no_exponentials


class Evidence(Protocol):
    """Unnormalised log-probabilities of a soft target, made block by block and not differentiated."""

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What the blocks shall carry about each pair."""
        ...

    def __call__(self, block: Block) -> tuple[Float[Tensor, "b n"], Float[Tensor, "b n"]]:
        """Return the evidence for image rows and for caption columns, new tensors (maybe one twice)."""
        ...


@dataclass(frozen=True, slots=True)
class OwnLogits:
    """The batch's own logits, sharpened.

    Attributes:
        sharpness: multiplies the logits.
    """

    sharpness: float

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Nothing."""
        return ()

    def __call__(self, block: Block) -> tuple[Tensor, Tensor]:
        """Return the same for both directions."""
        evidence = block.logits * self.sharpness
        return evidence, evidence


@dataclass(frozen=True, slots=True)
class SwappedLogits:
    """The logits of the other direction: how caption ``i`` likes image ``j``, as the target of image ``i``.

    Attributes:
        image: ``(B, D)`` points, detached.
        text: ``(B, D)`` points, detached.
        geometry: how they are compared.
        scale: the multiplier, detached.
        sharpness: multiplies the logits once more.
    """

    image: Tensor
    text: Tensor
    geometry: Geometry
    scale: Tensor
    sharpness: float

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The points of both modalities."""
        return self.image, self.text

    def __call__(self, block: Block) -> tuple[Tensor, Tensor]:
        """Return logits[j, i] in place of logits[i, j]."""
        swapped = self.geometry.similarity(block.column_inputs[0], block.row_inputs[1]).T
        evidence = swapped.contiguous().mul_(self.scale * self.sharpness)  # what follows goes over it many times
        return evidence, evidence


@dataclass(frozen=True, slots=True)
class Affinities:
    """Each modality's affinities within itself: images alike have captions alike.

    Attributes:
        image: ``(B, Di)`` unit features whose products are the evidence of image rows, detached.
        text: ``(B, Dt)`` unit features whose products are the evidence of caption columns, detached.
        sharpness: multiplies the products.
    """

    image: Tensor
    text: Tensor
    sharpness: float

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The features of both modalities."""
        return self.image, self.text

    def __call__(self, block: Block) -> tuple[Tensor, Tensor]:
        """Return image affinities for rows, caption affinities for columns."""
        rows = block.row_inputs[0] @ block.column_inputs[0].T
        columns = block.row_inputs[1] @ block.column_inputs[1].T
        return rows.mul_(self.sharpness), columns.mul_(self.sharpness)


@dataclass(frozen=True, slots=True)
class TeacherCosines:
    """What a teacher of both modalities believes: its images against its captions.

    Attributes:
        image: ``(B, r)`` the teacher's unit points of the images, detached.
        text: ``(B, r)`` its unit points of the captions, detached.
        sharpness: multiplies their cosines.
    """

    image: Tensor
    text: Tensor
    sharpness: float

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The points of both modalities."""
        return self.image, self.text

    def __call__(self, block: Block) -> tuple[Tensor, Tensor]:
        """Return the same for both directions."""
        evidence = (block.row_inputs[0] @ block.column_inputs[1].T).mul_(self.sharpness)
        return evidence, evidence


class SoftCrossEntropy:
    """``log sum_j exp(l_ij) - (1 - share) l_ii - share sum_j q_ij l_ij`` with ``q_i = softmax_j(evidence_ij)``, held
    fixed.

    The softmax of the evidence is folded as the logits are, with a running maximum, so that one sweep does for both.

    Args:
        evidence: what the soft target is a softmax of.
        share: how much of the target it is; the rest is the given pair.
    """

    def __init__(self, evidence: Evidence, share: float) -> None:
        self.evidence = evidence
        self.share = share

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What the evidence asks for."""
        return self.evidence.inputs

    def start(self, length: int, like: Tensor) -> Folded:
        """Return no logits at all, folded: their log-sum-exp, the positive, the evidence's, the expected logit."""
        return (
            *no_exponentials(length, like),
            like.new_zeros(length),
            *no_exponentials(length, like),
            like.new_zeros(length),
        )

    def fold(self, rows: Folded, columns: Folded, block: Block) -> None:
        """Fold one block."""
        logits, evidence = block.logits, self.evidence(block)
        at_row, at_column = block.positives
        rows[2][at_row] = columns[2][at_column] = logits[at_row, at_column]
        for state, own, dim in ((rows, evidence[0], 1), (columns, evidence[1], 0)):
            _, _, _, largest, total, expected = state
            new = torch.maximum(largest, own.amax(dim=dim))
            weight = (own - new.unsqueeze(dim)).exp_()
            kept = (largest - new).exp_()
            total.mul_(kept).add_(weight.sum(dim=dim))
            expected.mul_(kept).add_(weight.mul_(logits).sum(dim=dim))
            largest.copy_(new)
        fold_exponentials(rows[0], rows[1], logits, 1)
        fold_exponentials(columns[0], columns[1], logits, 0, overwrite=True)

    def over_ranks(self, columns: Folded) -> Folded:
        """Combine the ranks' partial columns."""
        largest, total, expected = columns[3:]
        overall = distributed.max_over_ranks(largest)
        kept = (largest - overall).exp()
        return (
            *combine_exponentials(*columns[:2]),
            columns[2],
            overall,
            distributed.sum_over_ranks(total * kept),
            distributed.sum_over_ranks(expected * kept),
        )

    def losses(self, state: Folded) -> Tensor:
        """Return one loss a row (or column), in nats."""
        largest, total, positive, _, evidence_total, expected = state
        target = positive + self.share * (expected / evidence_total - positive)
        return (largest - target) + total.log()

    def gradient(self, block: Block, rows: Folded, columns: Folded, upstream: Upstream) -> Tensor:
        """Return the derivative with respect to the block's logits."""
        evidence, positives = self.evidence(block), block.positives
        gradient = torch.zeros_like(block.logits)
        for state, own, arriving, dim in (
            (rows, evidence[0], upstream.rows, 1),
            (columns, evidence[1], upstream.columns, 0),
        ):
            largest, total, _, evidence_largest, evidence_total, _ = state
            part = (block.logits - largest.unsqueeze(dim)).exp_().mul_((arriving / total).unsqueeze(dim))
            soft = (own - evidence_largest.unsqueeze(dim)).exp_()
            gradient.add_(part).sub_(soft.mul_((self.share * arriving / evidence_total).unsqueeze(dim)))
        given = (upstream.rows[positives[0]] + upstream.columns[positives[1]]) * (1 - self.share)
        gradient[positives] -= given
        return gradient
