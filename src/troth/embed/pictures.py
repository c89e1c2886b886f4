"""From a source's encoded pictures to batches of tensors, in order, on more than one core."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from troth.data.augment import Augmentation
from troth.data.images import decode
from troth.data.ledger import LedgerEntry, SampleError
from troth.data.source import Source
from troth.data.transforms import ImageTransform
from troth.encoders import OpenClipEncoder
from troth.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

#: Part of every cache key of pictures: raised when decoding changes what a picture becomes.
DECODER = "decoder 1"

#: Below this many pictures, starting worker processes takes longer than it saves.
_WORTH_WORKERS = 512


@dataclass(frozen=True, slots=True)
class PictureBatch:
    """Consecutive pictures of a source.

    Attributes:
        rows: ``(B,)`` sample ids of the pictures that could be read.
        images: ``(B, ...)`` what the transform made of them; None if none could be read.
        entries: a ledger entry for each picture that could not.
        size: how many pictures were tried.
    """

    rows: Int64[Tensor, " B"]
    images: Tensor | None
    entries: tuple[LedgerEntry, ...]
    size: int


@dataclass(frozen=True, slots=True)
class Decoded:
    """A transform of pictures as a transform of encoded bytes.

    Attributes:
        transform: from an RGB picture to a tensor.
        image_size: the shorter side it needs, for scaled JPEG decoding; None decodes at full size.
    """

    transform: Callable[[Image.Image], Tensor]
    image_size: int | None = None

    def __call__(self, data: bytes) -> Tensor:
        """Decode and transform. Raises SampleError for bytes that are no picture."""
        return self.transform(decode(data, self.image_size))


def picture_transform(
    encoder: OpenClipEncoder, *, train: bool, augmentation: Augmentation | None = None
) -> Callable[[bytes], Tensor]:
    """Return encoded bytes to the tensor the encoder takes, decoding no more pixels than that needs.

    The preprocessing is the encoder's own; :class:`~troth.data.transforms.ImageTransform` has words for the usual ones
    (a square, the shorter side resized), open_clip's own transform serves the others.

    Args:
        encoder: takes the tensors.
        train: whether to change the pictures at random.
        augmentation: how, for training; None for the usual crop alone.

    Raises:
        UserError: for an augmentation that these pictures cannot have.
    """
    augmentation = augmentation or Augmentation()
    preprocess = encoder.preprocess_cfg
    size = preprocess["size"]
    sides = (size, size) if isinstance(size, int) else tuple(size)
    interpolation = preprocess.get("interpolation", "bicubic")
    usual = sides[0] == sides[1] and preprocess.get("mode", "RGB") == "RGB" and interpolation in ("bicubic", "bilinear")
    # A training crop is never squashed or padded, whatever evaluation does with the whole picture.
    if usual and (train or preprocess.get("resize_mode", "shortest") == "shortest"):
        return ImageTransform(
            image_size=sides[0],
            mean=tuple(preprocess["mean"]),
            std=tuple(preprocess["std"]),
            interpolation=interpolation,
            train=train,
            crop_scale=augmentation.crop_scale,
            horizontal_flip=augmentation.horizontal_flip,
            recolor=_recolor(augmentation, sides[0]) if train else None,
        )
    if train and augmentation != Augmentation():
        raise UserError(
            f"the encoder's pictures ({encoder.preprocessing}) are not square RGB resized by bicubic or bilinear",
            where="data.augmentation",
            remedy='leave it at "none"',
        )
    return Decoded(encoder.image_transform(train))


def _recolor(augmentation: Augmentation, image_size: int) -> Callable[[Image.Image], Image.Image] | None:
    try:
        return augmentation.recolor(image_size)
    except ValueError as error:
        raise UserError(str(error), where="data.augmentation.blur_kernel") from None


class _Pictures(Dataset[tuple[int, "Tensor | LedgerEntry"]]):
    def __init__(self, source: Source, transform: Callable[[bytes], Tensor]) -> None:
        self.source = source
        self.transform = transform

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[int, Tensor | LedgerEntry]:
        try:
            return index, self.transform(self.source.read_image(index))
        except SampleError as error:
            return index, error.entry(self.source.key(index))


def _collate(samples: Sequence[tuple[int, Tensor | LedgerEntry]]) -> PictureBatch:
    read = [(row, image) for row, image in samples if isinstance(image, Tensor)]
    return PictureBatch(
        rows=torch.tensor([row for row, _ in read], dtype=torch.int64),
        images=torch.stack([image for _, image in read]) if read else None,
        entries=tuple(image for _, image in samples if isinstance(image, LedgerEntry)),
        size=len(samples),
    )


def picture_batches(
    source: Source,
    transform: Callable[[bytes], Tensor],
    batch_size: int,
    num_workers: int | None = None,
) -> Iterator[PictureBatch]:
    """Yield all pictures of ``source`` in id order; unreadable ones as ledger entries.

    Args:
        source: where the pictures are.
        transform: from encoded bytes to a tensor, all of one shape.
        batch_size: pictures in a batch.
        num_workers: processes that decode; None for as many as torch has threads, at most 4, and none for few pictures
            or on one thread, where the seconds that a process takes to start are lost.
    """
    if num_workers is None:
        threads = torch.get_num_threads()
        num_workers = min(4, threads) if threads > 1 and len(source) >= _WORTH_WORKERS else 0
    yield from DataLoader(
        _Pictures(source, transform),
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=_collate,
        # Without a generator of its own, a loader draws its workers' base seed from the global one.
        generator=torch.Generator(),
    )


@dataclass(frozen=True, slots=True)
class PictureIdentity:
    """What the encoded pictures of a source are.

    Attributes:
        digest: sha256 (hex) of the source's keys and encoded pictures, in id order.
        missing: keys of the samples whose picture could not be read.
    """

    digest: str
    missing: frozenset[str]


def picture_identity(source: Source) -> PictureIdentity:
    """Read every encoded picture once and return what they are, whatever captions they have.

    A picture replaced under the same key must be encoded anew, so the bytes are read (not decoded, a small part of
    encoding them) before a cached file is trusted. The same pictures under other captions need not be.
    """
    digest = hashlib.sha256()
    missing: set[str] = set()
    for index in range(len(source)):
        digest.update(json.dumps(source.key(index), ensure_ascii=True).encode("ascii"))
        try:
            data = source.read_image(index)
        except SampleError as error:
            digest.update(f"!{error.reason}".encode())
            missing.add(source.key(index))
        else:
            digest.update(len(data).to_bytes(8, "little"))
            digest.update(data)
    return PictureIdentity(digest.hexdigest(), frozenset(missing))
