"""How training pictures are changed at random before towers see them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from PIL import Image
from pydantic import BeforeValidator, Field, field_validator
from pydantic.dataclasses import dataclass

from troth.types import STRICT

_Share = Annotated[float, Field(gt=0, le=1)]
_Probability = Annotated[float, Field(ge=0, le=1)]
_Strength = Annotated[float, Field(ge=0)]


@dataclass(frozen=True, config=STRICT)
class Augmentation:
    """A random crop, resized, and then, each with a probability of its own, a flip, other colours, grey and blur.

    In this order, by torchvision's transforms, drawn from torch's global generator, which the loader seeds by (seed,
    epoch, sample id). A recipe may also say the name of one of :data:`AUGMENTATIONS`.

    Attributes:
        crop_scale: range of the crop's share of the picture's area; its width / height is 3/4 to 4/3.
        horizontal_flip: whether half of the pictures are mirrored. Captions that say "left" are not.
        color_jitter: how far brightness, contrast and saturation (factors of 1 plus or minus that much, at least 0)
            and hue (plus or minus that part of the colour circle, at most 0.5) may move.
        color_jitter_probability: of such a change.
        gray_probability: of losing all colour.
        blur_probability: of a Gaussian blur.
        blur_kernel: its width in pixels of the resized crop, odd; None: the largest odd number not above a tenth of the
            side (21 of 224), at least 3.
        blur_sigma: range of its standard deviation in pixels.
    """

    crop_scale: tuple[_Share, _Share] = (0.9, 1.0)
    horizontal_flip: bool = False
    color_jitter: tuple[_Strength, _Strength, _Strength, Annotated[float, Field(ge=0, le=0.5)]] = (0.8, 0.8, 0.8, 0.2)
    color_jitter_probability: _Probability = 0.0
    gray_probability: _Probability = 0.0
    blur_probability: _Probability = 0.0
    blur_kernel: Annotated[int, Field(ge=3)] | None = None
    blur_sigma: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (0.1, 2.0)

    @field_validator("crop_scale", "blur_sigma")
    @classmethod
    def _rises(cls, span: tuple[float, float]) -> tuple[float, float]:
        if span[0] > span[1]:
            raise ValueError(f"the smaller number comes first, got {list(span)}")
        return span

    @field_validator("blur_kernel")
    @classmethod
    def _odd(cls, kernel: int | None) -> int | None:
        if kernel is not None and kernel % 2 == 0:
            raise ValueError("must be an odd number")
        return kernel

    def recolor(self, image_size: int) -> Callable[[Image.Image], Image.Image] | None:
        """Return what is done with a crop of ``image_size`` pixels a side once it may be flipped; None for nothing.

        The result can be sent to other processes.

        Raises:
            ValueError: if the blur's kernel is larger than such a picture can be mirrored at its edges for.
        """
        from torchvision.transforms import v2  # takes a while to import, and evaluation has no use for it

        steps: list[Any] = []
        if self.color_jitter_probability > 0:
            steps.append(v2.RandomApply([v2.ColorJitter(*self.color_jitter)], self.color_jitter_probability))
        if self.gray_probability > 0:
            steps.append(v2.RandomGrayscale(self.gray_probability))
        if self.blur_probability > 0:
            kernel = self.blur_kernel or max(3, (image_size // 10 - 1) // 2 * 2 + 1)
            if kernel // 2 >= image_size:
                raise ValueError(f"a blur {kernel} pixels wide is too wide for pictures of {image_size}")
            steps.append(v2.RandomApply([v2.GaussianBlur(kernel, self.blur_sigma)], self.blur_probability))
        return v2.Compose(steps) if steps else None


#: Augmentations by name. ``none`` is open_clip's: a crop of nine tenths or more, and nothing else.
AUGMENTATIONS = {
    "none": Augmentation(),
    # Chen et al. 2020, "A simple framework for contrastive learning of visual representations", appendix A, but
    # for the blur: of a fifth of the pictures, as ProtoCLIP has it, and not of half of them.
    "simclr": Augmentation(
        crop_scale=(0.08, 1.0),
        horizontal_flip=True,
        color_jitter_probability=0.8,
        gray_probability=0.2,
        blur_probability=0.2,
    ),
    # Chen et al. 2022, "Prototypical contrastive language image pretraining" (ProtoCLIP), section 4: lighter, so that
    # captions stay true.
    "protoclip": Augmentation(
        crop_scale=(0.5, 1.0),
        horizontal_flip=True,
        color_jitter_probability=0.2,
        gray_probability=0.2,
        blur_probability=0.2,
    ),
}


def _named(value: Any) -> Any:
    """Replace a name by what it stands for; None is how a recipe's "none" arrives."""
    if value is None:
        return AUGMENTATIONS["none"]
    if isinstance(value, str):
        if value not in AUGMENTATIONS:
            raise ValueError(f"no such augmentation: one of {', '.join(AUGMENTATIONS)}, or a table")
        return AUGMENTATIONS[value]
    return value


#: What a recipe may put under ``data.augmentation``: a name or a table.
AugmentationConfig = Annotated[Augmentation, BeforeValidator(_named)]
