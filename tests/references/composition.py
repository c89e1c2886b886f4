"""Float64 loops for objectives made of objectives, and for the weights of their pairs."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor

from tests.references.case import Case


def part(case: Case, objective: Any, name: str) -> Case:
    """The case as a part of the objective sees it, with memories of its own."""
    return replace(case, objective=objective, memory=case.memory.setdefault(name, {}))


def reference_of(objective: Any) -> Callable[[Case], Tensor]:
    from tests import references  # which lists this file's loops too

    return references.REFERENCES[objective.kind]


def weighted_sum(case: Case) -> Tensor:
    total = torch.zeros(case.size, dtype=torch.float64)
    for number, (weight, objective) in enumerate(case.objective.terms):
        total = total + weight * reference_of(objective)(part(case, objective, str(number)))
    return total


def reweighted(case: Case) -> Tensor:
    objective, by = case.objective.objective, case.objective.by
    losses = reference_of(objective)(replace(part(case, objective, "objective"), weight=None))
    weights = WEIGHTS[by.kind](part(case, by, "by"), losses.detach())
    if by.kind != "given" and case.weight is not None:
        weights = [weights[i] * float(case.weight[i]) for i in range(case.size)]
    return torch.stack([weights[i] * losses[i] for i in range(case.size)])


def given(case: Case, losses: Tensor) -> list[float]:
    assert case.weight is not None
    return [float(case.weight[i]) for i in range(len(losses))]


def clean_posterior(case: Case, losses: Tensor) -> list[float]:
    by, memory, clock = case.objective, case.memory, case.clock
    average = memory.setdefault("loss", {})
    if clock.step % clock.steps_per_epoch == 0 and clock.step // clock.steps_per_epoch >= by.warmup_epochs:
        memory["mixture"] = two_gaussians(sorted(float(value) for value in average.values()))
    weights = []
    for i, loss in enumerate(losses.tolist()):
        old = average.get(case.id(i), loss)
        average[case.id(i)] = by.keep * float(old) + (1 - by.keep) * loss
        weights.append(posterior(average[case.id(i)], memory.get("mixture", {})))
    if clock.step // clock.steps_per_epoch < by.warmup_epochs:
        return [1.0 for _ in weights]
    return [max(by.floor, weight) for weight in weights]


def two_gaussians(values: list[float]) -> dict[str, tuple[float, float]]:
    """(lower, upper) shares, means and deviations; nothing if two Gaussians are no better than one."""
    if len(set(values)) < 20:
        return {}
    mean = sum(values) / len(values)
    width = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
    column = [[(value - mean) / width] for value in values]
    one, two = (GaussianMixture(k, n_init=4, max_iter=500, random_state=0).fit(column) for k in (1, 2))
    if two.bic(torch.tensor(column).numpy()) >= one.bic(torch.tensor(column).numpy()):
        return {}
    order = sorted((0, 1), key=lambda k: two.means_[k, 0])
    return {
        "share": tuple(two.weights_[k] for k in order),
        "mean": tuple(mean + width * two.means_[k, 0] for k in order),
        "deviation": tuple(width * math.sqrt(two.covariances_[k, 0, 0]) for k in order),
    }


def posterior(value: float, mixture: dict[str, tuple[float, float]]) -> float:
    if not mixture:
        return 1.0
    low, high = mixture["mean"]
    held = min(max(value, low), high)
    density = [
        share / deviation * math.exp(-0.5 * ((held - mean) / deviation) ** 2)
        for share, mean, deviation in zip(mixture["share"], mixture["mean"], mixture["deviation"], strict=True)
    ]
    return density[0] / (density[0] + density[1])


WEIGHTS = {"given": given, "clean_posterior": clean_posterior}

#: To be listed with the other objectives'.
COMPOSITIONS = {"sum": weighted_sum, "reweighted": reweighted}
