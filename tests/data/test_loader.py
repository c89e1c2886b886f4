from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.data.planted import caption_source, entries, jpeg, pairs, table_source, tar_bytes, tokenize, words, write_all
from troth.data import (
    BatchStream,
    FeatureStream,
    FolderSource,
    ImageTextStream,
    ImageTransform,
    IndexedSource,
    LoadedBatch,
    Noise,
    Plan,
    SampleError,
    TarSource,
)
from troth.errors import UserError


def augment(data: bytes) -> Tensor:
    """A transform that draws from all three global generators."""
    image = ImageTransform(image_size=8, train=True, crop_scale=(0.3, 1.0))(data)
    return image + torch.rand(()) + float(np.random.random()) + random.random()  # noqa: NPY002


def stream(source: IndexedSource, batch_size: int = 8, **options: object) -> ImageTextStream:
    transform = options.pop("image_transform", augment)
    return ImageTextStream(
        source, Plan(len(source), batch_size, seed=5), image_transform=transform, tokenize=tokenize, **options
    )


def equal(left: list[LoadedBatch], right: list[LoadedBatch]) -> bool:
    return len(left) == len(right) and all(
        torch.equal(a.batch.index, b.batch.index)
        and torch.equal(a.batch.image, b.batch.image)
        and torch.equal(a.batch.text, b.batch.text)
        and torch.equal(a.mismatched, b.mismatched)
        and a.skipped == b.skipped
        for a, b in zip(left, right, strict=True)
    )


def joined(parts: list[list[LoadedBatch]]) -> list[list[Tensor]]:
    """The parts of all ranks, put together: index, image, text and mismatched of each step."""
    return [
        [
            *(torch.cat([getattr(loaded.batch, name) for loaded in same]) for name in ("index", "image", "text")),
            torch.cat([loaded.mismatched for loaded in same]),
        ]
        for same in zip(*parts, strict=True)
    ]


@pytest.fixture
def source(tmp_path: Path) -> IndexedSource:
    """30 samples, four of them unreadable."""
    opened = table_source(tmp_path, 30)
    for number in (3, 4, 17):
        (tmp_path / f"{number}.jpg").write_bytes(b"broken")
    (tmp_path / "20.jpg").unlink()
    return opened


@pytest.mark.parametrize("mode", ["static", "batch"])
def test_batches_do_not_depend_on_workers_ranks_or_the_first_step(source: IndexedSource, mode: str) -> None:
    noise = Noise(fraction=0.5, mode=mode).bind(source, 1)
    whole = list(stream(source, noise=noise).batches(0, 7))
    assert all(len(loaded.batch) == 8 and loaded.batch.image.shape == (8, 3, 8, 8) for loaded in whole)
    assert sum(int(loaded.mismatched.sum()) for loaded in whole) > 10
    assert equal(whole, list(stream(source, noise=noise, num_workers=2).batches(0, 7)))
    for start in (1, 4):
        assert equal(whole[start:], list(stream(source, noise=noise).batches(start, 7)))
    for world_size in (2, 4):
        parts = [
            list(stream(source, noise=noise, rank=rank, world_size=world_size).batches(0, 7))
            for rank in range(world_size)
        ]
        for left, right in zip(joined(parts), joined([whole]), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def test_rows_are_what_they_say(source: IndexedSource) -> None:
    noise = Noise(fraction=0.5).bind(source, 1)
    for loaded in stream(source, noise=noise).batches(0, 9):
        for index, text, wrong in zip(loaded.batch.index, words(loaded.batch.text), loaded.mismatched, strict=True):
            assert text == f"caption {noise.caption_of[index]}"
            assert wrong == noise.mismatched[index]
        assert len(loaded.batch.index.unique()) == 8


def test_unreadable_samples_are_replaced_by_rule_and_told(source: IndexedSource) -> None:
    plan = Plan(30, 8, seed=5)
    bad = {3, 4, 17, 20}
    running = stream(source)
    for step, loaded in enumerate(running.batches(0, 3)):
        expected, skipped = [], []
        for row, sample in enumerate(plan.indices(step).tolist()):
            attempt = 0
            while sample in bad:
                skipped.append(f"{sample}.jpg")
                attempt += 1
                sample = plan.replacement(step, row, attempt)
            expected.append(sample)
        assert loaded.batch.index.tolist() == expected
        assert [entry.key for entry in loaded.skipped] == skipped
        assert bad.isdisjoint(expected)
    reasons = {("3.jpg", "corrupt-image"), ("4.jpg", "corrupt-image"), ("17.jpg", "corrupt-image")}
    assert entries(running.ledger) <= reasons | {("20.jpg", "missing-file")}
    assert len(running.ledger) >= 3
    assert not list(source.ledger)


def test_batch_noise_with_replaced_rows_is_marked_rightly(source: IndexedSource) -> None:
    noise = Noise(fraction=0.5, mode="batch").bind(source, 1)
    plan = Plan(30, 8, seed=5)
    replaced = 0
    for step, loaded in enumerate(stream(source, noise=noise).batches(0, 12)):
        planned = plan.indices(step)
        caption_of, _ = noise.draw(planned, step)
        for row, (index, text) in enumerate(zip(loaded.batch.index.tolist(), words(loaded.batch.text), strict=True)):
            own = caption_of[row] == planned[row]
            assert text == f"caption {index if own else caption_of[row]}"
            assert bool(loaded.mismatched[row]) == (text != f"caption {index}")
            replaced += int(index != planned[row])
    assert replaced >= 8


def test_loading_leaves_the_global_generators_alone(source: IndexedSource) -> None:
    def draws() -> tuple[float, float, float]:
        return torch.rand(()).item(), float(np.random.random()), random.random()  # noqa: NPY002

    for workers in (0, 1):
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        random.seed(0)
        batches = stream(source, num_workers=workers).batches(0, 2)
        next(batches)
        next(batches)
        after = draws()
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        random.seed(0)
        assert draws() == after
        batches.close()


def test_epochs_differ_in_augmentation_and_caption(tmp_path: Path) -> None:
    write_all(tmp_path, {f"{number}.jpg": jpeg(number) for number in range(16)})
    write_all(tmp_path, {f"{number}.txt": b"one\ntwo\nthree" for number in range(16)})
    running = stream(FolderSource(path=str(tmp_path)).open(), batch_size=16)
    first, second = ({}, {})
    for kept, loaded in zip((first, second), running.batches(0, 2), strict=True):
        rows = zip(loaded.batch.index.tolist(), loaded.batch.image, words(loaded.batch.text), strict=True)
        kept.update({index: (image, text) for index, image, text in rows})
    assert {text for _, text in first.values()} == {"one", "two", "three"}
    assert any(first[index][1] != second[index][1] for index in first)
    assert not any(torch.equal(first[index][0], second[index][0]) for index in first)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_source_without_a_readable_sample_is_a_user_error(tmp_path: Path, workers: int) -> None:
    source = table_source(tmp_path, 10)
    for number in range(10):
        (tmp_path / f"{number}.jpg").unlink()
    with pytest.raises(UserError, match=r"samples in a row cannot be read.*missing-file") as caught:
        list(stream(source, num_workers=workers).batches(0, 1))
    assert "\n" not in str(caught.value)


def test_one_readable_sample_is_enough_to_keep_going(tmp_path: Path) -> None:
    source = table_source(tmp_path, 10)
    for number in range(9):
        (tmp_path / f"{number}.jpg").unlink()
    [loaded] = stream(source).batches(0, 1)
    assert set(loaded.batch.index.tolist()) == {9}


def test_user_errors_of_streams(source: IndexedSource) -> None:
    with pytest.raises(UserError, match="use at most 30"):
        stream(source, batch_size=31)
    with pytest.raises(UserError, match="cannot be divided among 3"):
        stream(source, world_size=3)
    with pytest.raises(UserError, match=r"noise\.fraction"):
        stream(source, noise=Noise(fraction=0.1, mode="batch").bind(source, 0))
    other = caption_source([[f"{number}"] for number in range(30)])
    with pytest.raises(UserError, match="drawn for another data set"):
        stream(source, noise=Noise(fraction=0.5).bind(other, 0))


def test_foreign_captions_reach_the_batch(source: IndexedSource) -> None:
    reserve = caption_source([[f"foreign {number}"] for number in range(20)])
    noise = Noise(fraction=0.5, partners="foreign").bind(source, 0, reserve)
    running = stream(source, noise=noise, reserve=reserve)
    for loaded in running.batches(0, 3):
        for text, wrong in zip(words(loaded.batch.text), loaded.mismatched, strict=True):
            assert text.startswith("foreign") == bool(wrong)
    assert running.fingerprint != stream(source).fingerprint == source.fingerprint


def features_of(source: IndexedSource, reserve: IndexedSource | None = None) -> tuple[list[str], Tensor]:
    """All captions in any order, and features that are the number in the caption."""
    both = [source] if reserve is None else [source, reserve]
    found = sorted({text for each in both for row in range(len(each)) for text in each.captions(row)}, reverse=True)
    return found, torch.tensor([[float(text.split()[-1])] for text in found])


@pytest.mark.parametrize("mode", ["static", "batch"])
def test_features_come_in_the_same_batches(tmp_path: Path, mode: str) -> None:
    source = table_source(tmp_path, 24)
    noise = Noise(fraction=0.5, mode=mode).bind(source, 1)
    captions, text_features = features_of(source)
    plan = Plan(24, 8, seed=5)
    image_features = torch.arange(24.0)[:, None].half()
    streams: list[BatchStream] = [
        FeatureStream(
            source,
            plan,
            image_features=image_features,
            captions=captions,
            text_features=text_features,
            noise=noise,
            rank=rank,
            world_size=2,
        )
        for rank in range(2)
    ]
    assert streams[0].fingerprint == streams[1].fingerprint
    # What is trained on is the features' bits: a picture encoded anew is other data, and a resume must notice.
    changed = FeatureStream(
        source,
        streams[0].plan,
        image_features=image_features + 1e-3,
        captions=captions,
        text_features=text_features,
        noise=noise,
    )
    assert changed.fingerprint != streams[0].fingerprint
    pictures = list(stream(source, noise=noise).batches(2, 6))
    for (index, image, text, wrong), expected in zip(
        joined([list(each.batches(2, 6)) for each in streams]), pictures, strict=True
    ):
        assert torch.equal(index, expected.batch.index)
        assert torch.equal(wrong, expected.mismatched)
        assert torch.equal(image[:, 0], index.float())
        assert [f"caption {int(value)}" for value in text[:, 0]] == words(expected.batch.text)


def test_only_valid_features_take_part() -> None:
    source = caption_source([[f"a {number}", f"b {100 + number}"] for number in range(20)])
    reserve = caption_source([[f"r {200 + number}"] for number in range(20)])
    captions, text_features = features_of(source, reserve)
    valid = torch.arange(20) % 4 != 0
    options = {"captions": captions, "text_features": text_features, "image_features": torch.zeros(20, 3)}
    noise = Noise(fraction=0.5, partners="foreign").bind(source, 0, reserve)
    running = FeatureStream(source, Plan(15, 5, 0), valid=valid, noise=noise, reserve=reserve, **options)
    assert (running.num_samples, running.steps_per_epoch) == (20, 3)
    met = [loaded.batch for loaded in running.batches(0, 3)]
    assert sorted(torch.cat([batch.index for batch in met]).tolist()) == valid.nonzero()[:, 0].tolist()
    for loaded in running.batches(0, 6):
        for index, value, wrong in zip(loaded.batch.index, loaded.batch.text[:, 0], loaded.mismatched, strict=True):
            assert (value >= 200) == wrong
            assert wrong or value in (index, 100 + index)
    with pytest.raises(UserError, match="20 samples and 15 have"):
        FeatureStream(source, Plan(20, 5, 0), valid=valid, **options)
    with pytest.raises(UserError, match="have no features"):
        FeatureStream(source, Plan(20, 5, 0), **{**options, "captions": ["other"] * 60})


def test_a_folder_full_of_faults_trains_an_epoch_and_the_ledger_is_exact(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    planted: set[tuple[str, str]] = set()
    folder = tmp_path / "pictures"
    for number in range(200):
        name = f"{number % 7}/{number:03d}"
        image, text = jpeg(number), f"caption {number}".encode()
        if number % 20 == 3:
            image = image[: int(rng.integers(20, len(image) - 20))]
            planted.add((f"{name}.jpg", "corrupt-image"))
        elif number % 40 == 7:
            image = b""
            planted.add((f"{name}.jpg", "empty-file"))
        elif number % 40 == 11:
            text = b"\xff\xfe caption"
            planted.add((f"{name}.jpg", "bad-encoding"))
        elif number % 40 == 13:
            text = b" \n"
            planted.add((f"{name}.jpg", "empty-caption"))
        write_all(folder, {f"{name}.jpg": image, f"{name}.txt": text})
    source = FolderSource(path=str(folder)).open()
    running = stream(source, batch_size=10, num_workers=2)
    assert len(source) == 190
    met = [loaded.batch.index for loaded in running.batches(0, running.steps_per_epoch)]
    assert [len(index) for index in met] == [10] * 19
    assert entries(running.ledger) == planted
    assert running.ledger.counts() == {
        "empty-file": 5,
        "corrupt-image": 10,
        "empty-caption": 5,
        "bad-encoding": 5,
    }

    members = dict(pairs(30))
    members["0005.jpg"] = members["0005.jpg"][:300]
    members["0011.txt"] = b"\xff"
    members["0012.jpg"] = b""
    whole = tar_bytes(list(members.items()))
    (tmp_path / "cut.tar").write_bytes(whole[: whole.index(b"0025.jpg") + 700])
    shard = TarSource(urls=str(tmp_path / "cut.tar")).open()
    running = stream(shard, batch_size=6)
    assert len(shard) == 24
    assert sum(len(loaded.batch) for loaded in running.batches(0, running.steps_per_epoch)) == 24
    assert entries(running.ledger) == {
        ("cut/0005", "corrupt-image"),
        ("cut/0011", "bad-encoding"),
        ("cut/0012", "empty-file"),
        ("cut", "broken-member"),
    }


def test_a_transforms_own_sample_errors_are_skipped_too(tmp_path: Path) -> None:
    def picky(data: bytes) -> Tensor:
        if data == jpeg(2):
            raise SampleError("", "image-too-large", "for this test")
        return torch.zeros(3, 2, 2)

    running = stream(table_source(tmp_path, 8), batch_size=4, image_transform=picky)
    assert sum(len(loaded.skipped) for loaded in running.batches(0, 2)) == 1
    assert entries(running.ledger) == {("2.jpg", "image-too-large")}
