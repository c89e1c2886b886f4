"""The stream of unpaired images and captions: two orders, and batches that are functions of the step."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.data.planted import caption_source, table_source, tokenize, words
from tests.data.test_loader import augment
from troth.data import (
    DetectionTruth,
    FeatureStream,
    ImageTextStream,
    IndexedSource,
    LoadedBatch,
    Plan,
    UnpairedPlans,
    UnpairedStream,
    UnpairedTexts,
)
from troth.data.unpaired import UnpairedOrder
from troth.errors import UserError
from troth.train import TaughtStream
from troth.train.teacher import FeatureTable


@pytest.fixture
def source(tmp_path: Path) -> IndexedSource:
    """30 samples, two of them unreadable."""
    opened = table_source(tmp_path, 30)
    for number in (3, 17):
        (tmp_path / f"{number}.jpg").write_bytes(b"broken")
    return opened


def stream(
    source: IndexedSource,
    *,
    texts: IndexedSource | None = None,
    with_pairs: bool = False,
    taught: bool = False,
    seed: int = 5,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    order: UnpairedOrder = "independent",
) -> UnpairedStream:
    """Ten pairs a step for two epochs, then six images and six captions for two passes."""
    ranks = {"rank": rank, "world_size": world_size}
    texts = texts or source
    plans = UnpairedPlans.draw(len(source), len(texts), 6, seed, world_size, order)
    make = {"image_transform": augment, "tokenize": tokenize, "num_workers": num_workers, **ranks}
    pairs = ImageTextStream(source, Plan(len(source), 10, seed), **make)
    noise = UnpairedTexts(plans.texts, len(source), texts.fingerprint)
    unpaired = ImageTextStream(source, plans.images, noise=noise, reserve=texts, **make)
    given = TaughtStream(pairs, FeatureTable(torch.arange(30.0)[:, None], "a table")) if taught else pairs
    truth = DetectionTruth(source, texts, "caption")
    return UnpairedStream(given, unpaired, plans, truth, paired_epochs=2, epochs=2, with_pairs=with_pairs, **ranks)


def tensors(loaded: LoadedBatch) -> list[Tensor]:
    batch, rows = loaded.batch, loaded.unpaired
    known = [] if rows is None else [rows.image_truth, rows.text_truth]
    return [batch.index, batch.image, batch.text, loaded.mismatched, *known]


def equal(left: list[LoadedBatch], right: list[LoadedBatch]) -> bool:
    return len(left) == len(right) and all(
        a.skipped == b.skipped and all(torch.equal(x, y) for x, y in zip(tensors(a), tensors(b), strict=True))
        for a, b in zip(left, right, strict=True)
    )


def test_the_first_stage_is_the_stream_of_pairs_and_the_second_follows(source: IndexedSource) -> None:
    both = stream(source)
    assert (both.paired_steps, both.total_steps(2)) == (6, 6 + 2 * 5)
    batches = list(both.batches(0, 16))
    pairs = ImageTextStream(source, Plan(30, 10, 5), image_transform=augment, tokenize=tokenize)
    assert equal(batches[:6], list(pairs.batches(0, 6)))
    for loaded in batches[6:]:
        assert loaded.unpaired is not None
        assert loaded.unpaired.num_paired == len(loaded.mismatched) == 0
        assert loaded.batch.image.shape == (6, 3, 8, 8)
        assert loaded.batch.index.tolist() == [-1] * 6


def test_epochs_are_those_of_the_larger_source_in_the_second_stage(source: IndexedSource) -> None:
    both = stream(source, texts=caption_source([[f"text {number}"] for number in range(50)]))
    assert both.total_steps(2) == 6 + 2 * 8
    complete = [both.epochs_complete(done) for done in range(23)]
    assert [done for done, (_, ended) in enumerate(complete) if ended] == [0, 3, 6, 14, 22]
    assert [complete[done][0] for done in (0, 2, 3, 5, 6, 13, 14, 21, 22)] == [0, 0, 1, 1, 2, 2, 3, 3, 4]


@pytest.mark.parametrize("with_pairs", [False, True])
def test_batches_do_not_depend_on_workers_ranks_or_the_first_step(source: IndexedSource, with_pairs: bool) -> None:
    whole = list(stream(source, with_pairs=with_pairs).batches(0, 16))
    assert any(loaded.skipped for loaded in whole[6:])
    for start in (3, 6, 11):
        assert equal(list(stream(source, with_pairs=with_pairs).batches(start, 16)), whole[start:])
    assert equal(list(stream(source, with_pairs=with_pairs, num_workers=2).batches(4, 9)), whole[4:9])
    assert equal(list(stream(source, with_pairs=with_pairs).batches(2, 5)), whole[2:5])
    assert not list(stream(source).batches(16, 16))
    halves = [list(stream(source, with_pairs=with_pairs, rank=rank, world_size=2).batches(5, 16)) for rank in (0, 1)]
    for first, second, both in zip(*halves, whole[5:], strict=True):
        start = 0 if both.unpaired is None else both.unpaired.num_paired
        half = start // 2 if both.unpaired is not None else 5
        for one, two, all_rows in zip(tensors(first)[:3], tensors(second)[:3], tensors(both)[:3], strict=True):
            assert torch.equal(torch.cat([one[:half], two[:half], one[half:], two[half:]]), all_rows)


def test_the_two_orders_are_independent() -> None:
    plans = UnpairedPlans.draw(1000, 1000, 100, seed=1)
    images, texts = (np.concatenate([plan.indices(step) for step in range(10)]) for plan in (plans.images, plans.texts))
    assert sorted(images) == sorted(texts) == list(range(1000))
    assert (images == texts).mean() < 0.01
    assert abs(np.corrcoef(images, texts)[0, 1]) < 0.1
    # How many of a batch's images have their caption in it: a tenth, as chance has it, not all.
    together = [np.isin(plans.images.indices(step), plans.texts.indices(step)).mean() for step in range(10)]
    assert 0.05 < np.mean(together) < 0.15
    again = np.concatenate([plans.texts.indices(step) for step in range(10, 20)])
    assert (again == texts).mean() < 0.01


def test_aligned_batches_hold_the_partners_of_all_images_in_rows_that_tell_nothing() -> None:
    plans = UnpairedPlans.draw(1000, 1000, 100, seed=1, order="aligned")
    independent = UnpairedPlans.draw(1000, 1000, 100, seed=1)
    assert plans.images == independent.images
    assert plans.steps_per_epoch == 10
    rows = []
    for step in range(60):
        images, texts = plans.images.indices(step), plans.texts.indices(step)
        assert sorted(images) == sorted(texts)
        assert np.array_equal(texts, plans.texts.indices(step))
        rows.append((np.argsort(np.argsort(images)), np.argsort(np.argsort(texts))))
    place = np.array(rows)
    assert 0.005 < (place[:, 0] == place[:, 1]).mean() < 0.015  # one row in a hundred, as chance has it
    for images, texts in rows:
        assert abs(np.corrcoef(images, texts)[0, 1]) < 0.4
    # Nor is the partner always in the same other row.
    found = np.array([[int(np.flatnonzero(texts == image)[0]) for image in images] for images, texts in rows])
    assert (found == found[0]).mean(axis=1)[1:].max() < 0.1


def test_an_aligned_stream_holds_the_caption_of_every_image(source: IndexedSource) -> None:
    for loaded, pictures in zip(stream(source, order="aligned").batches(6, 16), _pictures(source), strict=True):
        assert loaded.unpaired is not None
        planned = {f"caption {image}" for image in pictures}
        captions = set(words(loaded.batch.text))
        assert len(planned & captions) >= 6 - len(loaded.skipped)
    halves = [list(stream(source, order="aligned", rank=rank, world_size=2).batches(6, 9)) for rank in (0, 1)]
    for first, second, both in zip(*halves, stream(source, order="aligned").batches(6, 9), strict=True):
        assert torch.equal(torch.cat([first.batch.text, second.batch.text]), both.batch.text)
    assert stream(source, order="aligned").fingerprint != stream(source).fingerprint


def test_sources_of_two_sizes_cannot_be_aligned() -> None:
    with pytest.raises(UserError, match="10 unpaired images and 9 texts cannot be read in one order") as caught:
        UnpairedPlans.draw(10, 9, 4, seed=0, order="aligned")
    assert "unpaired.order" in str(caught.value)
    assert 'use "independent"' in str(caught.value)


def test_each_pass_shows_every_caption_once(source: IndexedSource) -> None:
    seen = [word for loaded in stream(source).batches(6, 11) for word in words(loaded.batch.text)]
    assert sorted(seen) == sorted(f"caption {number}" for number in range(30))


def test_pairs_come_first_with_all_that_is_known_of_them(source: IndexedSource) -> None:
    joined = stream(source, with_pairs=True, taught=True)
    pairs = ImageTextStream(source, Plan(30, 10, 5), image_transform=augment, tokenize=tokenize)
    for loaded, given in zip(joined.batches(6, 9), pairs.batches(6, 9), strict=True):
        assert loaded.unpaired is not None
        assert loaded.unpaired.num_paired == 10
        assert len(loaded.batch) == 16
        assert torch.equal(loaded.batch.index, torch.cat([given.batch.index, torch.full((6,), -1)]))
        assert torch.equal(loaded.batch.text[:10], given.batch.text)
        assert torch.equal(loaded.teacher_image[:, 0], given.batch.index.float())
        assert len(loaded.mismatched) == 10
    assert joined.fingerprint != stream(source, with_pairs=True).fingerprint


def test_the_truth_is_in_the_captions_of_the_images_source(source: IndexedSource) -> None:
    right = 0
    for loaded, plain in zip(stream(source).batches(6, 16), _pictures(source), strict=True):
        assert loaded.unpaired is not None
        texts = words(loaded.batch.text)
        for i, image in enumerate(plain):
            for j, text in enumerate(texts):
                fit = bool((loaded.unpaired.image_truth[i] == loaded.unpaired.text_truth[j]).any())
                assert fit == (text == f"caption {image}")
                right += fit
    assert right > 3


def _pictures(source: IndexedSource) -> list[list[int]]:
    """Which sample each image of the second stage is, stand-ins included."""
    plan = UnpairedPlans.draw(30, 30, 6, 5).images
    loaded = ImageTextStream(source, plan, image_transform=augment, tokenize=tokenize).batches(0, 10)
    return [[int(source.captions(i)[0].split()[1]) for i in batch.batch.index.tolist()] for batch in loaded]


def test_the_truth_may_be_the_category() -> None:
    images = caption_source([["x"]] * 4, ["a", "b", None, "c"])
    texts = caption_source([["1", "2"], ["3"], ["4"]], ["b", None, "a"])
    truth = DetectionTruth(images, texts, "category")
    found, named = truth.rows(np.arange(4), np.array([0, 1, 2, 0]), Plan(4, 4, 0), 0)
    assert found[:, 0].tolist()[2] == named.tolist()[1] == -1
    assert found[3, 0] == 0
    assert found[0, 0] == named[2] > 0
    assert found[1, 0] == named[0] == named[3] > 0
    with pytest.raises(UserError, match=r"unpaired\.truth: captions knows no categories"):
        DetectionTruth(images, caption_source([["x"]]), "category")


def test_frozen_features_come_in_the_same_orders() -> None:
    images, texts = caption_source([["own"]] * 12), caption_source([[f"a{n}", f"b{n}"] for n in range(9)])
    plans = UnpairedPlans.draw(11, 9, 4, seed=2)
    captions = ["own", *(f"{which}{n}" for n in range(9) for which in "ab")]
    valid = torch.arange(12) != 7
    made = FeatureStream(
        images,
        plans.images,
        image_features=torch.arange(12.0)[:, None],
        captions=captions,
        text_features=torch.arange(19.0)[:, None],
        valid=valid,
        noise=UnpairedTexts(plans.texts, 12, texts.fingerprint),
        reserve=texts,
    )
    truth = DetectionTruth(images, texts, "caption")
    both = UnpairedStream(made, made, plans, truth, paired_epochs=1, epochs=3, with_pairs=False)
    assert both.total_steps(1) == 2 + 3 * 2
    ids = valid.nonzero()[:, 0]
    for step, loaded in enumerate(both.batches(2, 8)):
        assert loaded.unpaired is not None
        assert loaded.batch.image[:, 0].tolist() == ids[plans.images.indices(step)].tolist()
        numbers = loaded.batch.text[:, 0].long()
        assert ((numbers - 1) // 2).tolist() == plans.texts.indices(step).tolist()
        assert loaded.unpaired.text_truth.tolist() == numbers.tolist()
        assert not loaded.unpaired.image_truth.any()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((10, 5, 6, 1), "a batch of 6 from 5 unpaired texts"),
        ((5, 10, 6, 1), "a batch of 6 from 5 unpaired images"),
        ((10, 10, 5, 2), "cannot be divided among 2"),
    ],
)
def test_a_batch_that_cannot_be_is_said(sizes: tuple[int, int, int, int], message: str) -> None:
    images, texts, batch, ranks = sizes
    with pytest.raises(UserError, match=message) as caught:
        UnpairedPlans.draw(images, texts, batch, 0, ranks)
    assert "unpaired.batch_size" in str(caught.value)
