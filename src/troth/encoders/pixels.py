"""From a decoded picture to the bytes a frozen tower takes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

_RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "nearest": Image.Resampling.NEAREST,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class PixelTransform:
    """Resize the shorter side to ``size``, cut the centre square, keep bytes (a quarter of float32 between processes).

    Attributes:
        size: side of the square, in pixels.
        interpolation: ``bilinear``, ``bicubic``, ``lanczos`` or ``nearest``; antialiased.
    """

    size: int
    interpolation: str = "bilinear"

    def __call__(self, image: Image.Image) -> UInt8[Tensor, "3 S S"]:
        """Return the ``(3, size, size)`` bytes of a picture; other modes than RGB are converted."""
        size = self.size
        width, height = image.size
        if image.mode != "RGB":
            image = image.convert("RGB")
        if (width, height) != (size, size):
            # The centre square is cut by resize itself, in source coordinates: nothing that is thrown away is resized.
            side = min(width, height)
            left, top = (width - side) / 2, (height - side) / 2
            box = (left, top, left + side, top + side)
            image = image.resize((size, size), _RESAMPLING.get(self.interpolation, _RESAMPLING["bicubic"]), box=box)
        return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())
