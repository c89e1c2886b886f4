"""The patch embedding of a vision transformer, as the matrix product that it is."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class PatchEmbedding(nn.Conv2d):
    """A convolution whose kernels lie side by side: same parameters, same result to rounding, as one matrix product.

    Torch's convolution makes no use of a CPU's bfloat16 matrix units in its backward pass; a product does
    (``python -m benchmarks.train_step``). Evaluation, which has none, goes through the convolution, so that an exported
    model gives the same bits in open_clip.

    Args:
        convolution: gives the weights, which are shared; its stride must be its kernel's size.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        assert convolution.stride == convolution.kernel_size
        assert convolution.padding == (0, 0)
        assert convolution.bias is None
        channels, width, size = convolution.in_channels, convolution.out_channels, convolution.kernel_size
        super().__init__(channels, width, size, convolution.stride, bias=False)  # type: ignore[arg-type]
        self.weight = convolution.weight

    def forward(self, input: Float[Tensor, "B C H W"]) -> Float[Tensor, "B E h w"]:
        """Return the embeddings of all patches; pictures are cut to whole patches."""
        if not self.training:
            return super().forward(input)
        batch, channels, height, width = input.shape
        (rows, columns), down, across = self.kernel_size, height // self.kernel_size[0], width // self.kernel_size[1]
        whole = input[:, :, : down * rows, : across * columns]
        patches = whole.reshape(batch, channels, down, rows, across, columns).permute(0, 2, 4, 1, 3, 5)
        embedded = F.linear(patches.reshape(batch, down * across, -1), self.weight.flatten(1))
        return embedded.transpose(1, 2).reshape(batch, -1, down, across)
