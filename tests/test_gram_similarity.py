"""Affinities: exact where they are nearly consistent, and never a whole table."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from troth.similarity.gram import affinity_distance, cyclic_consistency, row_correlations

DISTANCES = ["l1", "l2", "pearson"]


def unit(size: int, dim: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(size, dim, generator=generator, dtype=torch.float64), dim=-1)


def dense(left: Tensor, right: Tensor, distance: str) -> Tensor:
    """The mean reduction, from whole tables."""
    one, other = left @ left.T, right @ right.T
    if distance != "pearson":
        difference = (one - other).fill_diagonal_(0)
        return (difference.abs() if distance == "l1" else difference.square()).mean(1)
    off = ~torch.eye(len(left), dtype=torch.bool)
    rows = [table[off].reshape(len(left), -1) for table in (one, other)]
    rows = [F.normalize(table - table.mean(1, keepdim=True), dim=1) for table in rows]
    return 1 - (rows[0] * rows[1]).sum(1)


@given(size=st.integers(7, 20), rows=st.integers(1, 25), columns=st.integers(1, 25), seed=st.integers(0, 999))
@settings(max_examples=30, deadline=None)
@pytest.mark.parametrize("distance", DISTANCES)
def test_any_tile_gives_the_whole_tables_losses_and_gradients(
    distance: str, size: int, rows: int, columns: int, seed: int
) -> None:
    inputs = [unit(size, 4, seed).requires_grad_(), unit(size, 6, seed + 1).requires_grad_()]
    weights = torch.linspace(-0.5, 2.0, size, dtype=torch.float64)
    tiled = affinity_distance(*inputs, distance, tile=(rows, columns))
    whole = dense(*inputs, distance)
    torch.testing.assert_close(tiled, whole, rtol=1e-10, atol=1e-11)
    for ours, expected in zip(
        torch.autograd.grad(weights @ tiled, inputs), torch.autograd.grad(weights @ whole, inputs), strict=True
    ):
        torch.testing.assert_close(ours, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("distance", DISTANCES)
def test_what_is_kept_for_the_backward_pass_is_no_table(distance: str) -> None:
    saved: list[int] = []
    left, right = unit(300, 4).requires_grad_(), unit(300, 5, seed=1).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (saved.append(x.numel()), x)[1], lambda x: x):
        affinity_distance(left, right, distance, tile=(64, 64))
    assert saved
    assert max(saved) <= 300 * 5


@pytest.mark.parametrize("apart", [1.0, 1e-2, 1e-4])
@pytest.mark.parametrize("distance", DISTANCES)
def test_float32_keeps_its_digits_where_affinities_nearly_agree(distance: str, apart: float) -> None:
    """Captions that are images turned, then moved by ``apart``: affinities that differ by about ``apart / sqrt(D)``."""
    image = unit(200, 64).float()
    turn = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64))[0]
    text = F.normalize(image.double() @ turn + apart * unit(200, 64, seed=2), dim=-1).float()
    exact_inputs = [x.double().requires_grad_() for x in (image, text)]
    inputs = [x.requires_grad_() for x in (image, text)]
    exact, ours = dense(*exact_inputs, distance), affinity_distance(*inputs, distance, tile=(64, 64))
    assert ours.dtype == torch.float32
    # l1 forms differences of cosines in float32, whose rounding is 3e-8; the others have float64's digits.
    tolerance = 1e-5 + 1e-7 / apart if distance == "l1" else 2e-6
    torch.testing.assert_close(ours.double(), exact, rtol=tolerance, atol=1e-9 if distance == "l1" else 0)
    for mine, expected in zip(
        torch.autograd.grad(ours.sum(), inputs), torch.autograd.grad(exact.sum(), exact_inputs), strict=True
    ):
        error = (mine.double() - expected).norm() / expected.norm()
        assert error < (0.03 if distance == "l1" else 1e-4)  # l1: some signs of tiny differences are rounding's


@pytest.mark.parametrize("distance", DISTANCES)
def test_consistent_affinities_cost_nothing(distance: str) -> None:
    image = unit(50, 16)
    turn = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64))[0]
    value = affinity_distance(image, image @ turn, distance)
    assert (value >= 0).all()
    assert value.max() < 1e-13


def test_float32_cyclic_consistency_has_the_digits_of_float64() -> None:
    image, text = unit(100, 32).float(), unit(100, 32, seed=1).float()
    text = F.normalize(image + 1e-3 * text, dim=-1)
    exact = cyclic_consistency(image.double(), text.double(), 0.25, 0.25)
    torch.testing.assert_close(cyclic_consistency(image, text, 0.25, 0.25).double(), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("with_self", [True, False])
def test_row_correlations_are_those_of_whole_tables(with_self: bool) -> None:
    image, text = unit(30, 8), unit(30, 5, seed=1)
    tables = [x @ x.T for x in (image, text)]
    keep = torch.ones(30, 30, dtype=torch.bool) if with_self else ~torch.eye(30, dtype=torch.bool)
    rows = zip(*([row[k] for row, k in zip(table, keep, strict=True)] for table in tables), strict=True)
    expected = torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in rows])
    torch.testing.assert_close(row_correlations(image, text, with_self=with_self), expected, rtol=1e-12, atol=1e-12)


def test_float32_correlations_are_float64s() -> None:
    image, text = unit(30, 8).float(), unit(30, 5, seed=1).float()
    ours = row_correlations(image, text, with_self=False)
    assert ours.dtype == torch.float64
    torch.testing.assert_close(ours, row_correlations(image.double(), text.double(), with_self=False), rtol=0, atol=0)
