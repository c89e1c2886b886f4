"""Distances and angles where a matrix product has no digits left."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import troth.geometry.distances as distances_module
from troth.geometry import Euclidean, Oblique
from troth.geometry.distances import angles, distances

#: From far beyond the border between the product and the differences to three roundings of a float32.
SMALL = [0.5, 0.2, 0.1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 2e-7]
ROUNDING = 2.0**-24


def circle(degrees_apart: list[float], dtype: torch.dtype) -> Tensor:
    angle = torch.tensor(degrees_apart, dtype=torch.float64)
    return torch.stack([angle.cos(), angle.sin()], dim=1).to(dtype)


def truth(u: Tensor, v: Tensor) -> Tensor:
    """Return the exact angle between the points as they were rounded, by plane trigonometry."""
    x, y = u.double().unbind(dim=1), v.double().unbind(dim=1)
    across = x[0][:, None] * y[1] - x[1][:, None] * y[0]
    along = x[0][:, None] * y[0] + x[1][:, None] * y[1]
    return torch.atan2(across.abs(), along)


@pytest.fixture(params=[0.0, 1.0], ids=["swept", "gathered"], autouse=True)
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distances_module, "MANY", request.param)


@pytest.mark.parametrize("start", [0.0, 0.7, 2.0])
def test_small_angles_keep_their_digits_in_float32(start: float) -> None:
    u, v = circle([start], torch.float32), circle([start + small for small in SMALL], torch.float32)
    found, exact = angles(u, v)[0].double(), truth(u, v)[0]
    # The second term is the lengths' own rounding, which a chord feels where it is as short as that.
    assert ((found - exact).abs() < 20 * ROUNDING * exact + 4 * ROUNDING**2 / exact).all()
    # What is being avoided: an arccos of the product is wrong in the first digit at a thousandth.
    naive = torch.arccos((u @ v.T).clamp(-1 + 1e-6, 1 - 1e-6))[0].double()
    assert float(((naive - exact).abs() / exact)[-4:].min()) > 0.1


@pytest.mark.parametrize("start", [0.0, 0.7, 2.0])
def test_angles_near_pi_are_within_two_roundings_of_pi(start: float) -> None:
    u = circle([start], torch.float32)
    v = circle([start + math.pi - small for small in SMALL], torch.float32)
    error = (angles(u, v)[0].double() - truth(u, v)[0]).abs()
    assert float(error.max()) < 8 * math.pi * ROUNDING
    assert float(angles(u, -u)) == pytest.approx(math.pi, abs=1e-7)


def test_equal_points_are_at_exactly_zero() -> None:
    u = Oblique(sub_dim=4, num_spheres=5).project(torch.randn(50, 20, generator=torch.Generator().manual_seed(0)))
    for distance in ("geodesic", "geodesic_sum"):
        geometry = Oblique(sub_dim=4, num_spheres=5, distance=distance)
        assert not geometry.similarity(u, u).diagonal().any()
        assert not geometry.paired_similarity(u, u).any()
    assert not Euclidean().similarity(u, u).diagonal().any()


@pytest.mark.parametrize("small", SMALL)
@pytest.mark.parametrize("flip", [1, -1])
def test_the_gradient_of_a_small_angle_is_a_unit_tangent(small: float, flip: int) -> None:
    geometry = Oblique(sub_dim=2, num_spheres=1, distance="geodesic")
    u, v = circle([0.7], torch.float32), flip * circle([0.7 + small, 1.7], torch.float32)
    row, column = geometry.similarity_gradient(torch.tensor([[1.0, 0.0]]), u, v)
    # Turning u towards v (away from -v) makes the similarity larger, a radian a radian; turning v back does the same.
    tangent = torch.stack([-u[:, 1], u[:, 0]], dim=1)
    tolerance = 2e-6 + 8 * (ROUNDING / small) ** 2
    torch.testing.assert_close(row, flip * tangent, rtol=0, atol=tolerance)
    back = flip * torch.tensor([[v[0, 1], -v[0, 0]], [0.0, 0.0]])
    torch.testing.assert_close(column, back, rtol=0, atol=tolerance)


@pytest.mark.parametrize("small", SMALL)
def test_small_distances_and_their_gradients_keep_their_digits_in_float32(small: float) -> None:
    generator = torch.Generator().manual_seed(0)
    u = 5 * torch.randn(3, 64, generator=generator)
    v = torch.cat([u + small * torch.randn(3, 64, generator=generator), torch.randn(2, 64, generator=generator)])
    exact = (u.double()[:, None] - v.double()[None]).norm(dim=2)
    found = distances(u, v).double()
    differ = exact > 0  # at 2e-7 many points are rounded to the same number
    assert float(((found - exact).abs()[differ] / exact[differ]).max()) < 100 * ROUNDING
    assert not found[~differ].any()
    gradient = torch.zeros(3, 5)
    gradient[0, 0] = 1.0
    row, column = Euclidean().similarity_gradient(gradient, u, v)
    towards = ((v[0].double() - u[0].double()) / exact[0, 0]) if bool(differ[0, 0]) else torch.zeros(64).double()
    torch.testing.assert_close(row[0].double(), towards, rtol=0, atol=1e-6)
    torch.testing.assert_close(column[0].double(), -towards, rtol=0, atol=1e-6)
    assert not row[1:].any()


def test_points_closer_than_a_rounding_of_one_do_not_blow_a_gradient_up() -> None:
    u = torch.tensor([[1.0, 1e-10, 0.0]])
    v = torch.tensor([[1.0, 2e-10, 0.0], [1.0, 1e-20, 0.0]])
    for geometry in (Euclidean(), Oblique(sub_dim=3, num_spheres=1, distance="geodesic")):
        row, column = geometry.similarity_gradient(torch.ones(1, 2), u, v)
        assert float(row.norm()) <= 2.0001
        assert float(column.norm(dim=1).max()) <= 1.0001
        assert float(geometry.similarity(u, v)[0, 0]) == pytest.approx(-1e-10, rel=1e-5)
