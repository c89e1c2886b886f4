"""Run under torchrun by test_distributed.py: every rank writes its losses and gradients."""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from tests.objectives.clusters import rows_of, swapped, with_leaves
from tests.objectives.instances import INSTANCES, case_of, features, on_geometry, pairs_of, state_of
from troth import distributed
from troth.similarity import GroupMatches, ListedMatches, Pairs, TwoWay
from troth.state import State
from troth.types import Side

SIZE = 8


def own(values: Tensor | None) -> Tensor:
    assert values is not None
    return distributed.own_rows(values).clone()


#: The objectives that the ranks compute on a geometry whose directions differ, and on one of arc lengths.
ON_GEOMETRIES = [
    "infonce",
    "sigmoid",
    "mmcl, hinge",
    "soft_targets",
    "self_distillation",
    "feature_distillation",
    "global_infonce",
    "gamma_weights, literal",
    "gamma_weights, rates",
]


def two_steps(name: str, geometry: str | None = None) -> tuple[Tensor, list[Tensor]]:
    """Losses and gradients of a second step, with the memory of a first on the same pairs the other way round."""
    case = case_of(INSTANCES[name].objective, size=SIZE)
    if geometry is not None:
        case = on_geometry(case, geometry)
        case = replace(case, image=case.geometry.project(case.image), text=case.geometry.project(case.text))
    state = state_of(case)
    for step in (2, 3):
        state.clock = replace(case.clock, step=step)
        leaves = [own(x).requires_grad_() for x in (case.image, case.text)]
        leaves.append(case.scale.clone().requires_grad_())
        bias = None if case.bias is None else case.bias.clone().requires_grad_()
        assert case.prototypes is not None
        assert case.teacher_points is not None
        prototypes, projections = with_leaves(rows_of(case.prototypes, own))
        mine = replace(
            case,
            image=leaves[0],
            text=leaves[1],
            scale=leaves[2],
            bias=bias,
            index=own(case.index),
            matches=own(case.matches),
            weight=own(case.weight),
            teacher_image=own(case.teacher_image),
            teacher_points=TwoWay(*map(own, case.teacher_points)),
            prototypes=prototypes,
        )
        losses = case.objective(pairs_of(mine, tile=(3, 2)), state)
        inputs = [*leaves, *projections] if bias is None else [*leaves, *projections, bias]
        gradients = torch.autograd.grad(losses.mean(), inputs, allow_unused=True, materialize_grads=True)
        case = replace(case, image=case.text, text=case.image, prototypes=swapped(case.prototypes))
    return losses.detach(), list(gradients)


def known_matches(kind: str) -> tuple[Tensor, list[Tensor]]:
    """Groups and lists of matches, whose rows and columns cross the ranks."""
    image, text = (own(x).requires_grad_() for x in features(SIZE))
    scale, index = torch.tensor(3.0, dtype=torch.float64, requires_grad=True), torch.arange(SIZE).flip(0) + 100
    matches: GroupMatches | ListedMatches = GroupMatches(own(torch.arange(SIZE) % 3))
    if kind == "listed":
        listed = torch.tensor([100, 103, 107, 999]), torch.tensor([107, 103, 101, 100])
        matches = ListedMatches.from_samples(*listed, torch.tensor([0.5, 0.25, 2.0, 9.0]).double(), own(index))
    sums = Pairs(image, text, scale, matches=matches, tile=(3, 2)).target_cross_entropy("positive", 0.1)
    losses = sums.image + 2 * sums.text
    return losses.detach(), list(torch.autograd.grad(losses.mean(), [image, text, scale]))


def rows() -> tuple[Tensor, list[Tensor]]:
    image, text = (own(x).requires_grad_() for x in features(SIZE))
    scale = torch.tensor(6.0, dtype=torch.float64, requires_grad=True)
    losses = Pairs(image, text, scale, tile=(3, 2)).row_losses(
        lambda logits, positive: logits.logsumexp(1) ** 2 - logits.gather(1, positive[:, None])[:, 0], Side.TEXT
    )
    return losses.detach(), list(torch.autograd.grad(losses.mean(), [image, text, scale]))


def compute(folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.initialise()
    results = {name: two_steps(name) for name in INSTANCES}
    for geometry in ("filip, unequal", "oblique, geodesic"):
        results |= {f"{name} on {geometry}": two_steps(name, geometry) for name in ON_GEOMETRIES}
    results |= {kind: known_matches(kind) for kind in ("grouped", "listed")} | {"row_losses": rows()}
    state = State(SIZE, "test")
    state.declare("u")
    state.write("u", own(torch.arange(SIZE)), own(torch.arange(SIZE) * 10.0))
    torch.save({"results": results, "state": state.read("u")}, folder / f"{distributed.rank()}.pt")
    distributed.barrier()
    distributed.shutdown()


if __name__ == "__main__":
    compute(Path(sys.argv[1]))
