"""Grad-CAM's arithmetic against loops."""

import pytest
import torch

from troth.explain import largest_to_one, min_max, token_strength, upsampled


def test_strength_is_the_published_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    activations = torch.randn(5, 3, dtype=torch.float64, generator=generator)
    gradients = torch.randn(5, 3, dtype=torch.float64, generator=generator)
    expected = []
    for t in range(5):
        total = 0.0
        for c in range(3):
            weight = sum(float(gradients[s, c]) for s in range(5)) / 5
            total += weight * float(activations[t, c])
        expected.append(max(total, 0.0))
    found = token_strength(activations, gradients)
    assert found.tolist() == pytest.approx(expected, rel=1e-12)
    assert 0 < sum(each > 0 for each in expected) < 5


def test_maps_are_stretched_and_empty_ones_stay_empty() -> None:
    assert min_max(torch.tensor([[1.0, 3.0], [2.0, 5.0]])).tolist() == [[0.0, 0.5], [0.25, 1.0]]
    for same in (0.0, 2.0):
        assert not min_max(torch.full((2, 2), same)).any()


def test_words_are_divided_and_never_shifted() -> None:
    assert largest_to_one(torch.tensor([2.0])).tolist() == [1.0]
    assert largest_to_one(torch.tensor([1.0, 4.0])).tolist() == [0.25, 1.0]
    assert largest_to_one(torch.zeros(3)).tolist() == [0.0, 0.0, 0.0]


def test_upsampling_is_bilinear_between_the_centres_of_cells() -> None:
    spread = upsampled(torch.tensor([[0.0, 1.0]], dtype=torch.float64), (2, 8))
    # Centres of the cells are at 2 and 6, of the pixels at 0.5, 1.5, ...
    row = [0.0, 0.0, 0.125, 0.375, 0.625, 0.875, 1.0, 1.0]
    assert spread.tolist() == [pytest.approx(row), pytest.approx(row)]
