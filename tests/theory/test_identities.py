"""The identities of the theory, to 1e-10, over random members, data and shapes."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.references import theory as reference
from tests.theory.strategies import losses, problems
from troth.errors import UserError
from troth.geometry import Sphere
from troth.objectives import MMCL
from troth.similarity import Pairs
from troth.state import State
from troth.theory import (
    ContrastiveLoss,
    LinearEncoders,
    coefficients,
    contrastive_cross_covariance,
    cross_covariance,
    edge_cross_covariance,
    gradient,
    objective,
    spectral_step,
)

Problem = tuple[torch.Tensor, torch.Tensor, LinearEncoders]
EXACT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}


@settings(max_examples=60, deadline=None)
@given(losses(), problems())
def test_the_loss_is_its_equation(loss: ContrastiveLoss, problem: Problem) -> None:
    x, y, encoders = problem
    similarity = encoders.similarity(x, y)
    torch.testing.assert_close(loss(similarity).mean(), reference.mean_loss(loss, similarity), **EXACT)


@settings(max_examples=60, deadline=None)
@given(losses(), problems())
def test_coefficients_are_the_derivative_by_similarities(loss: ContrastiveLoss, problem: Problem) -> None:
    x, y, encoders = problem
    similarity = encoders.similarity(x, y).requires_grad_()
    (slope,) = torch.autograd.grad(reference.mean_loss(loss, similarity), similarity)
    one, two = coefficients(loss, similarity.detach())
    torch.testing.assert_close((two - torch.diag(one)) / len(x), slope, **EXACT)


@settings(max_examples=80, deadline=None)
@given(losses(), problems(), st.sampled_from([0.0, 0.3, 2.0]))
def test_the_gradient_is_minus_the_encoders_times_the_cross_covariance(
    loss: ContrastiveLoss, problem: Problem, rho: float
) -> None:
    x, y, encoders = problem
    g1, g2 = (each.clone().requires_grad_() for each in (encoders.image, encoders.text))
    value = reference.objective(loss, x, y, g1, g2, rho)
    slopes = torch.autograd.grad(value, (g1, g2))
    torch.testing.assert_close(objective(x, y, encoders, loss, rho), value.detach(), **EXACT)
    # By the covariance of the loop, and by ours.
    summed = reference.covariance(x, y, *coefficients(loss, encoders.similarity(x, y)))
    torch.testing.assert_close(contrastive_cross_covariance(x, y, encoders, loss), summed, **EXACT)
    regular = rho * encoders.product
    torch.testing.assert_close(-encoders.text @ (summed - regular).T, slopes[0], **EXACT)
    torch.testing.assert_close(-encoders.image @ (summed - regular), slopes[1], **EXACT)
    ours = gradient(x, y, encoders, loss, rho)
    torch.testing.assert_close(ours.image, slopes[0], **EXACT)
    torch.testing.assert_close(ours.text, slopes[1], **EXACT)


@settings(max_examples=30, deadline=None)
@given(problems())
def test_the_linear_members_covariance_is_the_unbiased_sample_one(problem: Problem) -> None:
    x, y, encoders = problem
    plain = cross_covariance(x, y)
    torch.testing.assert_close(contrastive_cross_covariance(x, y, encoders, ContrastiveLoss.linear()), plain, **EXACT)
    centred = (x - x.mean(0)).T @ (y - y.mean(0)) / (len(x) - 1)
    torch.testing.assert_close(plain, centred, **EXACT)
    edges = torch.eye(len(x), dtype=torch.bool)
    torch.testing.assert_close(edge_cross_covariance(x, y, edges), plain * (len(x) - 1) / len(x), **EXACT)


@settings(max_examples=30, deadline=None)
@given(losses(), problems())
def test_stacked_problems_are_solved_side_by_side(loss: ContrastiveLoss, problem: Problem) -> None:
    x, y, encoders = problem
    other = (x.flip(0) * 0.9, y + 0.1, LinearEncoders(encoders.image * 1.1, encoders.text * 0.8))
    stacked = LinearEncoders(torch.stack([encoders.image, other[2].image]), torch.stack([encoders.text, other[2].text]))
    both = contrastive_cross_covariance(torch.stack([x, other[0]]), torch.stack([y, other[1]]), stacked, loss)
    torch.testing.assert_close(both[0], contrastive_cross_covariance(x, y, encoders, loss), **EXACT)
    torch.testing.assert_close(both[1], contrastive_cross_covariance(other[0], other[1], other[2], loss), **EXACT)


@settings(max_examples=40, deadline=None)
@given(problems(), st.floats(0.2, 3.0), st.data())
def test_the_spectral_step_minimises_the_frozen_objective(problem: Problem, rho: float, data: st.DataObject) -> None:
    x, y, encoders = problem
    covariance = cross_covariance(x, y)
    rank = data.draw(st.integers(1, min(covariance.shape)))
    best = spectral_step(covariance, rank, rho)

    def frozen(each: LinearEncoders) -> torch.Tensor:
        return -(each.image @ covariance @ each.text.T).trace() + rho / 2 * each.product.square().sum()

    kept = torch.linalg.svdvals(covariance)[:rank]
    torch.testing.assert_close(frozen(best), -kept.square().sum() / (2 * rho), **EXACT)
    torch.testing.assert_close(best.image @ best.image.T, best.text @ best.text.T, **EXACT)  # balanced
    rivals = [encoders, LinearEncoders(best.image * 1.01, best.text), LinearEncoders(-best.image, best.text)]
    for rival in rivals:
        if len(rival.image) <= rank:
            assert frozen(best) <= frozen(rival) + 1e-10


def test_infonce_and_generalized_cross_entropy_are_members() -> None:
    similarity = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    tau, q, own = 0.7, 0.4, torch.arange(6)
    rows = -torch.log_softmax(similarity / tau, 1)[own, own]
    columns = -torch.log_softmax(similarity / tau, 0)[own, own]
    torch.testing.assert_close(ContrastiveLoss.infonce(tau)(similarity), tau * (rows + columns) / 2, **EXACT)
    robust = sum(tau * (1 - torch.exp(-q * each)) / q for each in (rows, columns)) / 2
    torch.testing.assert_close(ContrastiveLoss.generalized_cross_entropy(q, tau)(similarity), robust, **EXACT)


@pytest.mark.parametrize(
    ("loss", "objective"),
    [
        (ContrastiveLoss.infonce(), MMCL.infonce()),
        (ContrastiveLoss.linear(), MMCL.linear()),
        (ContrastiveLoss.hinge(), MMCL(psi="hinge")),
        (ContrastiveLoss.logistic(), MMCL(psi="softplus", average=True)),
        (ContrastiveLoss("log", "exp", 0.5, 1.0), MMCL("log", "exp", 0.5, 1.0, average=False)),
    ],
)
def test_the_objective_for_training_is_the_same_class(loss: ContrastiveLoss, objective: MMCL) -> None:
    generator, scale = torch.Generator().manual_seed(5), torch.tensor(3.0, dtype=torch.float64)
    image, text = (Sphere().project(torch.randn(6, 4, generator=generator, dtype=torch.float64)) for _ in range(2))
    trained = objective(Pairs(image, text, scale=scale), State(6, fingerprint="theory"))
    torch.testing.assert_close(loss(scale * image @ text.T), trained, **EXACT)


def test_infonces_pairs_count_by_what_is_not_yet_sure() -> None:
    similarity = torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    one, two = coefficients(ContrastiveLoss.infonce(), similarity)
    sure = 0.5 * (torch.softmax(similarity, 1) + torch.softmax(similarity, 0)).diagonal()
    torch.testing.assert_close(one - two.diagonal(), 1 - sure, **EXACT)


def test_small_temperatures_overflow_nothing() -> None:
    similarity = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 1e4
    for loss in (ContrastiveLoss.infonce(0.01), ContrastiveLoss.generalized_cross_entropy(0.7, 0.01)):
        assert loss(similarity).isfinite().all()
        assert all(each.isfinite().all() for each in loss.weights(similarity))
    assert ContrastiveLoss.logistic(0.01)(similarity).isfinite().all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"phi": "square"}, "phi: unknown function 'square'"),
        ({"phi": "log"}, "needs a positive sum"),
        ({"nu": 0.0}, "no positive is in the loss"),
        ({"tau": 0.0}, "tau: 0.0 is not a finite number above 0"),
        ({"eps": -1.0}, "eps: -1.0 is not a finite number from 0 on"),
        ({"nu": math.nan}, "nu: nan is not"),
    ],
)
def test_impossible_members_are_refused_in_a_line(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ContrastiveLoss(**fields)


def test_wrong_shapes_are_refused_in_a_line() -> None:
    loss = ContrastiveLoss.infonce()
    with pytest.raises(UserError, match="not square"):
        loss(torch.zeros(2, 3))
    with pytest.raises(UserError, match="no negatives"):
        loss.weights(torch.zeros(1, 1))
    with pytest.raises(UserError, match="3 images and 2 captions"):
        cross_covariance(torch.zeros(3, 2), torch.zeros(2, 2))
    with pytest.raises(UserError, match="one row an image"):
        edge_cross_covariance(torch.zeros(3, 2), torch.zeros(2, 2), torch.zeros(2, 2))
    with pytest.raises(UserError, match="no image has a caption"):
        edge_cross_covariance(torch.zeros(3, 2), torch.zeros(2, 2), torch.zeros(3, 2))
    with pytest.raises(UserError, match="rank: 3 is not between 1 and 2"):
        spectral_step(torch.zeros(2, 4), 3)
    with pytest.raises(UserError, match="rho"):
        spectral_step(torch.zeros(2, 4), 1, 0.0)
