"""What every objective owes, checked for each of INSTANCES: list an objective once and it is held to all."""

from dataclasses import replace
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.objectives.clusters import rows_of, swapped, with_leaves
from tests.objectives.instances import INSTANCES, Instance, bias_of, case_of, features, losses, pairs_of, state_of
from tests.references import REFERENCES
from tests.references.case import Case
from troth.encoders.contrastive import Features
from troth.geometry import Sphere
from troth.objectives import ObjectiveConfig
from troth.similarity import DenseMatches, PrototypePairs, TwoWay
from troth.state import Clock, State
from troth.train import accumulate
from troth.types import Batch

MEMBERS: list[type] = list(get_args(get_args(ObjectiveConfig)[0]))
TILES = [(1024, 1024), (3, 4), (1, 1), (5, 100)]


@pytest.fixture(params=INSTANCES)
def instance(request: pytest.FixtureRequest) -> Instance:
    return INSTANCES[request.param]


def _leaves(case: Case) -> tuple[Case, list[Tensor]]:
    """The case with fresh leaves that gradients can be taken for."""
    leaves = [case.image.detach().requires_grad_(), case.text.detach().requires_grad_()]
    leaves.append(case.scale.detach().requires_grad_())
    bias = None if case.bias is None else case.bias.detach().requires_grad_()
    if bias is not None:
        leaves.append(bias)
    prototypes, projections = None, []
    if case.objective.needs_prototypes:
        assert case.prototypes is not None
        prototypes, projections = with_leaves(case.prototypes)
    fresh = replace(case, image=leaves[0], text=leaves[1], scale=leaves[2], bias=bias, prototypes=prototypes)
    return fresh, [*leaves, *projections]


def _swapped(case: Case) -> Case:
    """The case with the modalities exchanged."""
    assert case.prototypes is not None
    return replace(case, image=case.text, text=case.image, prototypes=swapped(case.prototypes))


def test_every_objective_is_listed_and_has_a_reference() -> None:
    assert set(MEMBERS) == {type(each.objective) for each in INSTANCES.values()}
    assert {each.objective.kind for each in INSTANCES.values()} == set(REFERENCES)


@pytest.mark.parametrize("tile", TILES)
def test_steps_equal_the_float64_loop_in_values_and_gradients(instance: Instance, tile: tuple[int, int]) -> None:
    """Several steps, so that what is remembered after the first shows, and what is fitted when an epoch begins."""
    case = case_of(instance.objective)
    state = state_of(case)
    weights = torch.linspace(0.2, 2.0, case.size, dtype=torch.float64)  # no row can stand in for another
    for step in (2, 3, 4) if len(list(state)) else (2, 3):
        case = replace(case, clock=replace(case.clock, step=step))
        state.clock = case.clock
        values, gradients = [], []
        for compute in ("reference", "streamed"):
            fresh, leaves = _leaves(case)
            if compute == "reference":
                value = REFERENCES[instance.objective.kind](fresh)
            else:
                value = instance.objective(pairs_of(fresh, tile=tile), state)
            assert value.shape == (case.size,)
            values.append(value)
            total = (weights * value).sum()
            gradients.append(torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True))
        torch.testing.assert_close(values[1], values[0], rtol=1e-10, atol=1e-11)
        for streamed, reference in zip(gradients[1], gradients[0], strict=True):
            torch.testing.assert_close(streamed, reference, rtol=1e-9, atol=1e-11)
        case = _swapped(case)  # another batch


@pytest.mark.parametrize("name", [n for n, each in INSTANCES.items() if each.exact_slope and each.smooth])
def test_gradcheck(name: str) -> None:
    case, leaves = _leaves(replace(case_of(INSTANCES[name].objective, size=4, dim=3), bias=None))

    def value(image: Tensor, text: Tensor, scale: Tensor, *projected: Tensor) -> Tensor:
        moved = replace(case, image=image, text=text, scale=scale, bias=bias_of(case.objective))
        if case.prototypes is not None:
            moved = replace(moved, prototypes=PrototypePairs(*projected, case.prototypes.clusters))
        return case.objective(pairs_of(moved, tile=(3, 2)), state_of(moved))

    assert torch.autograd.gradcheck(value, leaves)


@given(seed=st.integers(0, 10_000), size=st.integers(2, 10), data=st.data())
@settings(max_examples=8, deadline=None)
@pytest.mark.parametrize("name", INSTANCES)
def test_permuting_the_pairs_permutes_the_losses(name: str, seed: int, size: int, data: st.DataObject) -> None:
    case = case_of(INSTANCES[name].objective, size=size, seed=seed)
    order = torch.tensor(data.draw(st.permutations(range(size))))
    assert case.index is not None
    assert case.matches is not None
    assert case.weight is not None
    assert case.teacher_image is not None
    assert case.teacher_points is not None
    assert case.prototypes is not None
    permuted = replace(
        case,
        image=case.image[order],
        text=case.text[order],
        index=case.index[order],
        matches=case.matches[order][:, order],
        weight=case.weight[order],
        teacher_image=case.teacher_image[order],
        teacher_points=TwoWay(*(points[order] for points in case.teacher_points)),
        prototypes=rows_of(case.prototypes, lambda rows: rows[order]),
    )
    straight = case.objective(pairs_of(case, tile=(4, 3)), state_of(case))
    moved = case.objective(pairs_of(permuted, tile=(4, 3)), state_of(permuted))
    torch.testing.assert_close(moved, straight[order], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", [name for name, each in INSTANCES.items() if each.symmetric])
def test_swapping_the_modalities_keeps_the_losses(name: str) -> None:
    case = case_of(INSTANCES[name].objective, size=9)
    torch.testing.assert_close(
        case.objective(pairs_of(case), state_of(case)),
        case.objective(pairs_of(_swapped(case)), state_of(case)),
        rtol=1e-9,
        atol=1e-11,
    )


@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0, 1e3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_scales_stay_finite(instance: Instance, scale: float, dtype: torch.dtype) -> None:
    image, text = features(16, dtype=dtype)
    text[3] = -image[3]  # the worst pair there can be
    text[5] = image[5]  # and the best
    inputs = (image.requires_grad_(), text.requires_grad_(), torch.tensor(scale, dtype=dtype, requires_grad=True))
    objective = instance.objective
    matches = DenseMatches((torch.arange(16)[:, None] // 3 == torch.arange(16) // 3).to(dtype))
    value = losses(objective, *inputs, bias_of(objective, dtype), tile=(5, 7), matches=matches)
    assert torch.isfinite(value).all()
    if instance.non_negative:
        assert (value >= -1e-6 * max(scale, 1)).all()
    for gradient in torch.autograd.grad(value.mean(), inputs, allow_unused=True, materialize_grads=True):
        assert torch.isfinite(gradient).all()


def test_bfloat16_features_lose_no_more_than_in_the_naive_loop(instance: Instance) -> None:
    """Half-precision towers: of the same rounded features, our float32 errors are the naive float32 loop's at most, in
    values and in gradients."""
    case = case_of(instance.objective, size=12, dim=32, scale=8.0)
    sphere = Sphere()
    rounded = [sphere.project(x.bfloat16()) for x in (case.image, case.text)]
    assert all(x.dtype == torch.float32 for x in rounded)
    assert case.prototypes is not None
    projected = rows_of(case.prototypes, lambda rows: rows.bfloat16().float() if rows.is_floating_point() else rows)
    projected = replace(projected, scale=projected.scale.float())
    doubled = rows_of(projected, lambda rows: rows.double() if rows.is_floating_point() else rows)
    exact = replace(case, image=rounded[0].double(), text=rounded[1].double(), memory={}, prototypes=doubled)
    bias = None if case.bias is None else case.bias.float()
    single = replace(exact, image=rounded[0], text=rounded[1], scale=case.scale.float(), bias=bias, memory={})
    single.prototypes = projected
    weights = torch.linspace(0.2, 2.0, case.size, dtype=torch.float64)
    values, gradients = [], []
    for compute, of in (("reference", exact), ("reference", single), ("streamed", single)):
        fresh, leaves = _leaves(of)
        if compute == "reference":
            value = REFERENCES[instance.objective.kind](fresh)
        else:
            value = instance.objective(pairs_of(fresh, tile=(5, 4)), state_of(fresh))
        total = (weights.to(value) * value).sum()
        slopes = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
        values.append(value.detach().double())
        gradients.append([slope.double() for slope in slopes])
    truth, naive, ours = values
    size = truth.abs().max()
    assert (ours - truth).abs().max() <= 2 * (naive - truth).abs().max() + 2e-6 * size.clamp_min(1)
    largest = torch.stack([slope.abs().max() for slope in gradients[0]]).max()
    for truth, naive, ours in zip(*gradients, strict=True):
        assert (ours - truth).abs().max() <= 2 * (naive - truth).abs().max() + 1e-5 * largest


def test_autocast_reaches_neither_the_logits_nor_the_gradients(instance: Instance) -> None:
    """Users put the backward pass inside autocast too."""
    objective = instance.objective
    bias = bias_of(objective, torch.float32)

    def compute() -> list[Tensor]:
        inputs = [x.requires_grad_() for x in (*features(32, dtype=torch.float32), torch.tensor(50.0))]
        value = losses(objective, *inputs, bias)
        return [value, *torch.autograd.grad(value.mean(), inputs, allow_unused=True, materialize_grads=True)]

    plain = compute()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = compute()
    assert all(torch.equal(one, other) for one, other in zip(plain, inside, strict=True))


@pytest.mark.parametrize("name", [name for name, each in INSTANCES.items() if each.prefers_right])
def test_a_right_pair_costs_less(name: str) -> None:
    objective = INSTANCES[name].objective
    image, text = features(32, dim=24)
    scale, bias = torch.tensor(10.0, dtype=torch.float64), bias_of(objective)
    right = losses(objective, image, text, scale, bias)
    wrong = losses(objective, image, text.roll(1, dims=0), scale, bias)
    assert right.mean() < wrong.mean()


class _Towers(nn.Module):
    """Two linear towers: enough for gradients to travel through."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image = nn.Linear(5, 6, dtype=torch.float64)
        self.text = nn.Linear(4, 6, dtype=torch.float64)
        with torch.no_grad():  # images and captions begin near each other, as the mask of affinities wants them
            self.text.weight.copy_(self.image.weight[:, :4])
        self.log_scale = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
        self.bias = nn.Parameter(torch.tensor(-1.0, dtype=torch.float64)) if bias else None
        self.projection = nn.Linear(6, 4, dtype=torch.float64)
        self.log_prototype_scale = nn.Parameter(torch.tensor(1.2, dtype=torch.float64))

    def forward(self, image: Tensor, text: Tensor) -> Features:
        sphere = Sphere()
        raw = self.image(image), self.text(text)
        points = [sphere.project(each) for each in raw]
        projected = [sphere.project(self.projection(each)) for each in raw]
        return Features(*points, self.log_scale.exp(), self.bias, *projected, self.log_prototype_scale.exp())


def test_accumulated_micro_batches_give_the_gradient_of_the_big_batch(instance: Instance) -> None:
    objective = instance.objective
    case = case_of(objective, size=12)
    torch.manual_seed(1)
    image = torch.randn(12, 5, dtype=torch.float64)
    batch = Batch(torch.arange(12), image, image[:, :4] + 0.3 * torch.randn(12, 4, dtype=torch.float64))
    gradients = []
    for micro_batch_size in (None, 5):
        model, state = _Towers(objective.needs_bias), state_of(case)

        def loss(points: Features, state: State = state) -> Tensor:
            moved = replace(case, image=points.image, text=points.text, scale=points.scale, bias=points.bias)
            moved.prototypes = replace(
                case.prototypes,
                image=points.image_projection,
                text=points.text_projection,
                scale=points.prototype_scale,
            )
            return objective(pairs_of(moved), state)

        accumulate.backward(model, batch, loss, micro_batch_size=micro_batch_size)
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert any(gradient is not None and gradient.abs().max() > 0 for gradient in gradients[0])
    for whole, parts in zip(*gradients, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-9, atol=1e-12)


def test_a_resumed_state_goes_on_as_if_nothing_had_happened(instance: Instance) -> None:
    objective = instance.objective
    case, other = case_of(objective, seed=0), case_of(objective, seed=9)

    def step(state: State, number: int, batch: Case) -> Tensor:
        state.clock = Clock(seed=5, step=number, steps_per_epoch=2, total_steps=8)
        return objective(pairs_of(batch), state).detach()

    through = state_of(case)
    step(through, 2, case)
    step(through, 3, other)
    resumed = State(case.size, "test")
    resumed.load_state_dict({name: tensor.clone() for name, tensor in through.state_dict().items()}, "test")
    objective.prepare(resumed)
    for number in (4, 5):
        assert torch.equal(step(resumed, number, case), step(through, number, case))
    for name, remembered in through.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], remembered, rtol=0, atol=0, equal_nan=True)
