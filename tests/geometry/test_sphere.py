"""The sphere's laws."""

import pytest
import torch

from troth.geometry import Geometry, Sphere


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_projection_is_unit_length_in_at_least_float32(dtype: torch.dtype) -> None:
    points = Sphere().project(torch.randn(10, 7).to(dtype) * 50)
    assert points.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(points.norm(dim=-1), torch.ones(10, dtype=points.dtype))


def test_a_zero_vector_has_finite_value_and_gradient() -> None:
    zero = torch.zeros(2, 4, requires_grad=True)
    Sphere().project(zero).sum().backward()
    assert zero.grad is not None
    assert not zero.grad.any()  # a vector without a direction is not moved, least of all by 1 / epsilon


def test_the_written_gradient_is_autograds() -> None:
    sphere = Sphere()
    rows = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    columns = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(3, 4, dtype=torch.float64)
    expected = torch.autograd.grad(sphere.similarity(rows, columns), (rows, columns), upstream)
    for ours, theirs in zip(sphere.similarity_gradient(upstream, rows, columns), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_paired_similarity_is_the_diagonal() -> None:
    rows, columns = torch.randn(6, 3), torch.randn(6, 3)
    sphere = Sphere()
    assert isinstance(sphere, Geometry)
    torch.testing.assert_close(sphere.paired_similarity(rows, columns), sphere.similarity(rows, columns).diagonal())
