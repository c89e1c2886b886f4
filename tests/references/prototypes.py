"""Float64 loops for the losses over prototypes."""

import torch
from torch import Tensor

from tests.references.case import Case
from troth.similarity import ClusterTargets


def unit(row: Tensor) -> Tensor:
    length = row.square().sum().sqrt()
    return row / length if float(length) > 0 else row


def recognition(case: Case, i: int, sample: Tensor, clusters: ClusterTargets, classifier: Tensor) -> Tensor:
    """Cross-entropy of one sample over the clusters."""
    assert case.prototypes is not None
    objective, own = case.objective, int(clusters.label[i])
    kept = [k for k in range(len(classifier)) if bool(clusters.occupied[k]) or not objective.mask_empty]

    def scaled(row: Tensor) -> Tensor:
        return unit(row.to(sample)) if objective.normalize_prototypes else row.to(sample)

    rows = {k: scaled(classifier[k]) for k in kept}
    teacher = {k: scaled(clusters.prototypes[k]) for k in kept}
    logits = {k: case.prototypes.scale * (sample * rows[k]).sum() for k in kept}
    partition = sum(torch.exp(logits[k]) for k in kept)
    if objective.target_temperature is None:
        return torch.log(partition) - logits[own]
    scores = {k: (teacher[own] * teacher[k]).sum() / objective.target_temperature for k in kept}
    most = max(float(score) for score in scores.values())
    weights = {k: torch.exp(scores[k] - most) for k in kept}
    total = sum(weights.values())
    return sum(weights[k] / total * (torch.log(partition) - logits[k]) for k in kept)


def prototypes(case: Case) -> Tensor:
    assert case.prototypes is not None
    losses = []
    text, image = case.prototypes.clusters["text"], case.prototypes.clusters["image"]
    own_means = case.objective.back_translation
    for i in range(case.size):
        of_image = recognition(case, i, case.prototypes.image[i], text, text.image if own_means else text.prototypes)
        of_text = recognition(case, i, case.prototypes.text[i], image, image.text if own_means else image.prototypes)
        losses.append(0.5 * (of_image + of_text) * (1 if case.weight is None else case.weight[i]))
    return torch.stack(losses)


def external_prototypes(case: Case) -> Tensor:
    assert case.prototypes is not None
    losses, clusters = [], case.prototypes.clusters["external"]
    for i in range(case.size):
        of_image = recognition(case, i, case.prototypes.image[i], clusters, clusters.image)
        of_text = recognition(case, i, case.prototypes.text[i], clusters, clusters.text)
        losses.append(0.5 * (of_image + of_text) * (1 if case.weight is None else case.weight[i]))
    return torch.stack(losses)


PROTOTYPES = {"prototypes": prototypes, "external_prototypes": external_prototypes}
