"""From encoded bytes to a normalised tensor in one go, so that a JPEG is never decoded larger than it must be.

The transforms are open_clip's (`image_transform` of version 3.3: random resized crop for training; resize of the
shorter side and centre crop for evaluation), with the same law of the random crops and, given the same seed of torch,
the same crops. They differ in three ways: the crop is chosen before decoding, from the header; a JPEG is decoded at
1/2, 1/4 or 1/8 scale as long as the crop stays at least ``draft_margin`` times the target; and the rules of
:mod:`troth.data.images` hold (transparency over white, EXIF orientation, limits).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from troth.data.images import MAX_PIXELS, draft, opened, oriented_size, to_rgb
from troth.types import STRICT

_Positive = Annotated[float, Field(gt=0)]

#: Normalisation of OpenAI's CLIP, which most of its successors kept.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}

#: Pictures longer than this many times their height (or the reverse) are not resized as a whole.
_LONG = 4

#: (left, top, width, height) of a crop, in pixels of the upright full-size image.
Crop = tuple[int, int, int, int]


@dataclass(frozen=True, config=STRICT)
class ImageTransform:
    """Encoded image to ``(3, image_size, image_size)`` float32.

    Attributes:
        image_size: side of the square result, in pixels.
        mean: subtracted from the channels (of values in [0, 1]).
        std: the channels are divided by it.
        train: random resized crop, instead of resizing the shorter side and cropping the centre.
        crop_scale: range of the crop's share of the area (training).
        crop_ratio: range of the crop's width / height, log-uniform (training).
        horizontal_flip: mirror half of the pictures (training).
        recolor: what else is done with a training picture before it is normalised, such as
            :meth:`troth.data.Augmentation.recolor`; None for nothing.
        interpolation: with antialiasing.
        draft_margin: a JPEG is decoded at the smallest scale at which the crop still is this many times the target,
            per side; infinity always decodes at full scale. Measured by ``benchmarks.image_loading`` (1-4 megapixels
            to 224 px): 1.0, 1.5, 2, 3 change the evaluation pixels by 0.52, 0.38, 0.24, 0.13 of 255 on average and
            take about 0.3 to 0.45 of the time of full decoding. The default is the fastest: half a grey
            level is less than the JPEG itself has lost.
        max_pixels: larger pictures are refused as ``image-too-large``.
    """

    image_size: Annotated[int, Field(gt=0)] = 224
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[_Positive, _Positive, _Positive] = CLIP_STD
    train: bool = False
    crop_scale: tuple[_Positive, _Positive] = (0.9, 1.0)
    crop_ratio: tuple[_Positive, _Positive] = (3 / 4, 4 / 3)
    horizontal_flip: bool = False
    recolor: Callable[[Image.Image], Image.Image] | None = None
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    draft_margin: Annotated[float, Field(ge=1)] = 1.0
    max_pixels: Annotated[int, Field(gt=0)] = MAX_PIXELS

    def __call__(self, data: bytes) -> Float[Tensor, "3 H W"]:
        """Decode, crop, resize and normalise. Training draws from torch's global generator.

        Raises:
            SampleError: as :func:`troth.data.images.decode`.
        """
        pixels = np.asarray(self.pixels(data))
        normalized = np.empty((3, *pixels.shape[:2]), dtype=np.float32)
        for channel, values in enumerate(_normalized_bytes(self.mean, self.std)):
            np.take(values, pixels[:, :, channel], out=normalized[channel], mode="clip")
        return torch.from_numpy(normalized)

    def pixels(self, data: bytes) -> Image.Image:
        """Decode, crop and resize: the RGB picture before it is normalised."""
        with opened(data) as image:
            # Only a JPEG's size and orientation are told from its header: Pillow decodes a whole PNG to find its EXIF.
            upright = None if image.format == "JPEG" else to_rgb(image, self.max_pixels)
            full = oriented_size(image) if upright is None else upright.size
            crop = random_crop(full, self.crop_scale, self.crop_ratio) if self.train else None
            box = crop or centre_crop(full, self.image_size)
            step = 1
            if upright is None:
                scale = math.floor(min(box[2], box[3]) / (self.image_size * self.draft_margin))
                step = draft(image, scale, self.max_pixels)
                upright = to_rgb(image, self.max_pixels)
        if crop is not None and step == 1:
            # Crop, then resize, as torchvision does: the filter must not look over the edge of the crop.
            left, top, width, height = crop
            resized = self._resize(upright.crop((left, top, left + width, top + height)))
        elif step == 1 and max(full) <= _LONG * min(full):
            resized = self._shorter_side(upright)
        else:
            resized = self._resize(upright, _scaled(box, step, upright.size))
        if self.train and self.horizontal_flip and torch.rand(()).item() < 0.5:
            resized = resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.train and self.recolor is not None:
            resized = self.recolor(resized)
        return resized

    def _resize(self, image: Image.Image, box: tuple[float, float, float, float] | None = None) -> Image.Image:
        return image.resize((self.image_size, self.image_size), _FILTERS[self.interpolation], box=box)

    def _shorter_side(self, image: Image.Image) -> Image.Image:
        """Resize the shorter side, crop the centre: to the last bit what torchvision does.

        Resizing the centre alone is less work and the same but for PIL's rounding of the box to 32 bits.
        """
        width, height = resized_size(image.size, self.image_size)
        left, top = round((width - self.image_size) / 2), round((height - self.image_size) / 2)
        resized = image.resize((width, height), _FILTERS[self.interpolation])
        return resized.crop((left, top, left + self.image_size, top + self.image_size))


@lru_cache(maxsize=8)
def _normalized_bytes(mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """``(3, 256)`` what each byte of each channel becomes: a picture has far more bytes than there are values."""
    centre, width = (np.asarray(value, dtype=np.float32)[:, None] * np.float32(255.0) for value in (mean, std))
    table: np.ndarray = (np.arange(256, dtype=np.float32) - centre) / width
    return table


@lru_cache(maxsize=8)
def _log_span(ratio: tuple[float, float]) -> tuple[float, float]:
    low, high = torch.log(torch.tensor(ratio)).tolist()
    return low, high


def random_crop(size: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float]) -> Crop:
    """torchvision's ``RandomResizedCrop.get_params``, on a size: same law, same draws from torch's generator.

    Args:
        size: (width, height) of the picture.
        scale: range of the crop's share of the area.
        ratio: range of its width / height.
    """
    full_width, full_height = size
    log_ratio = _log_span(ratio)
    draw = torch.empty(1)
    for _ in range(10):
        area = full_width * full_height * draw.uniform_(*scale).item()
        aspect = draw.uniform_(*log_ratio).exp_().item()
        width, height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < width <= full_width and 0 < height <= full_height:
            top = int(torch.randint(0, full_height - height + 1, size=(1,)).item())
            left = int(torch.randint(0, full_width - width + 1, size=(1,)).item())
            return left, top, width, height
    # The picture is too long or too high for any such crop: the largest centre crop within the ratios.
    width, height = full_width, full_height
    if full_width / full_height < min(ratio):
        height = round(full_width / min(ratio))
    elif full_width / full_height > max(ratio):
        width = round(full_height * max(ratio))
    return (full_width - width) // 2, (full_height - height) // 2, width, height


def centre_crop(size: tuple[int, int], target: int) -> tuple[float, float, float, float]:
    """The (left, top, width, height) that "shorter side to ``target``, then the centre" shows, in its own pixels.

    The crop's place is rounded to even, as torchvision does.

    Args:
        size: (width, height) of the picture.
        target: side of the result.
    """
    width, height = size
    resized_width, resized_height = resized_size(size, target)
    left = round((resized_width - target) / 2)
    top = round((resized_height - target) / 2)
    across, down = width / resized_width, height / resized_height
    return left * across, top * down, target * across, target * down


def resized_size(size: tuple[int, int], target: int) -> tuple[int, int]:
    """(width, height) once the shorter side is ``target``; the longer one is rounded down, as torchvision does."""
    width, height = size
    if width <= height:
        return target, int(target * height / width)
    return int(target * width / height), target


def _scaled(
    box: tuple[float, float, float, float], step: int, size: tuple[int, int]
) -> tuple[float, float, float, float]:
    """A (left, top, width, height) crop as the (left, top, right, bottom) box of a picture decoded at 1/step."""
    left, top, width, height = (side / step for side in box)
    return left, top, min(left + width, float(size[0])), min(top + height, float(size[1]))
