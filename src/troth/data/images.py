"""From encoded bytes to RGB pixels: safely, at no more than the needed resolution.

Rules, the same for every source:

* transparent pixels are shown over white, as a reader of the page the picture was scraped from would see them;
* the EXIF orientation is applied;
* 16-bit grey keeps its upper byte (PIL alone would clip it to white), CMYK, palettes and the rest become RGB;
* an animation shows its first frame;
* a picture of more than ``max_pixels`` is refused from its header, before a pixel is decoded. JPEGs are judged at the
  scale they are decoded at;
* a broken or truncated picture is a :class:`~troth.data.ledger.SampleError`, never a grey area. (JPEG has no check
  sums, and Pillow does not verify those of a PNG's pixels: flipped bits inside the data can decode to a wrong picture
  without an error.)
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
from PIL import Image, JpegImagePlugin, UnidentifiedImageError

from troth.data.ledger import SampleError

#: Twice PIL's own warning level, where PIL itself stops; 179 megapixels are 512 MiB of RGB.
MAX_PIXELS = 178_956_970

#: Decoders we let scraped bytes reach. Left out on purpose: EPS (runs Ghostscript) and the rarely tested ones.
_FORMATS = ("PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG", "MPO", "JPEG2000", "PPM", "ICO", "AVIF")

_ORIENTATION = 0x0112
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
#: Markers of JPEG: 0xC4, 0xC8 and 0xCC are not starts of frames.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE_FRAMES = frozenset((0xC2, 0xC6, 0xCA, 0xCE))
_WITH_ALPHA = ("RGBA", "LA", "La", "PA", "RGBa")


def decode(data: bytes, minimum_size: int | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an image to RGB.

    Args:
        data: the encoded image.
        minimum_size: the shorter side the caller needs, in pixels. A JPEG whose shorter side is at least twice as
            long is decoded at 1/2, 1/4 or 1/8 scale, never below ``minimum_size``. None decodes at full scale.
        max_pixels: refuse larger pictures. Above :data:`MAX_PIXELS` only JPEGs can be allowed.

    Returns:
        An upright RGB image.

    Raises:
        SampleError: ``empty-file``, ``corrupt-image`` or ``image-too-large``; without a key, which bytes do not have.
    """
    with opened(data) as image:
        if minimum_size is not None:
            draft(image, min(image.size) // max(1, minimum_size), max_pixels)
        return to_rgb(image, max_pixels)


@contextmanager
def opened(data: bytes) -> Iterator[Image.Image]:
    """Open encoded bytes and turn whatever goes wrong inside into a :class:`SampleError`, without any warning."""
    if not data:
        raise SampleError("", "empty-file", "the image has no bytes")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with _open(data) as image:
                yield image
        except SampleError:
            raise
        except (Image.DecompressionBombError, MemoryError) as error:
            raise SampleError("", "image-too-large", str(error) or "out of memory") from error
        except UnidentifiedImageError as error:
            # Its own message holds a memory address, and a ledger should be the same in every run.
            raise SampleError("", "corrupt-image", "not an image of a known format") from error
        except Exception as error:
            # PIL's decoders raise almost anything on hostile bytes: OSError, SyntaxError, struct.error, IndexError...
            raise SampleError("", "corrupt-image", f"{type(error).__name__}: {error}") from error


def draft(image: Image.Image, scale: int, max_pixels: int = MAX_PIXELS) -> int:
    """Ask a JPEG to be decoded at 1/8, 1/4 or 1/2, by the largest of these steps that is at most ``scale``.

    A JPEG of several scans (every progressive one is) of more than ``max_pixels`` is left at full scale, to be refused.

    Returns:
        The step taken: 8, 4, 2 or 1 (which is also the answer for every other format).
    """
    step = next((step for step in (8, 4, 2) if scale >= step), 1)
    if step == 1 or not isinstance(image, JpegImagePlugin.JpegImageFile):
        return 1
    width, height = image.size
    # The coefficients of several scans are all held in memory at full scale: a draft must not hide their number.
    if width * height > max_pixels and not _single_scan(image):
        return 1
    # PIL takes the largest scale that does not go below the size asked for, which is `step` for this size.
    drafted = image.draft(None, (max(1, width // step), max(1, height // step)))
    return step if drafted is not None else 1


def oriented_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) of a JPEG as they will be once the EXIF orientation is applied, from its header alone.

    Not for other formats: Pillow decodes a whole PNG to find its EXIF, and damage to it would be lost here.
    """
    width, height = image.size
    return (height, width) if _orientation(image) >= 5 else (width, height)


def to_rgb(image: Image.Image, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an opened image to upright RGB over white; see :func:`decode` for the errors."""
    width, height = image.size
    if width * height > max_pixels:
        raise SampleError("", "image-too-large", f"{width} x {height} pixels, the limit is {max_pixels}")
    image.load()
    turn = _TRANSPOSE.get(_orientation(image))
    upright = image.transpose(turn) if turn is not None else image
    if upright.mode == "RGB" and "transparency" not in image.info:
        return upright
    return _flatten(upright, transparent="transparency" in image.info)


def _open(data: bytes) -> Image.Image:
    stream = io.BytesIO(data)
    if data[:3] == b"\xff\xd8\xff":
        # Not through Image.open: its bomb check judges a JPEG before draft mode could make it small.
        return JpegImagePlugin.JpegImageFile(stream)
    return Image.open(stream, formats=_formats())


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _single_scan(image: JpegImagePlugin.JpegImageFile) -> bool:
    """Whether a JPEG is not progressive and its first scan holds all components, which is how libjpeg judges it."""
    stream = image.fp
    if stream is None:
        return False
    place = stream.tell()
    stream.seek(0)
    data = stream.read()
    stream.seek(place)
    components, position = 0, 2
    while 0 <= (position := data.find(b"\xff", position)) < len(data) - 9:
        marker = data[position + 1]
        if marker == 0xFF:  # padding
            position += 1
            continue
        if marker == 0xDA:  # start of scan: its length, then the number of its components
            return components > 0 and data[position + 4] == components
        if marker in _FRAMES:  # start of frame: its length, the precision, two sides, the number of components
            if marker in _PROGRESSIVE_FRAMES:
                return False
            components = data[position + 9]
        alone = marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8
        position += 2 if alone else 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return False


def _orientation(image: Image.Image) -> int:
    if image.format == "JPEG" and "exif" not in image.info:
        return 1
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:
        # A garbled EXIF block says nothing about the pixels: use them as they are.
        return 1


def _flatten(image: Image.Image, *, transparent: bool) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_to_bytes(np.asarray(image))).convert("RGB")
    if transparent or image.mode in _WITH_ALPHA:
        rgba = image.convert("RGBA")
        canvas = Image.new("RGB", rgba.size, "white")
        canvas.paste(rgba, mask=rgba.getchannel("A"))
        return canvas
    return image.convert("RGB")


def _to_bytes(grey: np.ndarray) -> np.ndarray:
    """Grey values of more than 8 bits to 0..255: 16-bit integers by their range, floats in [0, 1] or [0, 255]."""
    values = np.nan_to_num(grey.astype(np.float64))
    top = float(values.max(initial=0.0))
    if grey.dtype.kind == "f":
        values = values * 255.0 if top <= 1.0 else values
    elif grey.dtype.itemsize == 2 or top > 255.0:
        values = values / 257.0
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
