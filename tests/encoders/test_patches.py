"""The patch embedding is the convolution it stands for."""

import pytest
import torch
from torch import nn

from troth.encoders.patches import PatchEmbedding


@pytest.mark.parametrize(("height", "width"), [(12, 8), (13, 11)])  # the rest of a patch is cut off, as a stride does
def test_values_and_gradients_are_the_convolutions(height: int, width: int) -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 5, 4, 4, bias=False, dtype=torch.float64)
    pictures = torch.randn(2, 3, height, width, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(2, 5, height // 4, width // 4, dtype=torch.float64)
    expected = convolution(pictures)
    slopes = torch.autograd.grad(expected, (pictures, convolution.weight), upstream)
    embedding = PatchEmbedding(convolution)
    value = embedding(pictures)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    for slope, other in zip(torch.autograd.grad(value, (pictures, embedding.weight), upstream), slopes, strict=True):
        torch.testing.assert_close(slope, other, rtol=1e-12, atol=1e-12)
    assert embedding.state_dict().keys() == convolution.state_dict().keys()
