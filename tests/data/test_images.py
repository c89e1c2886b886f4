from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageFile

from tests.data.planted import encoded, jpeg, picture
from troth.data import ImageTransform, SampleError, decode
from troth.data.images import MAX_PIXELS

Reader = Callable[[bytes], Image.Image]
#: What must tell a broken picture from a whole one.
READERS: dict[str, Reader] = {
    "decode": decode,
    "evaluation": ImageTransform(image_size=16).pixels,
    "training": ImageTransform(image_size=16, train=True).pixels,
}
every_reader = pytest.mark.parametrize("reader", READERS.values(), ids=READERS)


def colour(image: Image.Image) -> tuple[int, ...]:
    return tuple(int(value) for value in np.asarray(image).reshape(-1, 3).mean(axis=0).round())


@pytest.mark.parametrize(
    ("mode", "pixel", "expected"),
    [
        ("RGBA", (255, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (0, 0, 255, 255), (0, 0, 255)),
        ("RGBA", (0, 0, 0, 51), (204, 204, 204)),
        ("LA", (0, 0), (255, 255, 255)),
        ("L", 100, (100, 100, 100)),
        ("1", 1, (255, 255, 255)),
        ("I;16", 256 * 100, (100, 100, 100)),
    ],
)
def test_every_png_mode_becomes_rgb_over_white(mode: str, pixel: object, expected: tuple[int, ...]) -> None:
    image = decode(encoded(Image.new(mode, (4, 4), pixel), "PNG"))
    assert image.mode == "RGB"
    assert colour(image) == expected


def test_palettes_show_their_transparent_colour_as_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1])
    plain = decode(encoded(image, "PNG"))
    assert [plain.getpixel((0, 0)), plain.getpixel((1, 0))] == [(10, 20, 30), (200, 100, 50)]
    for form, options in (("PNG", {"transparency": b"\x00\xff"}), ("GIF", {"transparency": 0})):
        shown = decode(encoded(image, form, **options))
        assert [shown.getpixel((0, 0)), shown.getpixel((1, 0))] == [(255, 255, 255), (200, 100, 50)]


def test_an_rgb_png_with_a_transparent_colour_is_shown_over_white() -> None:
    image = decode(encoded(Image.new("RGB", (3, 3), (1, 2, 3)), "PNG", transparency=(1, 2, 3)))
    assert colour(image) == (255, 255, 255)


@pytest.mark.parametrize("form", ["JPEG", "TIFF"])
def test_cmyk_becomes_rgb(form: str) -> None:
    image = decode(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), form))
    red, green, blue = colour(image)
    assert red > 250
    assert max(green, blue) < 6


def test_32_bit_and_float_grey() -> None:
    for array, grey in ((np.full((2, 2), 257 * 9, np.int32), 9), (np.full((2, 2), 0.2, np.float32), 51)):
        assert colour(decode(encoded(Image.fromarray(array), "TIFF"))) == (grey, grey, grey)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied(form: str) -> None:
    upright = picture(3, (40, 30))
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = upright.transpose(Image.Transpose.ROTATE_90)
    options = {"quality": 100} if form != "WEBP" else {"lossless": True}
    shown = decode(encoded(lying, form, exif=exif, **options))
    assert shown.size == (40, 30)
    assert np.abs(np.asarray(shown, dtype=int) - np.asarray(upright, dtype=int)).mean() < 4


def test_garbled_exif_costs_nothing_but_the_orientation() -> None:
    data = jpeg()
    garbled = data[:2] + b"\xff\xe1" + struct.pack(">H", 24) + b"Exif\x00\x00" + b"\xaa" * 16 + data[2:]
    assert decode(garbled).size == (40, 30)


def test_a_large_jpeg_is_decoded_smaller_but_never_below_what_is_needed() -> None:
    data = jpeg(1, (1000, 800))
    assert decode(data, minimum_size=100).size == (125, 100)
    assert decode(data, minimum_size=101).size == (250, 200)
    assert decode(data, minimum_size=500).size == (1000, 800)
    assert decode(data).size == (1000, 800)
    small = np.asarray(decode(data, minimum_size=100), dtype=float)
    full = np.asarray(decode(data).resize((125, 100), Image.Resampling.BOX), dtype=float)
    assert np.abs(small - full).mean() < 1.0


@every_reader
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_broken_images_are_sample_errors(form: str, reader: Reader) -> None:
    data = encoded(picture(2, (200, 150)), form)
    for broken in (data[: len(data) // 2], data[:11], b"\x00" + data[1:], b"not an image at all"):
        with pytest.raises(SampleError) as caught:
            reader(broken)
        assert caught.value.reason == "corrupt-image"
    assert reader(data).size == ((200, 150) if reader is decode else (16, 16))
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


@pytest.mark.parametrize("name", ["evaluation", "training"])
def test_a_transform_finds_every_damage_to_a_png_that_decoding_finds(name: str) -> None:
    data = encoded(picture(2, (200, 150)), "PNG")
    found = 0
    for place in np.linspace(data.index(b"IDAT") + 4, data.index(b"IEND") - 12, 40).astype(int):
        hurt = data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :]
        try:
            decode(hurt)
        except SampleError as error:
            found += 1
            with pytest.raises(SampleError) as caught:
                READERS[name](hurt)
            assert caught.value.reason == error.reason  # noqa: PT017 - either outcome of decoding is right here
    assert found > 10


@every_reader
def test_flipped_bytes_never_raise_anything_else(reader: Reader) -> None:
    rng = np.random.default_rng(0)
    outcomes: set[str] = set()
    for form in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000"):
        data = np.frombuffer(encoded(picture(2, (32, 24)), form), dtype=np.uint8)
        for _ in range(30):
            hurt = data.copy()
            hurt[rng.integers(0, len(data), size=3)] = rng.integers(0, 256, size=3)
            try:
                outcomes.add(reader(hurt.tobytes()).mode)
            except SampleError as error:
                outcomes.add(error.reason)
    assert {"RGB", "corrupt-image"} <= outcomes <= {"RGB", "corrupt-image", "image-too-large"}


def test_empty_bytes() -> None:
    with pytest.raises(SampleError) as caught:
        decode(b"")
    assert caught.value.reason == "empty-file"


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("train", [False, True])
def test_a_transform_refuses_a_bomb_before_it_is_decoded(train: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(SampleError) as caught:
        ImageTransform(train=train, max_pixels=50_000_000).pixels(png_header(10_000, 10_000))
    assert caught.value.reason == "image-too-large"


@pytest.mark.parametrize("side", [10_000, 14_000, 60_000])
def test_bombs_are_refused_from_their_header(side: int) -> None:
    limit = MAX_PIXELS if side > 13_400 else 50_000_000
    with pytest.raises(SampleError) as caught:
        decode(png_header(side, side), max_pixels=limit)
    assert caught.value.reason == "image-too-large"


def test_a_jpeg_is_judged_at_the_scale_it_is_decoded_at() -> None:
    data = encoded(Image.new("RGB", (1600, 1600)), "JPEG")
    assert decode(data, minimum_size=200, max_pixels=100_000).size == (200, 200)
    with pytest.raises(SampleError) as caught:
        decode(data, max_pixels=100_000)
    assert caught.value.reason == "image-too-large"


def test_a_progressive_bomb_does_not_hide_behind_a_draft() -> None:
    data = encoded(Image.new("L", (64, 64)), "JPEG", progressive=True)
    frame = data.index(b"\xff\xc2")
    giant = data[: frame + 5] + struct.pack(">HH", 20_000, 20_000) + data[frame + 9 :]
    assert Image.open(io.BytesIO(jpeg())).format == "JPEG"
    with pytest.raises(SampleError) as caught:
        decode(giant, minimum_size=224)
    assert caught.value.reason == "image-too-large"


def test_several_scans_do_not_hide_behind_a_draft_either() -> None:
    data = encoded(Image.new("RGB", (1600, 1600)), "JPEG")
    assert decode(data, minimum_size=200, max_pixels=100_000).size == (200, 200)
    scan = data.index(b"\xff\xda\x00\x0c\x03")
    # A baseline picture whose first scan names one of its three components.
    split = data[:scan] + b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" + data[scan + 14 :]
    for read in (
        lambda: decode(split, minimum_size=200, max_pixels=100_000),
        lambda: ImageTransform(image_size=200, max_pixels=100_000).pixels(split),
    ):
        with pytest.raises(SampleError) as caught:
            read()
        assert caught.value.reason == "image-too-large"
