"""Intermediate features of a frozen image tower: the output of each of its stages, averaged over the picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

#: Hierarchical towers have five stages or so, of which all are taken.
_MOST_STAGES = 8
#: Of towers with more layers than that, such as transformers, so many, at even steps.
_LAYERS = 4


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

    @property
    def identity(self) -> str:
        """Which features these are, of the network's."""
        return f"means of the blocks {self.ends}"

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
    """``(B, 3, S, S)`` normalised pictures to ``(B, G)``: means of a timm model's stages, or of four if it has over 8.

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

    @property
    def identity(self) -> str:
        """Which features these are, of the network's."""
        return f"means of the stages {self.indices}"

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
