"""Detection and the two stages: against loops, scipy and torch."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from tests.references import theory as reference
from troth.errors import UserError
from troth.theory import (
    AdamW,
    Detection,
    LinearEncoders,
    Matching,
    SpikedModel,
    Training,
    assign,
    cosines,
    detect,
    detection_gradient,
    first_encoders,
    matching_accuracy,
    train_paired,
    train_unpaired,
)

MATCHINGS: list[Matching] = ["top", "argmax", "mutual", "hungarian"]
QUICK = Training(batch_size=20, passes=20, learning_rate=1e-2)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12), st.integers(0, 2**31), st.booleans())
def test_the_assignment_is_the_best(size: int, seed: int, ties: bool) -> None:
    scores = np.random.default_rng(seed).standard_normal((size, size))
    if ties:
        scores = np.round(scores)
    ours = assign(scores)
    rows, columns = linear_sum_assignment(scores, maximize=True)
    assert sorted(ours) == list(range(size))
    assert scores[np.arange(size), ours].sum() == pytest.approx(scores[rows, columns].sum(), abs=1e-10)


@pytest.mark.parametrize("matching", ["top", "argmax", "mutual"])
def test_detected_edges_are_their_definition(matching: Matching) -> None:
    similarity = random(3, 7, 7)
    found = detect(similarity, matching)
    for ours, each in zip(found.edges, similarity, strict=True):
        torch.testing.assert_close(ours, reference.edges(each, matching), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.edges.sum((1, 2)), torch.full((3,), 7.0).double())


@pytest.mark.parametrize("matching", MATCHINGS)
def test_nothing_depends_on_which_rows_are_shared(matching: Matching) -> None:
    similarity = random(6, 6)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(
        detect(similarity[:, order], matching).edges, detect(similarity, matching).edges[:, order]
    )


@pytest.mark.parametrize("matching", MATCHINGS)
def test_exchanging_the_sides_transposes_the_edges(matching: Matching) -> None:
    similarity = random(2, 6, 6)
    torch.testing.assert_close(detect(similarity.mT, matching).edges, detect(similarity, matching).edges.mT)


@pytest.mark.parametrize("matching", MATCHINGS)
def test_the_written_gradient_is_that_of_the_loop(matching: Matching) -> None:
    encoders, x, y = (
        LinearEncoders(random(2, 3, 5), random(2, 3, 4, seed=1)),
        random(2, 6, 5, seed=2),
        random(2, 6, 4, seed=3),
    )
    (image, text), cos = detection_gradient(encoders, x, y, lambda cos: detect(cos, matching), 0.5)
    torch.testing.assert_close(cos, cosines(encoders, x, y))
    for run in range(2):
        g1, g2 = encoders.image[run].clone().requires_grad_(), encoders.text[run].clone().requires_grad_()
        found = detect(cos[run], matching)
        ones = torch.ones(6, dtype=torch.float64)
        value = reference.detection_loss(
            g1, g2, x[run], y[run], found.edges, found.rows * ones, found.columns * ones, 0.5
        )
        slopes = torch.autograd.grad(value, (g1, g2))
        torch.testing.assert_close(image[run], slopes[0], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(text[run], slopes[1], rtol=1e-10, atol=1e-10)


def test_adamw_is_torchs() -> None:
    weight, training = random(2, 3), Training(learning_rate=0.01, weight_decay=0.1)
    theirs = weight.clone().requires_grad_()
    optimizer, ours = torch.optim.AdamW([theirs], lr=0.01, weight_decay=0.1), AdamW()
    for seed in range(5):
        theirs.grad = random(2, 3, seed=seed)
        optimizer.step()
        ours.step((weight,), (random(2, 3, seed=seed),), training)
    torch.testing.assert_close(weight, theirs.detach(), rtol=1e-10, atol=1e-12)


def data(count: int, draw: int, runs: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    samples = [SpikedModel(12, 11, 4, noise=0.1, seed=seed).sample(count, draw=draw) for seed in range(runs)]
    return torch.stack([each.x.float() for each in samples]), torch.stack([each.y.float() for each in samples])


def test_runs_side_by_side_are_the_runs_alone() -> None:
    start, (x, y), (u, v) = first_encoders(2, 4, 12, 11), data(40, 0), data(60, 1)
    both, optimizer = train_paired(start, x, y, QUICK)
    both = train_unpaired(both, u, v, QUICK, Detection(), optimizer)
    for run in range(2):
        own = slice(run, run + 1)
        alone, moments = train_paired(LinearEncoders(start.image[own], start.text[own]), x[own], y[own], QUICK)
        alone = train_unpaired(alone, u[own], v[own], QUICK, Detection(), moments)
        torch.testing.assert_close(alone.image[0], both.image[run], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("matching", MATCHINGS)
def test_unpaired_data_help_in_the_aligned_order(matching: Matching) -> None:
    (x, y), (u, v), test = data(40, 0), data(400, 1), data(500, 2)
    paired, optimizer = train_paired(first_encoders(2, 4, 12, 11), x, y, QUICK)
    rows = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    shuffled = v.unflatten(1, (20, 20))[:, :, rows].flatten(1, 2)  # a row says nothing; the batch does
    both = train_unpaired(paired, u, shuffled, QUICK, Detection(matching), optimizer)
    assert bool((matching_accuracy(both, *test) > matching_accuracy(paired, *test) + 0.05).all())


def test_the_best_model_judges_and_is_replaced_only_by_a_better_one() -> None:
    (x, y), (u, v), test = data(40, 0), data(400, 1), data(300, 2)
    paired, _ = train_paired(first_encoders(2, 4, 12, 11), x, y, QUICK)
    asked: list[LinearEncoders] = []

    def never_better(encoders: LinearEncoders) -> torch.Tensor:
        asked.append(encoders)
        return torch.ones(2)

    detection = Detection("argmax", judge="best", refresh_passes=5)
    frozen = train_unpaired(paired, u, v, QUICK, detection, validate=never_better)
    assert len(asked) == 1 + QUICK.passes // 5
    # The same, by hand, with the first encoders judging throughout.
    weights, optimizer = (paired.image.clone(), paired.text.clone()), AdamW()
    for _ in range(QUICK.passes):
        for at in range(0, 400, 20):
            a, b = u[:, at : at + 20], v[:, at : at + 20]
            found = detect(cosines(paired, a, b), "argmax")
            slopes, _cos = detection_gradient(LinearEncoders(*weights), a, b, lambda _, found=found: found, 1.0)
            optimizer.step(weights, slopes, QUICK)
    torch.testing.assert_close(frozen.image, weights[0], rtol=1e-4, atol=1e-5)
    refreshed = train_unpaired(
        paired,
        u,
        v,
        QUICK,
        replace(detection, refresh_factor=1.0),
        validate=lambda each: matching_accuracy(each, *test),
    )
    assert not torch.equal(refreshed.image, frozen.image)
    with pytest.raises(UserError, match="chosen by a score"):
        train_unpaired(paired, u, v, QUICK, detection)


def test_independent_orders_draw_an_order_for_each_side() -> None:
    (u, v), paired = data(40, 1), first_encoders(2, 4, 12, 11)
    one, again, other = (
        train_unpaired(paired, u, v, replace(QUICK, passes=2), Detection(order="independent", seed=seed)).image
        for seed in (0, 0, 1)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_mistakes_are_one_line() -> None:
    (u, v), start = data(10, 1), first_encoders(2, 4, 12, 11)
    with pytest.raises(UserError, match=r"10 images and 10 captions .*20 at least"):
        train_paired(start, u, v, QUICK)
    with pytest.raises(UserError, match="matching: unknown 'best'"):
        detect(torch.zeros(2, 2), "best")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="judge: unknown 'worst'"):
        Detection(judge="worst")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="refresh_passes: 0 is below 1"):
        Detection(refresh_passes=0)
    with pytest.raises(UserError, match="batch_size: 0 is not a finite number above 0"):
        Training(batch_size=0)


@pytest.mark.parametrize("block", [7, 30, 100])
def test_accuracy_is_the_share_of_own_captions_whatever_the_block(block: int) -> None:
    encoders, (x, y) = first_encoders(2, 4, 12, 11), data(30, 0)
    expected = (cosines(encoders, x, y).argmax(-1) == torch.arange(30)).double().mean(-1)
    torch.testing.assert_close(matching_accuracy(encoders, x, y, block), expected)
