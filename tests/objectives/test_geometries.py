"""Objectives on every geometry beside the sphere, held to float64 loops over the geometry's own equation.

The two directions of FILIP differ: whatever takes the wrong one gives other numbers here.
"""

from dataclasses import replace
from typing import get_args, get_type_hints

import pytest
import torch

from tests.objectives.instances import GEOMETRIES, case_of, on_geometry, pairs_of, state_of
from tests.references import REFERENCES
from troth.geometry import GeometryConfig, Oblique, Sphere
from troth.objectives import (
    MMCL,
    DeCL,
    GammaWeights,
    GeneralizedCE,
    GlobalInfoNCE,
    InfoNCE,
    Objective,
    SelfDistillation,
    Sigmoid,
    SoftTargets,
)

#: At least one for each way of asking for logits.
OBJECTIVES: dict[str, Objective] = {
    "infonce": InfoNCE(),
    "infonce, positives, smoothed": InfoNCE(known_matches="positive", label_smoothing=0.2),
    "sigmoid": Sigmoid(),
    "generalized_ce": GeneralizedCE(),
    "mmcl, linear": MMCL(),
    "mmcl, hinge": MMCL(psi="hinge"),
    "mmcl, infonce": MMCL.infonce(),
    "soft_targets": SoftTargets(),
    "self_distillation, swapped": SelfDistillation(targets="swapped"),
    "global_infonce": GlobalInfoNCE(),
    "decl, mean": DeCL(draw="mean", b_u=0.5, keep=0.5),
    "gamma_weights, literal": GammaWeights(similarity="logits"),
    "gamma_weights, rates": GammaWeights(b_plus=0.7, b_minus=0.3, b_u=0.2, a_minus=0.6),
}
#: The second step of these depends on the first.
REMEMBERING = {"global_infonce", "decl, mean"}


def test_every_geometry_is_tried() -> None:
    tried = {type(geometry) for geometry, _, _ in GEOMETRIES.values()} | {Sphere}
    assert tried == set(get_args(get_args(GeometryConfig)[0]))
    distances = {geometry.distance for geometry, _, _ in GEOMETRIES.values() if isinstance(geometry, Oblique)}
    assert distances == set(get_args(get_type_hints(Oblique)["distance"]))


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_losses_equal_the_float64_loop_in_values_and_gradients(geometry: str, name: str) -> None:
    objective = OBJECTIVES[name]
    case = on_geometry(case_of(objective, size=5, scale=1.5), geometry)
    tiles = [(3, 4), (1024, 1024)]
    states = [state_of(case) for _ in tiles]
    weights = torch.linspace(0.2, 2.0, case.size, dtype=torch.float64)  # no row can stand in for another
    for step in (2, 3) if name in REMEMBERING else (3,):
        case = replace(case, clock=replace(case.clock, step=step))
        values, gradients = [], []
        for tile, state in [(None, None), *zip(tiles, states, strict=True)]:
            raw = [x.detach().requires_grad_() for x in (case.image, case.text, case.scale)]
            bias = [] if case.bias is None else [case.bias.detach().requires_grad_()]
            image, text = (case.geometry.project(x) for x in raw[:2])
            fresh = replace(case, image=image, text=text, scale=raw[2], bias=bias[0] if bias else None)
            if state is None:
                value = REFERENCES[objective.kind](fresh)
            else:
                state.clock = case.clock
                value = objective(pairs_of(fresh, tile=tile), state)
            values.append(value)
            gradients.append(torch.autograd.grad((weights * value).sum(), [*raw, *bias]))
        for value, slopes in zip(values[1:], gradients[1:], strict=True):
            torch.testing.assert_close(value, values[0], rtol=1e-10, atol=1e-11)
            for slope, reference in zip(slopes, gradients[0], strict=True):
                torch.testing.assert_close(slope, reference, rtol=1e-9, atol=1e-11)
        case = replace(case, image=case.text, text=case.image)  # another batch
