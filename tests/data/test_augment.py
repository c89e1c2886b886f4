"""Augmentations against torchvision's own pipelines, through the loader, and in recipes."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as v1

from tests.data.planted import encoded, picture, table_source, tokenize
from troth import recipe
from troth.data import AUGMENTATIONS, Augmentation, ImageTextStream, ImageTransform, Plan
from troth.embed.pictures import picture_transform
from troth.encoders import Small
from troth.errors import UserError
from troth.run.build import build

SIZE = 40


def transform(augmentation: Augmentation, size: int = SIZE) -> ImageTransform:
    return ImageTransform(
        image_size=size,
        train=True,
        crop_scale=augmentation.crop_scale,
        horizontal_flip=augmentation.horizontal_flip,
        recolor=augmentation.recolor(size),
    )


def torchvisions(scale: tuple[float, float], jitter: float) -> v1.Compose:
    """ProtoCLIP's released pipeline, of torchvision's first transforms."""
    return v1.Compose(
        [
            v1.RandomResizedCrop(SIZE, scale, interpolation=v1.InterpolationMode.BICUBIC),
            v1.RandomHorizontalFlip(),
            v1.RandomApply([v1.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=jitter),
            v1.RandomGrayscale(p=0.2),
            v1.RandomApply([v1.GaussianBlur(3)], p=0.2),
        ]
    )


@pytest.mark.parametrize(("name", "scale", "jitter"), [("simclr", (0.08, 1.0), 0.8), ("protoclip", (0.5, 1.0), 0.2)])
def test_the_names_stand_for_the_published_pipelines(name: str, scale: tuple[float, float], jitter: float) -> None:
    data = encoded(picture(3, (90, 70)), "PNG")
    ours, theirs = transform(AUGMENTATIONS[name]), torchvisions(scale, jitter)
    views = []
    for seed in range(40):
        torch.manual_seed(seed)
        expected = np.asarray(theirs(Image.open(io.BytesIO(data)).convert("RGB")), dtype=int)
        torch.manual_seed(seed)
        found = np.asarray(ours.pixels(data), dtype=int)
        assert np.abs(found - expected).max() <= 1, seed
        views.append(found)
    gray = sum(bool((view == view[..., :1]).all()) for view in views)
    assert 2 <= gray <= 18


def test_none_is_the_plain_crop_to_the_last_bit() -> None:
    data = encoded(picture(3, (90, 70)), "PNG")
    assert AUGMENTATIONS["none"].recolor(SIZE) is None
    encoder = Small().build(0)
    plain = ImageTransform(image_size=encoder.preprocess_cfg["size"], train=True)
    for made in (
        picture_transform(encoder, train=True),
        picture_transform(encoder, train=True, augmentation=AUGMENTATIONS["none"]),
    ):
        torch.manual_seed(1)
        expected = plain(data)
        torch.manual_seed(1)
        assert torch.equal(made(data), expected)
    strong = picture_transform(encoder, train=False, augmentation=AUGMENTATIONS["simclr"])
    assert torch.equal(strong(data), picture_transform(encoder, train=False)(data))


def test_the_blur_is_a_tenth_of_the_picture() -> None:
    blur = Augmentation(blur_probability=1.0)
    for size, kernel in ((224, 21), (256, 25), (64, 5), (32, 3), (8, 3)):
        assert f"kernel_size=({kernel}, {kernel})" in repr(blur.recolor(size))
    assert "kernel_size=(9, 9)" in repr(Augmentation(blur_probability=1.0, blur_kernel=9).recolor(64))
    with pytest.raises(ValueError, match="too wide"):
        Augmentation(blur_probability=1.0, blur_kernel=17).recolor(8)


def test_each_change_is_what_it_says() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    gray = np.asarray(Augmentation(gray_probability=1.0).recolor(64)(image))
    assert (gray == gray[..., :1]).all()
    blurred = np.asarray(Augmentation(blur_probability=1.0, blur_sigma=(2.0, 2.0)).recolor(64)(image), dtype=float)
    rough = np.abs(np.diff(np.asarray(image, dtype=float), axis=0)).mean()
    assert np.abs(np.diff(blurred, axis=0)).mean() < 0.5 * rough
    dark = Augmentation(color_jitter=(0.5, 0, 0, 0), color_jitter_probability=1.0).recolor(64)
    torch.manual_seed(0)
    ratios = [np.asarray(dark(Image.new("RGB", (4, 4), (100, 100, 100)))).mean() / 100 for _ in range(200)]
    assert 0.49 < min(ratios) < 0.6
    assert 1.4 < max(ratios) < 1.51


def test_views_are_the_same_for_any_number_of_workers_and_new_in_each_epoch(tmp_path: Path) -> None:
    source = table_source(tmp_path, 12)
    made = pickle.loads(pickle.dumps(transform(AUGMENTATIONS["simclr"], 16)))

    def views(workers: int) -> dict[tuple[int, int], torch.Tensor]:
        stream = ImageTextStream(
            source, Plan(12, 4, seed=5), image_transform=made, tokenize=tokenize, num_workers=workers
        )
        return {
            (step // stream.steps_per_epoch, index): image
            for step, loaded in enumerate(stream.batches(0, 2 * stream.steps_per_epoch))
            for index, image in zip(loaded.batch.index.tolist(), loaded.batch.image, strict=True)
        }

    alone, shared = views(0), views(2)
    assert alone.keys() == shared.keys()
    assert len(alone) == 24
    assert all(torch.equal(alone[key], shared[key]) for key in alone)
    assert not any(torch.equal(alone[0, index], alone[1, index]) for index in range(12))


def test_a_recipe_says_a_name_or_a_table() -> None:
    named = recipe.load("small-infonce", ["data.augmentation=protoclip"])
    assert named.data.augmentation == AUGMENTATIONS["protoclip"]
    assert recipe.from_dict(recipe.to_dict(named)) == named
    assert recipe.load("small-infonce", ["data.augmentation=none"]) == recipe.load("small-infonce")
    table = recipe.load("small-infonce", ["data.augmentation={crop_scale=[0.5, 1.0], gray_probability=0.1}"])
    assert table.data.augmentation == Augmentation(crop_scale=(0.5, 1.0), gray_probability=0.1)


def test_the_stream_of_a_recipe_augments_as_it_says() -> None:
    made = build(recipe.load("small-infonce", ["data.augmentation.gray_probability=1", "train.batch_size=4"]))
    [loaded] = made.stream().batches(0, 1)
    preprocess = made.model.encoder.preprocess_cfg
    mean, std = (torch.tensor(preprocess[name])[:, None, None] for name in ("mean", "std"))
    pixels = loaded.batch.image * std + mean
    torch.testing.assert_close(pixels[:, 0], pixels[:, 2], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("heads-infonce", ["data.augmentation=simclr"], "no pictures to augment"),
        ("small-infonce", ["data.augmentation={blur_probability=0.5, blur_kernel=999}"], "too wide"),
    ],
)
def test_what_pictures_cannot_have_is_refused(name: str, settings: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        build(recipe.load(name, settings))
    assert error.value.where.startswith("data.augmentation")
