"""Noisy data sets: what they hold, what they do not, and the answers beside them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from troth.bench.data import opaque_key, pairs_source, prepare, share_features, training_pairs
from troth.bench.settings import Place, Setting
from troth.data import CaptionAssignment
from troth.embed import FeatureCache, FrozenEncoders
from troth.encoders import Heads
from troth.train import teacher
from troth.train.teacher import encode_pictures
from troth.train.teacher_tower import FrozenTower, load_stages, load_tower

pytestmark = pytest.mark.usefixtures("small_yardstick")


def place_of(folder: Path, name: str, seed: int = 0) -> Place:
    place = Place(folder, Setting.parse(name), seed)
    prepare(place)
    return place


@pytest.mark.parametrize("name", ["uniform-40", "same-category-10", "foreign-30"])
def test_each_picture_has_the_captions_of_its_given_owner_and_nothing_else(tmp_path: Path, name: str) -> None:
    place = place_of(tmp_path, name)
    source, reserve = training_pairs(place.setting)
    given, answers = pairs_source(place.pairs).open(), CaptionAssignment.load(place.answers, source.fingerprint)
    assert len(given) == len(source)
    assert not list(given.ledger)
    for row in range(len(source)):
        owner = int(answers.caption_of[row])
        captions = source.captions(owner) if owner < len(source) else reserve.captions(owner - len(source))
        assert given.captions(row) == captions
        assert given.key(row) == opaque_key(source.key(row))
        assert given.read_image(row) == source.read_image(row)
        assert given.category(row) is None
        assert given.metadata(row) == {}
        if answers.mismatched[row]:
            assert not set(captions) & set(source.captions(row))
    assert answers.mismatched.sum() == round(place.setting.rate * len(source))


def test_no_word_of_an_own_caption_is_left_in_the_tar(tmp_path: Path) -> None:
    place = place_of(tmp_path, "foreign-40")
    source, _ = training_pairs(place.setting)
    answers = CaptionAssignment.load(place.answers)
    content = place.pairs.read_bytes()
    kept = {caption for row in np.flatnonzero(~answers.mismatched) for caption in source.captions(int(row))}
    own = [source.captions(int(row))[-1] for row in np.flatnonzero(answers.mismatched)]
    gone = [caption for caption in own if not any(caption in each for each in kept)]
    assert len(gone) > 20
    assert not [caption for caption in gone if caption.encode() in content]
    assert not [row for row in range(len(source)) if source.key(row).encode() in content]


def test_the_right_pairs_are_those_that_are_not_wrong_in_order(tmp_path: Path) -> None:
    place = place_of(tmp_path, "uniform-40")
    source, _ = training_pairs(place.setting)
    right, answers = pairs_source(place.right).open(), CaptionAssignment.load(place.answers)
    rows = np.flatnonzero(~answers.mismatched).tolist()
    assert [right.key(index) for index in range(len(right))] == [opaque_key(source.key(row)) for row in rows]
    assert all(right.captions(index) == source.captions(row) for index, row in enumerate(rows))


def test_foreign_captions_come_from_pairs_whose_pictures_are_not_in_the_set(tmp_path: Path) -> None:
    place = place_of(tmp_path, "foreign-40")
    clean = place_of(tmp_path, "foreign-0")
    source, reserve = training_pairs(place.setting)
    answers = CaptionAssignment.load(place.answers)
    assert (answers.caption_of[answers.mismatched] >= len(source)).all()
    keys = {source.key(row) for row in range(len(source))}
    assert not keys & {reserve.key(row) for row in range(len(reserve))}
    assert len(keys) + len(reserve) == 192
    assert len(pairs_source(clean.pairs).open()) == len(source)


def test_features_and_what_stages_see_are_shared_and_not_encoded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, cache = place_of(tmp_path, "uniform-40"), FeatureCache(tmp_path / "cache")
    sources = pairs_source(place.pairs), pairs_source(place.right)
    share_features(FrozenEncoders(Heads(), cache), sources, stages=True)
    tower, stages = (load(FrozenTower(), "float32", torch.device("cpu")) for load in (load_tower, load_stages))
    right = sources[1].open()
    alone = [encode_pictures(each, right, FeatureCache(tmp_path / "other"), 0) for each in (tower, stages)]
    monkeypatch.setattr(teacher, "collect_images", lambda *_: pytest.fail("encoded again"))
    for each, expected in zip((tower, stages), alone, strict=True):
        found = encode_pictures(each, right, cache).tensors
        assert bool(found["valid"].all())
        torch.testing.assert_close(found["features"], expected.tensors["features"], rtol=1e-3, atol=1e-4)
        encode_pictures(each, sources[0].open(), cache)


def test_the_same_seed_writes_the_same_bytes_and_another_other_ones(tmp_path: Path) -> None:
    first = place_of(tmp_path / "a", "uniform-40").pairs.read_bytes()
    assert place_of(tmp_path / "b", "uniform-40").pairs.read_bytes() == first
    assert place_of(tmp_path / "a", "uniform-40", seed=1).pairs.read_bytes() != first


def test_what_is_there_is_kept_and_what_is_missing_made_again(tmp_path: Path) -> None:
    place = place_of(tmp_path, "uniform-40")
    before = place.pairs.stat().st_mtime_ns
    prepare(place)
    assert place.pairs.stat().st_mtime_ns == before
    place.answers.unlink()
    prepare(place)
    assert CaptionAssignment.load(place.answers).mismatched.sum() == round(0.4 * 192)
