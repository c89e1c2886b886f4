"""Sums of objectives, losses weighted by pair, and the weight that two groups of losses give."""

import json
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, get_type_hints

import pytest
import tomli_w
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from tests.objectives.clean_posterior_runs import COUNT, STEPS, compute, losses_at, planted
from tests.references import composition as references
from tests.references.case import Case
from tests.torchrun import two_ranks
from troth.errors import UserError
from troth.objectives import (
    CleanPosterior,
    GeneralizedCE,
    GivenWeights,
    InfoNCE,
    ObjectiveConfig,
    Reweighted,
    Sigmoid,
    Sum,
    parts,
)
from troth.similarity import Pairs
from troth.state import Clock, State

SIZE = 6


def inputs() -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    image, text = (F.normalize(torch.randn(2, SIZE, 5, generator=draw, dtype=torch.float64), dim=-1)).unbind()
    scale, bias = torch.tensor(4.0, dtype=torch.float64), torch.tensor(-1.5, dtype=torch.float64)
    return [tensor.clone().requires_grad_() for tensor in (image, text, scale, bias)]


def run(objective, state: State | None = None, **known: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The losses, and the gradients of an uneven sum of them."""
    state = state or State(SIZE, "test")
    objective.prepare(state)
    tensors = inputs()
    losses = objective(Pairs(*tensors, index=torch.arange(SIZE), **known), state)
    uneven = (losses * torch.linspace(0.5, 2, SIZE, dtype=torch.float64)).sum()
    return losses.detach(), list(torch.autograd.grad(uneven, tensors, allow_unused=True))


def pairs_of(index: Tensor, **known: Tensor) -> Pairs:
    """Pairs whose embeddings do not matter."""
    point = torch.ones(len(index), 1)
    return Pairs(point, point, torch.tensor(1.0), index=index, **known)


def test_a_sum_is_the_weighted_sum_of_its_terms_and_so_is_its_gradient() -> None:
    terms = ((0.7, InfoNCE()), (-0.2, Sigmoid()), (3, GeneralizedCE(q=0.4)))
    losses, gradients = run(Sum(terms))
    expected, sums = torch.zeros(SIZE, dtype=torch.float64), [0.0, 0.0, 0.0, 0.0]
    for weight, objective in terms:
        part, slopes = run(objective)
        expected = expected + weight * part
        sums = [total + weight * slope for total, slope in zip(sums, slopes, strict=True)]
    torch.testing.assert_close(losses, expected, rtol=1e-12, atol=1e-12)
    for gradient, total in zip(gradients, sums, strict=True):
        torch.testing.assert_close(gradient, total, rtol=1e-12, atol=1e-12)


def test_weights_multiply_losses_and_let_no_gradient_through() -> None:
    weight = torch.tensor([0.0, 0.5, 1.0, 2.0, 0.1, 3.0], dtype=torch.float64)
    losses, gradients = run(Reweighted(InfoNCE(), by=GivenWeights()), weight=weight)
    plain, _ = run(InfoNCE())
    torch.testing.assert_close(losses, weight * plain, rtol=0, atol=0)
    tensors = inputs()
    unreduced = InfoNCE()(Pairs(*tensors), State(SIZE, "test"))
    uneven = torch.linspace(0.5, 2, SIZE, dtype=torch.float64)
    expected = torch.autograd.grad(unreduced, tensors, weight * uneven, allow_unused=True)
    for gradient, slope in zip(gradients, expected, strict=True):
        assert (gradient is None) == (slope is None)
        if slope is not None:
            torch.testing.assert_close(gradient, slope, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("inner", [InfoNCE(), GeneralizedCE(), Sum(((0.5, InfoNCE()), (1.0, Sigmoid())))])
def test_given_weights_count_once_and_do_not_colour_the_memory(inner) -> None:
    weight = torch.tensor([0.0, 0.5, 1.0, 2.0, 0.1, 3.0], dtype=torch.float64)
    plain, _ = run(inner)
    for by in (GivenWeights(), CleanPosterior()):
        state = State(SIZE, "test")
        losses, _ = run(Reweighted(inner, by=by), state, weight=weight)
        torch.testing.assert_close(losses, weight * plain, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(state.read("by/loss"), plain.float())


def test_weights_that_are_not_given_are_one_line() -> None:
    with pytest.raises(UserError, match=r"^objective\.by: these pairs carry no weights .*\(name a table"):
        run(Reweighted(InfoNCE(), by=GivenWeights()))


def test_parts_of_parts_each_remember_for_themselves() -> None:
    slow, fast = (Reweighted(InfoNCE(), by=CleanPosterior(keep=keep)) for keep in (0.9, 0.1))
    objective = Sum(((1.0, slow), (2.0, Sum(((0.5, GeneralizedCE()), (1.0, fast)))), (0.0, Sigmoid())))
    state = State(SIZE, "test")
    objective.prepare(state)
    assert list(state) == ["0-reweighted/by/loss", "1-sum/1-reweighted/by/loss"]
    for name, fill in (("0-reweighted/by/loss", 10.0), ("1-sum/1-reweighted/by/loss", 20.0)):
        state.write(name, torch.arange(SIZE), torch.full((SIZE,), fill))
    losses, _ = run(objective, state)
    plain = run(InfoNCE())[0]
    torch.testing.assert_close(losses, plain + 2 * (0.5 * run(GeneralizedCE())[0] + plain), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(state.read("0-reweighted/by/loss"), (0.9 * 10 + 0.1 * plain).float())
    torch.testing.assert_close(state.read("1-sum/1-reweighted/by/loss"), (0.1 * 20 + 0.9 * plain).float())
    found = [(part, list(scope)) for part, scope in parts(objective, state) if isinstance(part, CleanPosterior)]
    assert found == [(slow.by, ["loss"]), (fast.by, ["loss"])]
    assert [part for part, _ in parts(objective, state)][:2] == [objective, slow]


def test_nested_objectives_follow_the_float64_loops() -> None:
    inner = Sum(((0.5, InfoNCE()), (2.0, GeneralizedCE(q=0.3))))
    objective = Sum(((0.3, Reweighted(inner, by=CleanPosterior())), (1.5, Reweighted(InfoNCE(), by=GivenWeights()))))
    weight = torch.tensor([0.0, 0.5, 1.0, 2.0, 0.1, 3.0], dtype=torch.float64)
    losses, gradients = run(objective, weight=weight)
    tensors = inputs()
    case = Case(objective, *tensors[:3], index=torch.arange(SIZE), weight=weight)
    expected = references.weighted_sum(case)
    torch.testing.assert_close(losses, expected.detach(), rtol=1e-10, atol=1e-12)
    uneven = torch.linspace(0.5, 2, SIZE, dtype=torch.float64)
    for gradient, slope in zip(gradients[:3], torch.autograd.grad(expected, tensors[:3], uneven), strict=True):
        torch.testing.assert_close(gradient, slope, rtol=1e-9, atol=1e-11)


def test_what_the_parts_need_the_whole_needs() -> None:
    plain, biased = Sum(((1.0, InfoNCE()),)), Sum(((1.0, InfoNCE()), (0.5, Sigmoid())))
    assert (plain.needs_bias, biased.needs_bias) == (False, True)
    for objective, expected in ((plain, False), (biased, True)):
        assert Reweighted(objective, by=CleanPosterior()).needs_bias is expected
        assert objective.needs_teacher is Reweighted(objective, by=CleanPosterior()).needs_teacher is False


# --- as configuration ---------------------------------------------------------------------------------------------


NESTED = Sum(((1, InfoNCE()), (5.0, Reweighted(Sum(((2.0, GeneralizedCE(q=0.7)),)), by=CleanPosterior(keep=0.25)))))


def test_nested_objectives_survive_json_and_toml() -> None:
    adapter = TypeAdapter(ObjectiveConfig)
    tree = adapter.dump_python(NESTED, mode="json")
    assert tree["terms"][1][1]["by"] == {"kind": "clean_posterior", "keep": 0.25, "warmup_epochs": 2, "floor": 0.0}
    assert adapter.validate_json(json.dumps(tree)) == NESTED
    assert adapter.validate_python(tomllib.loads(tomli_w.dumps(tree))) == NESTED
    assert adapter.validate_python(NESTED) is NESTED
    assert hash(NESTED) == hash(adapter.validate_python(tree))


def test_annotations_resolve() -> None:
    hints = get_type_hints(Sum, include_extras=True)
    assert hints["kind"] == Literal["sum"]
    assert get_type_hints(Reweighted, include_extras=True)["objective"] == ObjectiveConfig
    assert hints["terms"].__origin__.__args__[0].__args__[1] == ObjectiveConfig
    assert hints["terms"].__origin__.__args__[0].__args__[0].__origin__ is float
    assert type(ObjectiveConfig) is type(Annotated[int, 0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sum(()), "at least 1 item"),
        (lambda: Sum(((float("nan"), InfoNCE()),)), "finite"),
        (lambda: Sum(((1.0, InfoNCE(), 2),)), "at most 2 items"),
        (lambda: Reweighted(InfoNCE()), "by"),
        (lambda: Reweighted(InfoNCE(), by=InfoNCE()), "clean_posterior"),
        (lambda: CleanPosterior(keep=1.0), "less than 1"),
        (lambda: CleanPosterior(warmup_epochs=0), "greater than or equal to 1"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        make()


# --- the posterior of being right ---------------------------------------------------------------------------------


def test_planted_wrong_pairs_lose_their_weight() -> None:
    wrong, weights, state = planted(), [], State(COUNT, "test")
    by = CleanPosterior(keep=0.5, warmup_epochs=2)
    by.prepare(state)
    for step in range(2 * 4):
        index = torch.arange(COUNT).chunk(2)[step % 2]
        state.clock = Clock(step=step, steps_per_epoch=2, total_steps=8)
        weights.append(by(pairs_of(index), losses_at(step)[index], state))
    assert all((weight == 1).all() for weight in weights[:4])
    after = torch.cat(weights[6:])
    assert after.dtype == torch.float64
    assert after[wrong].mean() < 0.02
    assert after[~wrong].mean() > 0.97
    share, low, high, *_ = state.value("mixture").tolist()
    assert (share, low, high) == pytest.approx((0.7, 1.0, 5.0), abs=0.15)
    everything = by.posterior(state)
    assert everything.shape == (COUNT,)
    torch.testing.assert_close(everything, after, rtol=1e-6, atol=1e-6)


def test_weights_never_rise_with_the_loss_and_stop_at_the_floor() -> None:
    state, by = State(2000, "test"), CleanPosterior(keep=0.0, floor=0.125)
    by.prepare(state)
    draw = torch.Generator().manual_seed(0)
    wide, narrow = 1 + torch.randn(1000, generator=draw), 5 + 0.1 * torch.randn(1000, generator=draw)
    state.write("loss", torch.arange(2000), torch.cat([wide, narrow]))
    state.clock = Clock(step=2, total_steps=9)
    losses = torch.linspace(-5, 12, 2000)  # above the narrow group the wide one would win again
    weights = by(pairs_of(torch.arange(2000)), losses, state)
    assert (weights.diff() <= 0).all()
    assert weights[0] > 0.99
    assert weights.min() == weights[-1] == 0.125
    assert by.posterior(state).min() < 1e-3


def test_the_mixture_is_fitted_when_an_epoch_begins_and_only_then(monkeypatch: pytest.MonkeyPatch) -> None:
    from troth.objectives import clean_posterior

    seen, fit = [], clean_posterior.fit_two_gaussians
    monkeypatch.setattr(clean_posterior, "fit_two_gaussians", lambda values: seen.append(values) or fit(values))
    state, by, fitted = State(COUNT, "test"), CleanPosterior(warmup_epochs=2, keep=0.0), []
    by.prepare(state)
    for step in range(12):
        index = torch.arange(COUNT).chunk(4)[step % 4][:-1]  # some pairs never come
        state.clock = Clock(step=step, steps_per_epoch=3, total_steps=12)
        before = state.read("loss").clone()
        by(pairs_of(index), losses_at(step)[index], state)
        if len(seen) > len(fitted):
            fitted.append(step)
            remembered = before[~torch.isnan(before)].double().sort().values
            assert seen[-1].tolist() == remembered.tolist()
    assert fitted == [6, 9]
    never = torch.isnan(state.read("loss"))
    assert never.any()
    assert torch.equal(torch.isnan(by.posterior(state)), never)


@pytest.mark.parametrize(
    "losses",
    [torch.full((COUNT,), 2.0), torch.arange(COUNT) % 7.0, torch.randn(COUNT, generator=torch.manual_seed(1))],
    ids=["all equal", "few different", "one group"],
)
def test_without_two_groups_every_pair_counts_fully(losses: Tensor) -> None:
    state, by = State(COUNT + 1, "test"), CleanPosterior(warmup_epochs=1, keep=0.0, floor=0.5)
    index = torch.arange(COUNT)
    by.prepare(state)
    state.write("loss", index, losses_at(0))
    state.clock = Clock(step=1, total_steps=4)
    assert by(pairs_of(index), losses_at(1), state).min() == 0.5
    state.write("loss", index, losses)
    state.clock = Clock(step=2, total_steps=4)
    assert (by(pairs_of(index), losses, state) == 1).all()
    assert torch.isnan(state.value("mixture")).all()
    assert (by.posterior(state)[:COUNT] == 1).all()
    assert torch.isnan(by.posterior(state)[COUNT])


def test_losses_that_are_not_finite_do_not_reach_the_fit() -> None:
    state, by, index = State(COUNT, "test"), CleanPosterior(warmup_epochs=1, keep=0.0), torch.arange(COUNT)
    by.prepare(state)
    state.write("loss", index, losses_at(0).index_fill(0, torch.tensor([3]), torch.inf))
    state.clock = Clock(step=1, total_steps=4)
    by(pairs_of(index[:2]), losses_at(1)[:2], state)
    assert torch.isfinite(state.value("mixture")).all()
    assert by.posterior(state)[3] == by.posterior(state)[4:].min()


def test_many_losses_are_thinned_by_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    from troth.objectives import clean_posterior

    states = []
    for limit in (200_000, 150):
        monkeypatch.setattr(clean_posterior, "_FITTED", limit)
        state, by = State(COUNT, "test"), CleanPosterior(warmup_epochs=1)
        by.prepare(state)
        state.write("loss", torch.arange(COUNT), losses_at(0))
        state.clock = Clock(step=1, total_steps=4)
        by(pairs_of(torch.arange(2)), losses_at(0)[:2], state)
        states.append(state.value("mixture"))
    torch.testing.assert_close(states[0], states[1], rtol=0.1, atol=0.02)
    assert not torch.equal(states[0], states[1])


def test_pairs_without_ids_cannot_be_remembered() -> None:
    state, by = State(3, "test"), CleanPosterior()
    by.prepare(state)
    with pytest.raises(ValueError, match="sample ids"):
        by(replace(pairs_of(torch.arange(3)), index=None), torch.ones(3), state)


def test_weights_follow_the_reference_through_epochs() -> None:
    by, state = CleanPosterior(keep=0.6, warmup_epochs=1, floor=0.05), State(COUNT, "test")
    by.prepare(state)
    draw, memory, apart = torch.Generator().manual_seed(3), {}, 0
    for step in range(9):
        index = torch.randperm(COUNT, generator=draw)[: COUNT // 3]
        clock = state.clock = Clock(step=step, steps_per_epoch=3, total_steps=9)
        losses = losses_at(step)[index]
        weights = by(pairs_of(index), losses, state)
        point = torch.ones(len(index), 1, dtype=torch.float64)
        case = Case(by, point, point, torch.tensor(1.0), index=index, clock=clock, memory=memory)
        expected = torch.tensor(references.clean_posterior(case, losses), dtype=torch.float64)
        torch.testing.assert_close(weights, expected, rtol=1e-3, atol=1e-4)
        apart += int((weights < 0.5).sum())
    assert apart > 20


def test_a_state_saved_and_loaded_gives_the_same_weights() -> None:
    by, index = CleanPosterior(warmup_epochs=1), torch.arange(COUNT)
    old, new = State(COUNT, "test"), State(COUNT, "test")
    by.prepare(old)
    for step in range(5):
        if step == 3:  # within an epoch
            new.load_state_dict(old.state_dict(), "test")
            by.prepare(new)
        states = (old, new) if step >= 3 else (old,)
        for state in states:
            state.clock = Clock(step=step, steps_per_epoch=2, total_steps=6)
        weights = [by(pairs_of(index), losses_at(step), state) for state in states]
        assert all(torch.equal(weights[0], other) for other in weights)
    assert (weights[0] < 0.1).any()


def test_two_ranks_give_the_weights_of_one(tmp_path: Path) -> None:
    expected, state = compute()
    two_ranks("tests.objectives.clean_posterior_runs", tmp_path)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for step in range(STEPS):
        assert torch.equal(torch.cat([rank["weights"][step] for rank in ranks]), expected[step])
    assert (expected[-1] < 0.1).any()
    for rank in ranks:
        assert rank["state"].keys() == state.keys()
        for name, values in state.items():
            torch.testing.assert_close(rank["state"][name], values, rtol=0, atol=0, equal_nan=True)
        assert rank["twice"].tolist() == [5.0, 6.0, 3.0]  # rank 1 writes 0 and 1 last, rank 0 alone writes 2
        assert rank["value"].tolist() == [0.0]
