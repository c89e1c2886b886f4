"""Samples against prototypes: what clusterings say about a batch, and the cross-entropy that learns from it.

A clustering of ``K`` prototypes gives a block of ``B x K`` scores. Its rows are independent of each other and only the
samples learn, so that the gradient is written down in the forward pass, some rows at a time: the block never stands in
memory as a whole, and nothing of it is kept for the backward pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from troth.similarity.block import tiles

#: Scores of a block of rows: 2^22 float32 are 16 MiB, whatever the number of prototypes.
_SCORES = 2**22

#: Whose embeddings were clustered.
Clustered = Literal["image", "text", "external"]


@dataclass(frozen=True, slots=True)
class ClusterTargets:
    """One clustering, as it concerns this rank's samples of a batch. Nothing here has a gradient.

    Attributes:
        label: ``(B,)`` the cluster of each sample.
        prototypes: ``(K, Dt)`` the centroids, in the space that was clustered.
        image: ``(K, Dp)`` the mean projected image of each cluster's samples, zero for a cluster without samples; None
            where no image learns from this clustering.
        text: ``(K, Dp)`` the same of the captions.
        occupied: ``(K,)`` whether a cluster has samples.
    """

    label: Int64[Tensor, " B"]
    prototypes: Float[Tensor, "K Dt"]
    image: Float[Tensor, "K Dp"] | None
    text: Float[Tensor, "K Dp"] | None
    occupied: Bool[Tensor, " K"]


@dataclass(frozen=True, slots=True)
class PrototypePairs:
    """What an objective on prototypes may use of a batch.

    Attributes:
        image: ``(B, Dp)`` projected images, of unit length.
        text: ``(B, Dp)`` projected captions, of unit length.
        scale: ``()`` multiplier of their products with prototypes.
        clusters: the clusterings that are in force; empty while the run is in a phase without prototypes.
    """

    image: Float[Tensor, "B Dp"]
    text: Float[Tensor, "B Dp"]
    scale: Float[Tensor, ""]
    clusters: Mapping[Clustered, ClusterTargets] = field(default_factory=dict)


class PrototypeEntropy(NamedTuple):
    """What :func:`prototype_cross_entropy` finds about each sample.

    Attributes:
        losses: ``(B,)`` nats.
        correct: ``(B,)`` 1 where the prototype of the largest score is the sample's own, else 0; no gradient.
    """

    losses: Float[Tensor, " B"]
    correct: Float[Tensor, " B"]


def prototype_cross_entropy(
    samples: Float[Tensor, "B D"],
    scale: Float[Tensor, ""],
    classifier: Float[Tensor, "K D"],
    label: Int64[Tensor, " B"],
    *,
    teacher: Float[Tensor, "K Dt"] | None = None,
    target_temperature: float = 0.01,
    allowed: Bool[Tensor, " K"] | None = None,
) -> PrototypeEntropy:
    """Cross-entropy of samples' scores over prototypes.

    .. code-block:: text

        l_k    = scale <h_i, c_k>                                                       c: the classifier
        loss_i = log sum_k exp(l_k) - sum_k y_ik l_k                                    (nats)
        y_ik   = [k = label_i]                                                          without a teacher
        y_ik   = softmax_k( <t_label_i, t_k> / target_temperature )                     t: the teacher

    Args:
        samples: ``h``, whose gradient is computed.
        scale: likewise.
        classifier: one row a prototype; no gradient.
        label: each sample's prototype.
        teacher: the prototypes that soften the targets, in any space; None: hard targets. No gradient.
        target_temperature: of the soft targets.
        allowed: prototypes that take part; the sums leave the others out. None: all.
    """
    classifier = classifier.to(samples)
    # Each factor of the product takes its root of the temperature.
    teacher = None if teacher is None else teacher.to(samples) / target_temperature**0.5
    with torch.autocast(samples.device.type, enabled=False):
        losses, correct = _CrossEntropy.apply(samples, scale.to(samples), classifier, label, teacher, allowed)
    return PrototypeEntropy(losses, correct)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        samples: Tensor,
        scale: Tensor,
        classifier: Tensor,
        label: Tensor,
        teacher: Tensor | None,
        allowed: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        losses, correct = samples.new_empty(len(samples)), samples.new_empty(len(samples))
        slope, slope_of_scale = torch.empty_like(samples), samples.new_empty(len(samples))
        for rows in tiles(len(samples), max(1, _SCORES // max(1, len(classifier)))):
            products = samples[rows] @ classifier.T
            log_probability = _log_softmax(products * scale, allowed)
            target = _targets(label[rows], teacher, allowed, log_probability)
            # 0 times minus infinity, for prototypes that take no part, must be 0.
            losses[rows] = -torch.where(target > 0, target * log_probability, 0).sum(dim=1)
            correct[rows] = (log_probability.argmax(dim=1) == label[rows]).to(samples)
            residual = log_probability.exp().sub_(target)
            slope[rows] = residual @ classifier * scale
            slope_of_scale[rows] = (residual * products).sum(dim=1)
        ctx.save_for_backward(slope, slope_of_scale)
        ctx.mark_non_differentiable(correct)
        return losses, correct

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        slope, slope_of_scale = ctx.saved_tensors
        return slope * upstream.unsqueeze(1), (slope_of_scale * upstream).sum(), None, None, None, None


def _log_softmax(scores: Tensor, allowed: Tensor | None) -> Tensor:
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -torch.inf)
    return F.log_softmax(scores, dim=1)


def _targets(label: Tensor, teacher: Tensor | None, allowed: Tensor | None, like: Tensor) -> Tensor:
    if teacher is None:
        return F.one_hot(label, like.shape[1]).to(like)
    return _log_softmax(teacher[label] @ teacher.T, allowed).exp()
