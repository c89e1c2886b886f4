"""The oblique manifold's own laws."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError

from troth.errors import UserError
from troth.geometry import Euclidean, Oblique, Sphere


@pytest.mark.parametrize(
    ("distance", "equal", "opposite"),
    [
        ("inner_product", 16.0, -16.0),
        ("geodesic", 0.0, -4 * math.pi),
        ("geodesic_sum", 0.0, -16 * math.pi),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_and_opposite_points_reach_the_ends_of_the_range(
    distance: str, equal: float, opposite: float, dtype: torch.dtype
) -> None:
    geometry = Oblique(sub_dim=8, num_spheres=16, distance=distance)
    u = geometry.project(torch.randn(5, 128, dtype=dtype))
    for sign, end in ((1, equal), (-1, opposite)):
        found = torch.cat([geometry.similarity(u, sign * u).diagonal(), geometry.paired_similarity(u, sign * u)])
        torch.testing.assert_close(found, torch.full_like(found, end), rtol=1e-6, atol=1e-6)


def test_every_sub_vector_has_unit_length() -> None:
    points = Oblique(sub_dim=4, num_spheres=3).project(torch.randn(7, 12) * torch.logspace(-3, 3, 12))
    torch.testing.assert_close(points.view(7, 3, 4).norm(dim=2), torch.ones(7, 3))


def test_one_sphere_with_the_inner_product_is_the_sphere() -> None:
    u, v = torch.randn(4, 6), torch.randn(5, 6)
    one, sphere = Oblique(sub_dim=6, num_spheres=1), Sphere()
    assert torch.equal(one.similarity(one.project(u), one.project(v)), sphere.similarity(*map(sphere.project, (u, v))))


def test_a_zero_sub_vector_is_at_a_right_angle_to_everything_and_stays_where_it_is() -> None:
    geometry = Oblique(sub_dim=2, num_spheres=2, distance="geodesic")
    u = torch.tensor([[0.0, 0.0, 1.0, 0.0]], requires_grad=True)
    v = torch.tensor([[3.0, 4.0, 1.0, 0.0], [0.0, 0.0, 1.0, 0.0]])
    found = geometry.similarity(geometry.project(u), geometry.project(v))
    torch.testing.assert_close(found, torch.full((1, 2), -math.pi / 2))
    found.sum().backward()
    assert u.grad is not None
    assert not u.grad.any()


def test_features_of_another_width_are_refused_with_the_remedy() -> None:
    geometry = Oblique(sub_dim=16, num_spheres=16)
    with pytest.raises(UserError, match=r"^geometry.num_spheres: 16 spheres of 16 .*set geometry.num_spheres = 32"):
        geometry.project(torch.randn(2, 512))
    with pytest.raises(UserError, match=r"change geometry.sub_dim"):
        geometry.project(torch.randn(2, 250))


@pytest.mark.parametrize("geometry", [Sphere(), Euclidean(), Oblique(sub_dim=4, num_spheres=1)])
def test_points_of_different_widths_are_refused_and_never_broadcast(geometry: Sphere | Euclidean | Oblique) -> None:
    for compare in (geometry.similarity, geometry.paired_similarity):
        with pytest.raises(UserError, match=r"of 4 and 1 dimensions"):
            compare(torch.randn(3, 4), torch.randn(3, 1))


@pytest.mark.parametrize("fields", [{"sub_dim": 0}, {"num_spheres": -1}, {"distance": "cosine"}, {"n": 3}])
def test_a_wrong_field_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Oblique(**fields)
