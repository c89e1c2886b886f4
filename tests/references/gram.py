"""Loops over affinities: SaCo's two losses and CyCLIP's two terms."""

import torch
from torch import Tensor

from tests.references.case import Case


def pearson_distance(first: list[Tensor], second: list[Tensor]) -> Tensor:
    """One minus the correlation of two lists of numbers; 1 where one of them does not vary."""
    count = len(first)
    if count < 2:
        return torch.ones((), dtype=torch.float64)
    mean_first, mean_second = sum(first) / count, sum(second) / count
    covariance = sum((a - mean_first) * (b - mean_second) for a, b in zip(first, second, strict=True))
    spread = sum((a - mean_first) ** 2 for a in first) * sum((b - mean_second) ** 2 for b in second)
    return 1 - covariance / torch.sqrt(spread)


def row_distance(case: Case, left: Tensor, right: Tensor, i: int, others: list[int]) -> Tensor:
    """How far sample ``i``'s affinities in one view are from those in the other; its own is 1 in both."""
    others = [j for j in others if j != i]
    first = [(left[i] * left[j]).sum() for j in others]
    second = [(right[i] * right[j]).sum() for j in others]
    if case.objective.distance == "pearson":
        return pearson_distance(first, second)
    differences = [a - b for a, b in zip(first, second, strict=True)]
    total = torch.zeros((), dtype=torch.float64)
    return total + sum(abs(d) if case.objective.distance == "l1" else d**2 for d in differences)


def consistency(case: Case, left: Tensor, right: Tensor) -> Tensor:
    objective, size = case.objective, case.size
    kept = list(range(size))
    if objective.strategy == "mask":
        kept = [i for i in kept if float(case.similarity(i, i).detach()) > objective.threshold]
    share = {"mean": 1 / max(1, len(kept)) ** 2, "row": 1 / max(1, len(kept)), "sum": 1}[objective.reduction]
    if objective.distance == "pearson" and objective.reduction == "mean":
        share = 1 / max(1, len(kept))
    weight = case.clock.step / case.clock.total_steps if objective.strategy == "ramp" else 1.0
    losses = []
    for i in range(size):
        loss = row_distance(case, left, right, i, kept) if i in kept else torch.zeros((), dtype=torch.float64)
        losses.append(weight * size * share * loss)
    return torch.stack(losses) + 0 * left.sum() + 0 * right.sum()  # in the graph even if nothing is kept


def affinity(case: Case) -> Tensor:
    image = case.image.detach() if case.objective.detach_image else case.image
    text = case.text.detach() if case.objective.detach_text else case.text
    return consistency(case, image, text)


def mimic(case: Case) -> Tensor:
    teacher = torch.stack([row / (row**2).sum().sqrt() for row in case.teacher_image.double()])
    return consistency(case, case.image, teacher)


def cyclip(case: Case) -> Tensor:
    image, text, losses = case.image, case.text, []
    for i in range(case.size):
        total = torch.zeros((), dtype=torch.float64)
        for j in range(case.size):
            within = (image[i] * image[j]).sum() - (text[i] * text[j]).sum()
            across = (image[i] * text[j]).sum() - (text[i] * image[j]).sum()
            total = total + case.objective.in_modal * within**2 + case.objective.cross_modal * across**2
        losses.append(total)
    return torch.stack(losses)


#: To be merged into the references of all objectives.
GRAM = {"affinity": affinity, "mimic": mimic, "cyclip": cyclip}
