"""What the Gamma-weights paper's weights do, by its own algorithm: the statements of docs/gamma_weights.md, checked."""

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from scipy.special import digamma
from torch import Tensor

from tests.objectives.instances import case_of, features, pairs_of, state_of
from tests.references.contrastive import gamma_weights
from troth.objectives import MMCL, GammaWeights, Objective, Sum
from troth.similarity import Pairs
from troth.state import Clock, State

SIZE = 24
SCALE = torch.tensor(9.0, dtype=torch.float64)
LITERAL = GammaWeights(similarity="logits")
A0 = 1 + LITERAL.a_plus + (SIZE - 1) * LITERAL.a_minus


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Batches this small are hundreds of tiny operations, which two threads only slow down."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def evaluate(
    objective: Objective, image: Tensor, text: Tensor, step: int = 0, scale: Tensor = SCALE
) -> tuple[Tensor, list[Tensor]]:
    """Losses, and the gradients of their mean with respect to image, text and scale."""
    leaves = [x.clone().requires_grad_() for x in (image, text, scale)]
    state = State(len(image), "test")
    objective.prepare(state)
    state.clock = Clock(seed=1, step=step)
    losses = objective(Pairs(*leaves, index=torch.arange(len(image))), state)
    return losses.detach(), list(torch.autograd.grad(losses.mean(), leaves))


def test_read_literally_the_loss_does_not_know_the_embeddings() -> None:
    """w_ij s_ij = G_ij / u_i: the same draws give the same losses, whatever the model."""
    good, _ = evaluate(LITERAL, *features(SIZE, seed=0))
    other, _ = evaluate(LITERAL, *features(SIZE, seed=7), scale=SCALE * 4)
    torch.testing.assert_close(good, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("changes", [{"b_u": 3.0}, {"a_u": 2.0}, {"sweeps": 3}])
def test_at_b_0_u_is_never_computed_and_the_whole_algorithm_gives_the_same(changes: dict) -> None:
    """The reference loop runs every sweep with its u; the shortcut leaves them out. One loss."""
    case = replace(case_of(replace(LITERAL, **changes)), memory={})
    shortcut = case.objective(pairs_of(case), state_of(case))
    torch.testing.assert_close(shortcut, gamma_weights(case), rtol=1e-9, atol=1e-10)


def test_a_memory_that_would_have_no_effect_is_refused() -> None:
    with pytest.raises(ValidationError, match="keep has no effect"):
        GammaWeights(keep=0.5)


def test_two_terms_of_a_sum_draw_apart() -> None:
    image, text = features(SIZE)
    pairs = Pairs(image, text, SCALE, index=torch.arange(SIZE))
    state, objective = State(SIZE, "test"), Sum(((1.0, LITERAL), (1.0, LITERAL)))
    objective.prepare(state)
    together = objective(pairs, state)
    notes = state.take_notes()
    first, second = notes["0-gamma_weights/loss"], notes["1-gamma_weights/loss"]
    torch.testing.assert_close(together, first + second)
    assert (first - second).abs().min() > 0


def test_the_expected_loss_is_a_difference_of_digammas() -> None:
    losses = torch.cat([evaluate(LITERAL, *features(SIZE), step=step)[0] for step in range(120)])
    expected = digamma(A0) - digamma(1 + LITERAL.a_plus)
    # Losses of one step share no draws between rows of one direction; five standard errors.
    assert abs(losses.mean() - expected) < 5 * losses.std() / math.sqrt(len(losses))


def test_the_mean_weights_have_exactly_the_gradient_of_the_linear_loss() -> None:
    _, means = evaluate(replace(LITERAL, draw="mean"), *features(SIZE))
    _, linear = evaluate(MMCL.linear(), *features(SIZE))
    share = 1 - (1 + LITERAL.a_plus) / A0
    for ours, expected in zip(means, linear, strict=True):
        torch.testing.assert_close(ours, share * expected, rtol=1e-9, atol=1e-12)


def test_the_mean_gradient_over_many_draws_is_the_linear_loss_gradient() -> None:
    draws = [torch.cat([g.flatten() for g in evaluate(LITERAL, *features(SIZE), step=s)[1]]) for s in range(120)]
    linear = torch.cat([g.flatten() for g in evaluate(MMCL.linear(), *features(SIZE))[1]])
    expected = (1 - (1 + LITERAL.a_plus) / A0) * linear
    stacked = torch.stack(draws)
    deviations = (stacked.mean(0) - expected) / (stacked.std(0) / math.sqrt(len(draws)))
    assert deviations.abs().max() < 5
    assert 0.8 < deviations.std() < 1.2  # standard normal: the errors are noise of the right size


def test_a_learnable_scale_only_ever_rises_on_average() -> None:
    """Its expected gradient is minus what the positives have above the mean negative."""
    _, gradients = evaluate(replace(LITERAL, draw="mean"), *features(SIZE))
    assert gradients[2] < 0


def test_the_sampler_on_the_cosine_takes_off_one_unit_of_scale() -> None:
    """With mean weights: InfoNCE at scale - 1 with positives weighted (1 + a_plus) / a_minus, up to its constant."""
    image, text = features(SIZE)
    ours, ours_gradient = evaluate(GammaWeights(draw="mean"), image, text)
    shifted = (SCALE - 1) * image @ text.T
    method = GammaWeights()
    weighted = shifted + math.log(method.a_minus)
    weighted.diagonal().copy_(shifted.diagonal() + math.log(1 + method.a_plus))
    expected = sum(weighted.logsumexp(dim) - weighted.diagonal() for dim in (0, 1)) / 2
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)
    assert ours_gradient[2] != 0


def test_after_one_sweep_a_large_rate_leaves_infonce_with_fixed_weights() -> None:
    """u s is at most 1 then, so the rate drowns it; a second sweep would scale u up with the rate."""
    image, text = features(SIZE)
    method = GammaWeights(similarity="logits", draw="mean", b_plus=1e9, b_minus=1e9, sweeps=1)
    ours, _ = evaluate(method, image, text)
    weighted = SCALE * image @ text.T + math.log(10)
    weighted.diagonal().add_(math.log(6) - math.log(10))
    expected = sum(weighted.logsumexp(dim) - weighted.diagonal() for dim in (0, 1)) / 2
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("rate", "pushes"), [(0.0, False), (1.0, True)])
def test_at_b_0_a_false_negative_hardly_pushes_and_with_a_rate_it_does(rate: float, pushes: bool) -> None:
    """A caption that fits image 0 as well as its own: its push against the positive's pull, at mean weights."""
    logits = torch.randn(SIZE, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits.fill_diagonal_(12.0)
    logits[0, 1] = 12.0
    # Captions as unit vectors and images as rows of logits: any matrix is a matrix of inner products.
    image, text = logits.clone().requires_grad_(), torch.eye(SIZE, dtype=torch.float64)
    objective = GammaWeights(similarity="logits", draw="mean", b_plus=rate, b_minus=rate, sweeps=5)
    losses = objective(Pairs(image, text, torch.tensor(1.0, dtype=torch.float64)), State(SIZE, "test"))
    (gradient,) = torch.autograd.grad(losses.sum(), image)
    push_and_pull = gradient[0, 1] / -gradient[0, 0]
    assert bool(push_and_pull > 0.5) is pushes
