"""The embedded data set is what its manifest says, and nothing of a test can be learnt in training."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

EMBEDDED = Path(__file__).parents[2] / "src" / "troth" / "data" / "embedded"
SPLITS = ("train", "retrieval", "concept", "style-shift")


@dataclass(frozen=True)
class Sample:
    key: str
    webp: bytes
    record: dict[str, Any]

    @property
    def first_caption(self) -> str:
        caption: str = self.record["captions"][0]
        return caption.casefold()


@cache
def manifest() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((EMBEDDED / "manifest.json").read_text("utf-8"))
    return loaded


@cache
def members(shard: str) -> list[tuple[tarfile.TarInfo, bytes]]:
    with gzip.open(EMBEDDED / shard) as packed:
        unpacked = packed.read()
    with tarfile.open(fileobj=io.BytesIO(unpacked), mode="r:") as tar:
        return [(member, unpacked[member.offset_data : member.offset_data + member.size]) for member in tar]


@cache
def samples(split: str) -> list[Sample]:
    found = []
    for shard, facts in manifest()["shards"].items():
        if facts["split"] == split:
            pairs = members(shard)
            for (image, webp), (text, record) in zip(pairs[::2], pairs[1::2], strict=True):
                key = image.name.removesuffix(".webp")
                assert (image.name, text.name) == (f"{key}.webp", f"{key}.json"), f"{shard}: {image.name}, {text.name}"
                found.append(Sample(key, webp, json.loads(record)))
    return found


def concepts(split: str) -> set[str]:
    return {sample.record["concept"] for sample in samples(split) if "concept" in sample.record}


def plain_name(name: str) -> str:
    return name.casefold().replace("flag: ", "flag of ")


def test_size_is_bounded() -> None:
    shards = list(EMBEDDED.glob("*.tar.gz"))
    assert {path.name for path in shards} == set(manifest()["shards"])
    assert sum(path.stat().st_size for path in shards) < 29_000_000
    assert max(path.stat().st_size for path in shards) < 5_000_000


def test_shards_are_those_of_the_manifest() -> None:
    for name, facts in manifest()["shards"].items():
        content = (EMBEDDED / name).read_bytes()
        assert (len(content), sha256(content).hexdigest()) == (facts["bytes"], facts["sha256"]), name
        assert len(members(name)) == 2 * facts["samples"], name
        assert {(member.mtime, member.uid, member.gid) for member, _ in members(name)} == {(0, 0, 0)}, name


@pytest.mark.parametrize("split", SPLITS)
def test_every_sample_is_whole(split: str) -> None:
    assert len(samples(split)) == manifest()["counts"][split]
    for sample in samples(split):
        captions = sample.record["captions"]
        assert captions, sample.key
        assert all(isinstance(text, str) and text == text.strip() != "" for text in captions), sample.key
        assert {"category", "style", "license"} <= set(sample.record), sample.key
        assert sample.webp[:4] == b"RIFF", sample.key
        assert sample.webp[8:12] == b"WEBP", sample.key


@pytest.mark.parametrize("split", SPLITS)
def test_images_decode_at_the_stated_size(split: str) -> None:
    side = manifest()["image"]["side"]
    for sample in samples(split)[::50]:
        with Image.open(io.BytesIO(sample.webp)) as image:
            image.load()
            assert (image.format, image.mode, image.size) == ("WEBP", "RGB", (side, side)), sample.key
            assert image.convert("L").getextrema() != (255, 255), f"{sample.key} is blank"


def test_keys_are_unique_and_safe() -> None:
    keys = [sample.key for split in SPLITS for sample in samples(split)]
    assert len(set(keys)) == len(keys)
    unsafe = [key for key in keys if not key.replace("-", "").isalnum() or not key.isascii() or key != key.lower()]
    assert not unsafe


def test_no_style_of_the_test_is_in_training() -> None:
    assert {sample.record["style"] for sample in samples("train")} == {"openclipart", "noto", "openmoji"}
    assert {sample.record["style"] for sample in samples("style-shift")} == {"twemoji"}
    assert {sample.record["style"] for sample in samples("concept")} == {"noto", "openmoji"}
    assert {sample.record["style"] for sample in samples("retrieval")} == {"openclipart"}


def test_no_held_out_concept_is_in_training() -> None:
    held_out = {sample.record["concept"] for sample in samples("style-shift") if sample.record["held_out"]}
    assert held_out == concepts("concept")
    assert not held_out & concepts("train")
    assert held_out | concepts("train") == concepts("style-shift")
    assert 0.08 < len(held_out) / len(concepts("style-shift")) < 0.12


def test_no_name_of_a_held_out_concept_is_a_training_caption() -> None:
    names = {plain_name(sample.record["name"]) for sample in samples("concept")}
    captions = {plain_name(text) for sample in samples("train") for text in sample.record["captions"]}
    assert not names & captions


def test_gender_variants_are_held_out_together() -> None:
    """A code with a gender sign appended is on the same side as the code without it."""
    training, held_out = concepts("train"), concepts("concept")
    for concept in training | held_out:
        for sign in ("200d-2640", "200d-2642"):
            if (other := f"{concept}-{sign}") in training | held_out:
                assert (concept in training) == (other in training), other


def test_tests_have_no_skin_tones() -> None:
    assert not [sample.key for split in SPLITS[1:] for sample in samples(split) if "tone" in sample.record]
    assert [sample.key for sample in samples("train") if "tone" in sample.record]


def test_retrieval_captions_are_unique_and_unseen() -> None:
    tested = [sample.first_caption for sample in samples("retrieval")]
    assert len(set(tested)) == len(tested)
    trained = {text.casefold() for sample in samples("train") for text in sample.record["captions"]}
    assert not set(tested) & trained
