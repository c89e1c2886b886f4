"""What a frozen image tower sees on its way: the mean over the picture of what each of its stages gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

#: Of a tower that is no pyramid of a few stages, such as a transformer, so many layers are taken, at even steps.
_LAYERS = 4
#: Pyramids have five stages or so.
_MOST_STAGES = 8


class EfficientNetStages(nn.Module):
    """``(B, 3, S, S)`` normalised pictures to ``(B, G)``: the means of the stages, each that of its last block.

    Args:
        network: an EfficientNet of ``efficientnet_lite_pytorch``.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        widths = [block._block_args.output_filters for block in network._blocks]
        self.ends = [
            row for row, (width, after) in enumerate(zip(widths, [*widths[1:], 0], strict=True)) if width != after
        ]

    def forward(self, images: Tensor) -> Tensor:
        """Return ``(B, G)`` float32, the first stage's channels first."""
        network = self.network
        features: Tensor = network._swish(network._bn0(network._conv_stem(images)))
        means = []
        for row, block in enumerate(network._blocks):
            features = block(features)
            if row in self.ends:
                means.append(features.float().mean(dim=(2, 3)))
        return torch.cat(means, dim=1)


class TimmStages(nn.Module):
    """``(B, 3, S, S)`` normalised pictures to ``(B, G)``: the means of a timm model's stages, or of four of its layers.

    Args:
        network: a timm model with ``forward_intermediates``.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        count = len(network.feature_info)
        found = (
            range(count) if count <= _MOST_STAGES else np.linspace(0, count, _LAYERS + 1)[1:].round().astype(int) - 1
        )
        self.indices = [int(index) for index in found]

    def forward(self, images: Tensor) -> Tensor:
        """Return ``(B, G)`` float32, the first stage's channels first."""
        found = self.network.forward_intermediates(
            images, indices=self.indices, intermediates_only=True, output_fmt="NCHW"
        )
        return torch.cat([features.float().mean(dim=(2, 3)) for features in found], dim=1)


def timm_stages(network: Any) -> TimmStages | None:
    """Return the stages of a timm model, or None if it does not hand them out."""
    if not hasattr(network, "forward_intermediates") or not getattr(network, "feature_info", None):
        return None
    return TimmStages(network)
