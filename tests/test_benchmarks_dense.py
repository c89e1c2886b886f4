"""The benchmarks' plain torch functions and the package's objectives are the same losses."""

from dataclasses import replace

import pytest
import torch
from benchmarks import dense, objectives
from torch import Tensor

from tests.objectives.instances import INSTANCES, case_of, pairs_of, state_of
from tests.references.case import Case
from troth.objectives import CleanPosterior, DeCL, InfoNCE, Objective, Reweighted, Sigmoid, Sum, parts
from troth.state import State

SIZE = 20


def has_dense(objective: Objective) -> bool:
    """Whether there is dense code for an objective and all its parts; prototypes form no B x B block at all."""
    kinds = {part.kind for part, _ in parts(objective, State(SIZE, "kinds")) if isinstance(part, Objective)}
    return kinds <= set(dense.DENSE)


#: The settings of the conformance tests, and those that are benchmarked.
OBJECTIVES = {name: each.objective for name, each in INSTANCES.items() if has_dense(each.objective)} | {
    f"benchmark: {name}": each.objective for name, each in objectives.CASES.items()
}


def without_luck(objective: Objective) -> Objective:
    """The objective with its draws' means: the two sides draw from different generators."""
    return replace(objective, draw="mean") if getattr(objective, "draw", "") == "sample" else objective


def inputs_of(case: Case) -> dense.Inputs:
    return dense.Inputs(
        case.image,
        case.text,
        case.scale,
        case.bias,
        case.matches,
        case.weight,
        case.teacher_image,
        case.index,
        case.clock.progress,
        case.clock.starts_epoch,
        teacher_points=case.teacher_points,
    )


def both(case: Case, state: State, batch: dense.Inputs) -> list[tuple[Tensor, ...]]:
    """Ours and the dense function's: losses and gradients by image, text, scale and bias."""
    found = []
    for ours in (True, False):
        leaves = [x.detach().clone().requires_grad_() for x in (case.image, case.text, case.scale)]
        bias = None if case.bias is None else case.bias.detach().clone().requires_grad_()
        image, text, scale = leaves
        if ours:
            moved = replace(case, image=image, text=text, scale=scale, bias=bias)
            value = case.objective(pairs_of(moved, tile=(7, 6)), state)
        else:
            value = dense.losses(case.objective, replace(batch, image=image, text=text, scale=scale, bias=bias))
        assert value.shape == (SIZE,)
        weights = torch.linspace(0.2, 2.0, SIZE, dtype=torch.float64)
        leaves = leaves if bias is None else [*leaves, bias]
        gradients = torch.autograd.grad((weights * value).sum(), leaves, allow_unused=True, materialize_grads=True)
        found.append((value.detach(), *gradients))
    return found


def test_what_is_benchmarked_and_what_has_a_dense_function_are_the_same() -> None:
    assert {each.objective.kind for each in objectives.CASES.values()} == set(dense.DENSE)
    assert {each.objective.kind for each in INSTANCES.values()} >= set(dense.DENSE)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_dense_equals_ours(name: str) -> None:
    """Two steps, so that what is remembered shows; the package remembers in float32, so the second is less exact."""
    objective = without_luck(OBJECTIVES[name])
    case = case_of(objective, size=SIZE)
    state, batch = state_of(case), inputs_of(case)
    for tolerance in (1e-9, 1e-5):
        ours, plain = both(case, state, batch)
        for mine, theirs in zip(ours, plain, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance / 100)
        case = replace(case, image=case.text, text=case.image)  # another batch


def test_dense_equals_ours_where_degrees_of_matches_exceed_one() -> None:
    """A degree above one is a whole match for the sigmoid, and a larger share of the target for the softmax."""
    for objective in (Sigmoid(known_matches="positive", label_smoothing=0.1), InfoNCE(known_matches="positive")):
        case = case_of(objective, size=SIZE)
        assert case.matches is not None
        case = replace(case, matches=3 * case.matches)
        for mine, theirs in zip(*both(case, state_of(case), inputs_of(case)), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)


def test_dense_equals_ours_where_a_stale_memory_is_clipped() -> None:
    case = case_of(DeCL(draw="mean", clip=2.0), size=SIZE)
    state, batch = state_of(case), inputs_of(case)
    both(case, state, batch)
    grown = replace(case, scale=3 * case.scale)
    ours, plain = both(grown, state, batch)
    clipped = 0.5 * sum(2 - each for each in pairs_of(grown).positive_logits())
    assert torch.isclose(ours[0], clipped, rtol=1e-5).any()
    for mine, theirs in zip(ours, plain, strict=True):  # what was remembered is float32
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("floor", [0.0, 0.4])
def test_dense_weights_are_ours_where_a_mixture_was_fitted(floor: float) -> None:
    case = case_of(Reweighted(InfoNCE(), by=CleanPosterior(warmup_epochs=1, floor=floor)), size=SIZE)
    state, batch = state_of(case), inputs_of(case)
    mixture = (0.6, 2.0, 4.0, 0.7, 0.5)
    state.scope("by").set_value("mixture", torch.tensor(mixture, dtype=torch.float64))
    batch.memory["mixture"] = mixture
    ours, plain = both(case, state, batch)
    unweighted, _ = both(replace(case, objective=InfoNCE()), state, batch)
    assert not torch.allclose(ours[0], unweighted[0])
    for mine, theirs in zip(ours, plain, strict=True):  # posteriors are of losses remembered in float32
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "luck"),
    [("gamma_weights", 0.08), ("gamma_weights, literal", 0.08), ("gamma_weights, rates", 0.08), ("decl", 0.15)],
)
def test_dense_draws_have_the_law_of_ours(name: str, luck: float) -> None:
    """Sampled, the two differ pair by pair; their means over many pairs do not, up to some standard errors."""
    case = case_of(INSTANCES[name].objective, size=400)
    torch.manual_seed(0)
    plain, ours = dense.losses(case.objective, inputs_of(case)), case.objective(pairs_of(case), state_of(case))
    assert not torch.allclose(plain, ours, rtol=1e-2)
    assert abs(ours.mean() - plain.mean()) < luck


def test_a_sum_keeps_its_terms_memories_apart() -> None:
    case = case_of(Sum(((1.0, OBJECTIVES["noise_mixture, learnt"]), (1.0, OBJECTIVES["noise_mixture, learnt"]))), SIZE)
    batch = inputs_of(case)
    dense.losses(case.objective, batch)
    assert set(batch.memory) == {"0", "1"}
