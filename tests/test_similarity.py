"""Streaming changes memory, never a value."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from troth.geometry import Sphere
from troth.similarity import DenseMatches, GroupMatches, Pairs, best_rank, topk
from troth.types import Side

SPHERE = Sphere()


def points(size: int, dim: int = 5, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(size, dim, generator=generator, dtype=torch.float64), dim=-1)


@pytest.mark.parametrize("side", list(Side))
@pytest.mark.parametrize("tile", [(2, 3), (100, 100)])
def test_row_losses_see_complete_rows_and_give_dense_gradients(side: Side, tile: tuple[int, int]) -> None:
    temper = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)  # a parameter only the function knows

    def margin(logits: torch.Tensor, positive: torch.Tensor) -> torch.Tensor:
        own = logits.gather(1, positive[:, None])[:, 0]
        return (temper * logits).logsumexp(dim=1) - own + logits.amax(dim=1)

    image, text = points(9).requires_grad_(), points(9, seed=1).requires_grad_()
    scale = torch.tensor(4.0, dtype=torch.float64, requires_grad=True)
    bias = torch.tensor(-1.0, dtype=torch.float64, requires_grad=True)
    inputs = [image, text, scale, bias, temper]
    streamed = Pairs(image, text, scale, bias, tile=tile).row_losses(margin, side)
    dense_logits = scale * image @ text.T + bias
    dense = margin(dense_logits if side is Side.IMAGE else dense_logits.T, torch.arange(9))
    torch.testing.assert_close(streamed, dense, rtol=1e-12, atol=1e-12)
    weights = torch.arange(1.0, 10.0, dtype=torch.float64)
    for a, b in zip(
        torch.autograd.grad(weights @ streamed, inputs), torch.autograd.grad(weights @ dense, inputs), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@given(size=st.integers(1, 20), rows=st.integers(1, 25), columns=st.integers(1, 25), seed=st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_any_tile_gives_the_same_reductions(size: int, rows: int, columns: int, seed: int) -> None:
    image, text, scale = points(size, seed=seed), points(size, seed=seed + 1), torch.tensor(9.0, dtype=torch.float64)
    logits = scale * image @ text.T
    pairs = Pairs(image, text, scale, tile=(rows, columns))
    torch.testing.assert_close(pairs.cross_entropy().image, logits.logsumexp(1) - logits.diagonal())
    torch.testing.assert_close(pairs.cross_entropy().text, logits.logsumexp(0) - logits.diagonal())
    signed = F.softplus(logits * (1 - 2 * torch.eye(size, dtype=logits.dtype)))
    torch.testing.assert_close(pairs.binary_cross_entropy().image, signed.sum(1))
    torch.testing.assert_close(pairs.binary_cross_entropy().text, signed.sum(0))


def test_the_fused_pass_keeps_no_block_for_the_backward_pass() -> None:
    """What autograd saves between the passes is O(B * D), however many pairs there are."""
    saved: list[int] = []
    image, text = points(300, dim=4).requires_grad_(), points(300, dim=4, seed=1).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (saved.append(x.numel()), x)[1], lambda x: x):
        Pairs(image, text, torch.tensor(5.0, dtype=torch.float64), tile=(64, 64)).cross_entropy()
    assert saved
    assert max(saved) <= 300 * 4


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("index", torch.arange(1), "index must be"),
        ("weight", torch.ones(4, 1), "weight must be"),
        ("teacher_image", torch.ones(9, 2), "teacher_image has 9 rows"),
        ("scale", torch.ones(3), "scale must be one number"),
        ("matches", DenseMatches(torch.ones(9, 9)), "degrees must be"),
        ("matches", DenseMatches(-torch.ones(4, 4)), "must not be negative"),
        ("matches", GroupMatches(torch.zeros(5, dtype=torch.int64)), "groups must be"),
    ],
)
def test_what_does_not_fit_the_pairs_is_refused_and_not_broadcast(field: str, value: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Pairs(points(4), points(4), **{"scale": torch.tensor(1.0), field: value})


def test_one_pair_has_no_negatives() -> None:
    pair = Pairs(points(1), points(1), torch.tensor(1.0, dtype=torch.float64), index=torch.arange(1))
    assert pair.cross_entropy().image.item() == 0
    with pytest.raises(ValueError, match="two pairs"):
        pair.log_negatives()


def test_what_is_remembered_needs_sample_ids() -> None:
    with pytest.raises(ValueError, match="index="):
        Pairs(points(4), points(4), torch.tensor(1.0)).memory_ids()


def test_a_pair_that_nothing_fits_has_no_loss_and_no_gradient() -> None:
    degree = torch.eye(4, dtype=torch.float64)
    degree[2, 2] = 0
    image = points(4).requires_grad_()
    pairs = Pairs(image, points(4, seed=1), torch.tensor(3.0, dtype=torch.float64), matches=DenseMatches(degree))
    losses = pairs.target_cross_entropy("positive", 0.1).image
    assert losses[2] == 0
    assert (losses[[0, 1, 3]] > 0).all()
    (gradient,) = torch.autograd.grad(losses.sum(), image)
    assert gradient[2].abs().max() == 0
    assert torch.isfinite(gradient).all()


def test_half_precision_and_ragged_shapes_are_refused() -> None:
    good = points(4)
    with pytest.raises(ValueError, match="float32 or float64"):
        Pairs(good.bfloat16(), good.bfloat16(), torch.tensor(1.0))
    with pytest.raises(ValueError, match="must both be"):
        Pairs(good, good[:3], torch.tensor(1.0))


@given(queries=st.integers(1, 12), candidates=st.integers(1, 12), seed=st.integers(0, 999), tile=st.integers(1, 14))
@settings(max_examples=60, deadline=None)
def test_best_rank_is_the_naive_count(queries: int, candidates: int, seed: int, tile: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(-2, 3, (queries, 2), generator=generator).double()  # integers: many exact ties
    columns = torch.randint(-2, 3, (candidates, 2), generator=generator).double()
    row_group = torch.randint(0, 4, (queries,), generator=generator)
    column_group = torch.randint(0, 4, (candidates,), generator=generator)
    ranks = best_rank(rows, columns, row_group, column_group, SPHERE, tile_rows=tile)
    for i in range(queries):
        scores = (columns @ rows[i]).tolist()
        positives = [s for s, g in zip(scores, column_group, strict=True) if g == row_group[i]]
        negatives = [s for s, g in zip(scores, column_group, strict=True) if g != row_group[i]]
        if not positives:
            assert ranks[i] == candidates
            continue
        best = max(positives)
        assert ranks[i] == sum(s > best for s in negatives) + (sum(s == best for s in negatives) + 1) // 2


def test_a_model_of_nans_is_last() -> None:
    broken, groups = torch.full((5, 3), torch.nan), torch.arange(5)
    assert (best_rank(broken, broken, groups, groups, SPHERE) == 5).all()


def test_a_collapsed_model_scores_chance_and_not_perfection() -> None:
    same = torch.ones(101, 3)
    groups = torch.arange(101)
    assert (best_rank(same, same, groups, groups, SPHERE) == 50).all()


def test_topk_is_the_sorted_head_and_tolerates_large_k() -> None:
    queries, candidates = points(7), points(5, seed=3)
    values, indices = topk(queries, candidates, 100, SPHERE, tile_rows=2)
    assert indices.shape == (7, 5)
    torch.testing.assert_close(values, (queries @ candidates.T).sort(dim=1, descending=True).values)
    torch.testing.assert_close(values, (queries @ candidates.T).gather(1, indices))
    assert topk(queries[:0], candidates, 2, SPHERE)[0].shape == (0, 2)
