from __future__ import annotations

import io

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from tests.data.planted import encoded, jpeg, picture
from troth.data import ImageTransform, SampleError
from troth.data.transforms import random_crop


@pytest.mark.parametrize("size", [(40, 30), (30, 40), (33, 33), (100, 41), (17, 90), (640, 481)])
@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_evaluation_equals_open_clips(size: tuple[int, int], form: str) -> None:
    data = encoded(picture(size[0], size), form)
    theirs = open_clip.image_transform(32, is_train=False)(Image.open(io.BytesIO(data)))
    ours = ImageTransform(image_size=32, draft_margin=float("inf"))(data)
    if max(size) <= 4 * min(size):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    else:
        std = torch.tensor(ImageTransform().std)[:, None, None]
        assert ((ours - theirs) * std).abs().max() < 1.01 / 255


@pytest.mark.parametrize("size", [(40, 30), (57, 61), (200, 20)])
def test_training_equals_open_clips_under_one_seed(size: tuple[int, int]) -> None:
    data = encoded(picture(size[0], size), "PNG")
    theirs_of = open_clip.image_transform(32, is_train=True)
    ours_of = ImageTransform(image_size=32, train=True)
    for seed in range(5):
        torch.manual_seed(seed)
        theirs = theirs_of(Image.open(io.BytesIO(data)))
        torch.manual_seed(seed)
        torch.testing.assert_close(ours_of(data), theirs, rtol=0, atol=1e-5)


def test_random_crops_are_torchvisions() -> None:
    for width, height in ((300, 200), (20, 900), (900, 20), (7, 7)):
        image = torch.empty((3, height, width), device="meta")
        for seed in range(20):
            torch.manual_seed(seed)
            top, left, crop_height, crop_width = RandomResizedCrop.get_params(image, [0.2, 1.0], [3 / 4, 4 / 3])
            torch.manual_seed(seed)
            found = random_crop((width, height), (0.2, 1.0), (3 / 4, 4 / 3))
            assert found == (left, top, crop_width, crop_height)


@pytest.mark.parametrize("train", [False, True])
def test_draft_decoding_changes_little(train: bool) -> None:
    data = jpeg(4, (1200, 900))
    drafted = ImageTransform(image_size=64, train=train)
    full = ImageTransform(image_size=64, train=train, draft_margin=float("inf"))
    for seed in range(4):
        torch.manual_seed(seed)
        left = np.asarray(drafted.pixels(data), dtype=float)
        torch.manual_seed(seed)
        right = np.asarray(full.pixels(data), dtype=float)
        assert 0 < np.abs(left - right).mean() < 1.5


def test_training_sees_a_rotated_jpeg_upright() -> None:
    upright = picture(3, (1000, 600))
    exif = Image.Exif()
    exif[0x0112] = 8
    lying = encoded(upright.transpose(Image.Transpose.ROTATE_270), quality=95, exif=exif)
    plain = encoded(upright, quality=95)
    for train in (False, True):
        transform = ImageTransform(image_size=48, train=train)
        torch.manual_seed(0)
        left = np.asarray(transform.pixels(lying), dtype=float)
        torch.manual_seed(0)
        right = np.asarray(transform.pixels(plain), dtype=float)
        assert np.abs(left - right).mean() < 2.0


def test_flips_are_half() -> None:
    image = Image.new("RGB", (32, 32))
    image.paste((255, 255, 255), (0, 0, 16, 32))
    data = encoded(image, "PNG")
    transform = ImageTransform(image_size=32, train=True, crop_scale=(1.0, 1.0), horizontal_flip=True)
    torch.manual_seed(0)
    bright_left = sum(transform(data)[0, 16, 2].item() > 0 for _ in range(200))
    assert 70 < bright_left < 130


def test_extreme_shapes_and_bad_bytes() -> None:
    for size in ((3000, 1), (1, 3000), (1, 1)):
        data = encoded(Image.new("RGB", size, (255, 255, 255)), "PNG")
        for train in (False, True):
            assert ImageTransform(image_size=16, train=train)(data).shape == (3, 16, 16)
    with pytest.raises(SampleError):
        ImageTransform()(jpeg()[:200])
