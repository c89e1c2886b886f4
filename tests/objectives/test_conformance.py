"""What every objective owes, checked for each member of the union: list an objective once and it is held to all."""

from collections.abc import Iterator
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.references.objectives import REFERENCES
from troth.geometry import Sphere
from troth.objectives import Objective, ObjectiveConfig
from troth.similarity import Pairs
from troth.state import State

OBJECTIVES: list[type] = list(get_args(get_args(ObjectiveConfig)[0]))
TILES = [(1024, 1024), (3, 4), (1, 1), (5, 100)]


def features(size: int, dim: int = 6, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    text = F.normalize(torch.randn(size, dim, generator=generator, dtype=torch.float64), dim=-1)
    noise = torch.randn(size, dim, generator=generator, dtype=torch.float64)
    image = F.normalize(text + 0.7 * noise, dim=-1)
    return image.to(dtype), text.to(dtype)


def bias_of(objective: Objective, dtype: torch.dtype = torch.float64) -> Tensor | None:
    return torch.tensor(-1.5, dtype=dtype) if objective.needs_bias else None


def losses(objective: Objective, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor | None, **kw) -> Tensor:
    state = State(len(image), "test")
    objective.prepare(state)
    return objective(Pairs(image, text, scale, bias, torch.arange(len(image)), Sphere(), **kw), state)


@pytest.fixture(params=OBJECTIVES, ids=lambda c: c.__name__)
def objective(request: pytest.FixtureRequest) -> Iterator[Objective]:
    return request.param()


def test_every_objective_has_a_reference_loop() -> None:
    assert {cls().kind for cls in OBJECTIVES} == set(REFERENCES)


@pytest.mark.parametrize("tile", TILES)
def test_values_and_gradients_equal_the_float64_loop(objective: Objective, tile: tuple[int, int]) -> None:
    image, text = features(7)
    weights = torch.linspace(0.2, 2.0, 7, dtype=torch.float64)  # unequal, so that rows cannot stand in for each other
    results = []
    for compute in ("reference", "streamed"):
        inputs = [image.clone().requires_grad_(), text.clone().requires_grad_()]
        inputs.append(torch.tensor(5.0, dtype=torch.float64, requires_grad=True))
        bias = bias_of(objective)
        if bias is not None:
            inputs.append(bias.requires_grad_())
        if compute == "reference":
            value = REFERENCES[objective.kind](inputs[0], inputs[1], inputs[2], bias)
        else:
            value = losses(objective, inputs[0], inputs[1], inputs[2], bias, tile=tile)
        assert value.shape == (7,)
        results.append((value, torch.autograd.grad((weights * value).sum(), inputs)))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-12, atol=1e-12)
    for streamed, reference in zip(results[1][1], results[0][1], strict=True):
        torch.testing.assert_close(streamed, reference, rtol=1e-10, atol=1e-12)


def test_gradcheck(objective: Objective) -> None:
    image, text = features(4, dim=3)
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    bias = bias_of(objective)
    inputs = (image.requires_grad_(), text.requires_grad_(), scale)
    assert torch.autograd.gradcheck(lambda *x: losses(objective, *x, bias, tile=(3, 2)), inputs)


@given(seed=st.integers(0, 10_000), size=st.integers(2, 12), data=st.data())
@settings(max_examples=15, deadline=None)
@pytest.mark.parametrize("cls", OBJECTIVES, ids=lambda c: c.__name__)
def test_permuting_the_pairs_permutes_the_losses(cls: type, seed: int, size: int, data: st.DataObject) -> None:
    objective = cls()
    image, text = features(size, seed=seed)
    order = torch.tensor(data.draw(st.permutations(range(size))))
    scale, bias = torch.tensor(8.0, dtype=torch.float64), bias_of(objective)
    straight = losses(objective, image, text, scale, bias, tile=(4, 3))
    permuted = losses(objective, image[order], text[order], scale, bias, tile=(4, 3))
    torch.testing.assert_close(permuted, straight[order], rtol=1e-10, atol=1e-12)


def test_swapping_the_modalities_keeps_the_losses(objective: Objective) -> None:
    image, text = features(9)
    scale, bias = torch.tensor(8.0, dtype=torch.float64), bias_of(objective)
    torch.testing.assert_close(
        losses(objective, image, text, scale, bias), losses(objective, text, image, scale, bias), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0, 1e3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_scales_stay_finite(objective: Objective, scale: float, dtype: torch.dtype) -> None:
    image, text = features(16, dtype=dtype)
    text[3] = -image[3]  # the worst pair there can be
    text[5] = image[5]  # and the best
    inputs = (image.requires_grad_(), text.requires_grad_(), torch.tensor(scale, dtype=dtype, requires_grad=True))
    value = losses(objective, *inputs, bias_of(objective, dtype), tile=(5, 7))
    assert torch.isfinite(value).all()
    assert (value >= 0).all()
    for gradient in torch.autograd.grad(value.mean(), inputs):
        assert torch.isfinite(gradient).all()


def test_bfloat16_features_lose_no_more_than_their_rounding(objective: Objective) -> None:
    """Half-precision towers: the loss of rounded features, formed in float32, is the float64 loss of those features."""
    image, text = (x.bfloat16() for x in features(64, dim=32))
    sphere, bias = Sphere(), bias_of(objective)
    exact = losses(objective, sphere.project(image.double()), sphere.project(text.double()), torch.tensor(20.0), bias)
    ours = losses(objective, sphere.project(image), sphere.project(text), torch.tensor(20.0), bias)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=1e-4)


def test_autocast_does_not_reach_the_logits(objective: Objective) -> None:
    image, text = features(32, dtype=torch.float32)
    scale, bias = torch.tensor(50.0), bias_of(objective, torch.float32)
    plain = losses(objective, image, text, scale, bias)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = losses(objective, image, text, scale, bias)
    assert torch.equal(plain, inside)


def test_losses_are_not_negative_and_a_right_pair_costs_less(objective: Objective) -> None:
    image, text = features(32, dim=24)
    scale, bias = torch.tensor(10.0, dtype=torch.float64), bias_of(objective)
    right = losses(objective, image, text, scale, bias)
    wrong = losses(objective, image, text.roll(1, dims=0), scale, bias)
    assert (right >= 0).all()
    assert right.mean() < wrong.mean()
