"""What every geometry promises, tried on each: the equation, its gradient, its ends, its precision."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import troth.geometry.distances as distances_module
import troth.geometry.filip as filip_module
from tests.geometry.references import CASES, Case, features
from troth.geometry import FILIP, Euclidean, Geometry, GeometryConfig, Oblique, Sphere

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
every_kind = pytest.mark.parametrize("kind", ["strangers", "paired", "collapsed"])


@pytest.fixture(params=["large", "small"])
def pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the work in one piece, and in pieces that do not divide it."""
    if request.param == "small":
        monkeypatch.setattr(distances_module, "GATHERED", 2 * 12)
        monkeypatch.setattr(distances_module, "SWEPT", 8 * 12 * 4)
        monkeypatch.setattr(filip_module, "TOKEN_BLOCK", 3 * 5 * 7)


def expected(case: Case, u: Tensor, v: Tensor) -> Tensor:
    return torch.stack([torch.stack([case.reference(row, column) for column in v]) for row in u])


def test_every_geometry_is_tried() -> None:
    assert {type(case.geometry) for case in CASES} == set(get_args(get_args(GeometryConfig)[0]))


@every_case
@every_kind
@pytest.mark.usefixtures("pieces")
def test_value_and_gradients_are_the_equations(case: Case, kind: str) -> None:
    u, v = (part.requires_grad_() for part in features(case, kind))
    loop = expected(case, u, v)
    upstream = torch.randn(loop.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    loop_gradient = torch.autograd.grad(loop, (u, v), upstream)

    rows, columns = case.geometry.project(u), case.geometry.project(v)
    found = case.geometry.similarity(rows, columns)
    torch.testing.assert_close(found, loop, rtol=1e-11, atol=1e-11)
    assert float(found.detach().min()) >= case.lowest
    assert float(found.detach().max()) <= case.highest
    found_gradient = torch.autograd.grad(found, (u, v), upstream, retain_graph=True)
    by_hand = case.geometry.similarity_gradient(upstream, rows.detach(), columns.detach())
    pulled = torch.autograd.grad((rows, columns), (u, v), by_hand)
    for loops, autograds, ours in zip(loop_gradient, found_gradient, pulled, strict=True):
        torch.testing.assert_close(autograds, loops, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(ours, loops, rtol=1e-10, atol=1e-10)


@every_case
@every_kind
@pytest.mark.usefixtures("pieces")
def test_paired_similarity_is_the_diagonal_with_its_gradient(case: Case, kind: str) -> None:
    u, v = (case.geometry.project(part).requires_grad_() for part in features(case, kind, rows=8))
    paired, table = case.geometry.paired_similarity(u, v), case.geometry.similarity(u, v)
    torch.testing.assert_close(paired, table.diagonal(), rtol=1e-12, atol=1e-12)
    upstream = torch.randn(8, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    by_hand = case.geometry.similarity_gradient(torch.diag(upstream), u.detach(), v.detach())
    for ours, autograds in zip(by_hand, torch.autograd.grad(paired, (u, v), upstream), strict=True):
        torch.testing.assert_close(ours, autograds, rtol=1e-10, atol=1e-10)


@every_case
@every_kind
def test_float32_paired_similarity_is_the_diagonal_to_rounding(case: Case, kind: str) -> None:
    u, v = (case.geometry.project(part.float()) for part in features(case, kind, rows=8))
    paired, table = case.geometry.paired_similarity(u, v), case.geometry.similarity(u, v)
    assert paired.dtype == table.dtype == torch.float32
    torch.testing.assert_close(paired, table.diagonal(), rtol=1e-5, atol=2e-6)


def degenerate(case: Case, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return features that coincide, oppose each other, are zero, or zero in part; row by row and across."""
    u, _ = features(case, "strangers", rows=6)
    v = torch.zeros(6, case.column_width, dtype=torch.float64)
    v[:, : case.row_width] = u
    v[1] = -v[1]
    u[2] = 0
    u[3], v[3] = 0, 0
    u[4, :4], v[4, 4:8] = 0, 0
    v[5] *= 2
    return u.to(dtype).requires_grad_(), v.to(dtype).requires_grad_()


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("copies", [1, 40])
def test_values_and_gradients_are_finite_where_points_coincide_oppose_or_vanish(
    case: Case, dtype: torch.dtype, copies: int
) -> None:
    u, v = degenerate(case, dtype)
    # Many copies of the pair that coincides: the block is then near enough everywhere to be swept whole.
    order = torch.tensor([*range(6), *[0] * (copies - 1)])
    rows, columns = case.geometry.project(u)[order], case.geometry.project(v)[order]
    for found in (case.geometry.similarity(rows, columns), case.geometry.paired_similarity(rows, columns)):
        assert torch.isfinite(found).all()
        for gradient in torch.autograd.grad(found, (u, v), torch.ones_like(found), retain_graph=True):
            # A unit of gradient for each pair, divided by the length of the features: never the 1e12 of a tiny divisor.
            assert float(gradient.abs().max()) < 20 * len(order) ** 2
    by_hand = case.geometry.similarity_gradient(torch.ones(len(order), len(order), dtype=dtype), rows, columns)
    assert all(torch.isfinite(gradient).all() for gradient in by_hand)


@every_case
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_projection_is_at_least_float32_and_idempotent(case: Case, dtype: torch.dtype) -> None:
    u, _ = features(case, "strangers")
    u[1] = 0
    points = case.geometry.project((50 * u).to(dtype))
    assert points.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert points.shape == u.shape
    again = case.geometry.project(points)
    torch.testing.assert_close(again, points, rtol=1e-6, atol=1e-7)
    assert not points[1].any()
    assert case.geometry.project(u[:0].to(dtype)).shape == (0, case.row_width)


@every_case
def test_a_similarity_is_fresh_and_may_be_overwritten(case: Case) -> None:
    u, v = (case.geometry.project(part) for part in features(case, "paired"))
    kept = u.clone(), v.clone()
    first = case.geometry.similarity(u, v)
    second = first.clone()
    first.mul_(3).add_(1)
    assert torch.equal(u, kept[0])
    assert torch.equal(v, kept[1])
    assert torch.equal(case.geometry.similarity(u, v), second)


@every_case
def test_what_is_not_finite_stays_visible(case: Case) -> None:
    u, v = (case.geometry.project(part) for part in features(case, "paired"))
    u[0, 0] = math.nan
    assert torch.isnan(case.geometry.similarity(u, v)[0]).all()
    assert torch.isnan(case.geometry.similarity_gradient(torch.ones(6, 8).double(), u, v)[1]).any()


@every_case
def test_it_keeps_the_protocol_and_its_name_says_everything(case: Case) -> None:
    geometry: Any = case.geometry
    assert isinstance(geometry, Geometry)
    names = {"Sphere": Sphere, "Euclidean": Euclidean, "Oblique": Oblique, "FILIP": FILIP}
    assert eval(repr(geometry), names) == geometry
    assert all(f"{item.name}=" in repr(geometry) for item in dataclasses.fields(geometry))
    assert geometry.num_spheres == (3 if "num_spheres=3" in repr(geometry) else 1)
    assert (geometry.views() is None) == (geometry.kind != "filip")


class Largest(TorchDispatchMode):
    """Remember the largest tensor that any operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return result


@every_case
@every_kind
def test_memory_is_that_of_the_block(case: Case, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor holds more than the block, times dimensions, spheres or tokens; each worker has its bound."""
    monkeypatch.setattr(filip_module, "TOKEN_BLOCK", 4096)
    monkeypatch.setattr(distances_module, "GATHERED", 4096)
    u, v = (case.geometry.project(part) for part in features(case, kind, rows=64, columns=64))
    with Largest() as seen:
        similarity = case.geometry.similarity(u, v)
        case.geometry.similarity_gradient(similarity, u, v)
    assert similarity.numel() <= seen.numbers <= 64 * 64 * 2
