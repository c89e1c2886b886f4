"""Clusters for a batch of projections, and the batch moved about with them."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from troth.clustering import group_means
from troth.similarity import ClusterTargets, PrototypePairs

#: Clusters that have samples; one more has none.
NUM_OCCUPIED = 3


def prototypes_of(image: Tensor, text: Tensor, scale: Tensor) -> PrototypePairs:
    """Projections with clusters of the images, of the captions and of a teacher's features; one of them is empty."""
    with torch.autocast("cpu", enabled=False), torch.no_grad():
        teacher = torch.cat([image.detach(), text.detach().square()], dim=1)
        clusters = {
            "image": _clusters(image.detach(), image=None, text=text),
            "text": _clusters(text.detach(), image=image, text=None),
            "external": _clusters(teacher, image=image, text=text),
        }
    return PrototypePairs(image, text, scale, clusters)


def _clusters(points: Tensor, *, image: Tensor | None, text: Tensor | None) -> ClusterTargets:
    """Each of the first points with those nearest to it; the one without samples is last but one, not at the origin."""
    anchors = min(NUM_OCCUPIED, len(points))
    label = torch.cdist(points.double(), points[:anchors].double()).argmin(dim=1)
    label[label == anchors - 1] = anchors
    number = anchors + 1
    prototypes = group_means(points, label, number).float()
    prototypes[anchors - 1] = 0.5 * prototypes[0] - 0.25
    means = [None if x is None else group_means(x.detach(), label, number).float() for x in (image, text)]
    return ClusterTargets(label, prototypes, *means, torch.bincount(label, minlength=number) > 0)


def swapped(pairs: PrototypePairs) -> PrototypePairs:
    """The same with the modalities exchanged."""
    other = {"image": "text", "text": "image", "external": "external"}
    clusters = {other[name]: replace(of, image=of.text, text=of.image) for name, of in pairs.clusters.items()}
    return PrototypePairs(pairs.text, pairs.image, pairs.scale, clusters)


def rows_of(pairs: PrototypePairs, take: Callable[[Tensor], Tensor]) -> PrototypePairs:
    """The same with other rows of the batch."""
    clusters = {name: replace(of, label=take(of.label)) for name, of in pairs.clusters.items()}
    return PrototypePairs(take(pairs.image), take(pairs.text), pairs.scale, clusters)


def with_leaves(pairs: PrototypePairs) -> tuple[PrototypePairs, list[Tensor]]:
    """The same with fresh leaves that gradients can be taken for."""
    leaves = [x.detach().clone().requires_grad_() for x in (pairs.image, pairs.text, pairs.scale)]
    return PrototypePairs(*leaves, pairs.clusters), leaves
