"""External teachers: what they read, what they never read, and what is kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from pydantic import TypeAdapter
from safetensors.torch import save_file

from tests.embed.test_features import Colours
from troth.clustering import pca
from troth.data import CaptionAssignment, Noise, TableSource
from troth.data.source import IndexedSource
from troth.embed import FeatureCache
from troth.encoders import FrozenTextEncoder
from troth.errors import UserError
from troth.train import ExternalTeacherConfig, FileTeacher, ImageTeacher, TaughtData, TextTeacher, external_teacher
from troth.train.teacher_tower import FrozenTower

DIMS = 8


class Letters:
    """A text encoder whose features count letters; it remembers what it was asked, and is no unit vector."""

    dim, weights_hash, tokenization, precision = DIMS, "letters", "a to h", "float32"
    asked: list[str]

    def __init__(self, name: str, **_: object) -> None:
        assert name == "letters"

    def encode(self, captions: tuple[str, ...], on_progress: object = None) -> torch.Tensor:
        type(self).asked += captions
        return torch.stack([self.of(caption) for caption in captions])

    @staticmethod
    def of(caption: str) -> torch.Tensor:
        return torch.tensor([1.0 + caption.count(letter) for letter in "abcdefgh"])


@pytest.fixture
def letters(monkeypatch: pytest.MonkeyPatch) -> type[Letters]:
    Letters.asked = []
    monkeypatch.setattr(external_teacher, "FrozenTextEncoder", Letters)
    return Letters


def pairs(folder: Path, name: str, count: int, seed: int) -> IndexedSource:
    """Samples of one or two captions, all different."""
    draw = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        for _ in range(1 + number % 2):
            words = " ".join("".join(draw.choice(list("abcdefgh"), 4)) for _ in range(3))
            rows.append(f"{name}{number}.png,{words} {name}")
    path = folder / f"{name}.csv"
    path.write_text("\n".join(["image,caption", *rows]), encoding="utf-8")
    return TableSource(path=str(path)).open()


def expected(captions: tuple[str, ...]) -> torch.Tensor:
    total = torch.zeros(DIMS, dtype=torch.float64)
    for caption in captions:
        row = Letters.of(caption).double()
        total += row / row.square().sum().sqrt()
    return total / len(captions)


def test_a_pair_has_the_mean_of_its_captions_unit_features(tmp_path: Path, letters: type[Letters]) -> None:
    source = pairs(tmp_path, "x", 20, 0)
    assert [len(source.captions(i)) for i in (0, 1)] == [1, 2]
    data = TaughtData(source, CaptionAssignment.clean(source), cache=FeatureCache(tmp_path))
    found = TextTeacher(encoder="letters", dims=None).build(data).features
    assert found.dtype == torch.float32
    wanted = torch.stack([expected(source.captions(i)) for i in range(20)])
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-6)
    reduced = TextTeacher(encoder="letters", dims=3).build(data)
    torch.testing.assert_close(reduced.features, pca(found, 3))
    assert len(letters.asked) == 30, "the second teacher read the first one's features"
    few = TaughtData(pairs(tmp_path, "y", 4, 0), CaptionAssignment.clean(pairs(tmp_path, "y", 4, 0)), cache=data.cache)
    with pytest.raises(UserError, match="4 points have no 5 principal components") as error:
        TextTeacher(encoder="letters", dims=5).build(few)
    assert error.value.where == "dims"
    again = TextTeacher(encoder="letters", dims=3).build(data)
    assert torch.equal(again.features, reduced.features)
    assert again.identity == reduced.identity != TextTeacher(encoder="letters", dims=2).build(data).identity


@pytest.mark.parametrize("partners", ["uniform", "foreign"])
def test_it_reads_the_captions_that_pairs_have_and_no_others(
    tmp_path: Path, letters: type[Letters], partners: str
) -> None:
    source = pairs(tmp_path, "x", 40, 0)
    reserve = pairs(tmp_path, "r", 40, 1) if partners == "foreign" else None
    noise = Noise(fraction=0.5, partners=partners).bind(source, 3, reserve)
    data = TaughtData(source, noise, reserve, cache=FeatureCache(tmp_path))
    found = TextTeacher(encoder="letters", dims=None).build(data).features.double()
    wrong = 0
    for index, owner in enumerate(noise.caption_of.tolist()):
        given = source.captions(owner) if owner < 40 else reserve.captions(owner - 40)
        torch.testing.assert_close(found[index], expected(given), rtol=0, atol=1e-6)
        if noise.mismatched[index]:
            wrong += 1
            assert (found[index] - expected(source.captions(index))).norm() > 1e-3, "the truth leaked"
    assert wrong == 20
    if partners == "foreign":
        # Captions that were taken away belong to no pair any more: nothing may be computed from them.
        lost = {text for index in np.flatnonzero(noise.mismatched) for text in source.captions(int(index))}
        assert lost.isdisjoint(letters.asked)
        assert any(text.endswith(" r") for text in letters.asked)


def test_noise_of_every_batch_is_refused(tmp_path: Path) -> None:
    source = pairs(tmp_path, "x", 20, 0)
    noise = Noise(fraction=0.5, mode="batch").bind(source, 3)
    with pytest.raises(UserError, match="new captions at each step") as error:
        TextTeacher().build(TaughtData(source, noise))
    assert error.value.where == "data.noise.mode"


def test_minilm_teaches(tmp_path: Path) -> None:
    source = pairs(tmp_path, "x", 8, 0)
    data = TaughtData(source, CaptionAssignment.clean(source), cache=FeatureCache(tmp_path))
    found = TextTeacher(dims=None).build(data).features
    encoder = FrozenTextEncoder()
    for index in range(8):
        rows = torch.nn.functional.normalize(encoder.encode(source.captions(index)), dim=1)
        torch.testing.assert_close(found[index], rows.mean(dim=0), rtol=0, atol=1e-5)


def test_pictures_teach_whole_and_unreadable_ones_are_zero(tmp_path: Path) -> None:
    import timm

    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = timm.create_model("test_byobnet", pretrained=False).state_dict()
    save_file(weights, tmp_path / "tower.safetensors")
    tower = FrozenTower(
        image_encoder="timm:test_byobnet", image_size=64, image_weights=str(tmp_path / "tower.safetensors")
    )
    source = Colours(12)
    data = TaughtData(source, CaptionAssignment.clean(source), cache=FeatureCache(tmp_path))
    whole = ImageTeacher(encoder=tower, dims=None).build(data)
    readable = torch.tensor([index not in (2, 4) for index in range(12)])
    torch.testing.assert_close(whole.features.norm(dim=1), readable.float())
    assert {entry.key for entry in whole.ledger} == {"colour-2", "colour-4"}
    few = ImageTeacher(encoder=tower, dims=2).build(data)
    torch.testing.assert_close(few.features[readable], pca(whole.features[readable], 2))
    assert (few.features[~readable] == 0).all()
    assert few.identity != whole.identity


@pytest.mark.parametrize("form", ["npz", "parquet"])
def test_features_of_a_file_are_taken_by_sample_id(tmp_path: Path, form: str) -> None:
    rows = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    path = tmp_path / f"features.{form}"
    if form == "npz":
        np.savez(path, features=rows)
    else:
        order = [3, 0, 5, 1, 2, 4]
        parquet.write_table(pa.table({"id": order, "features": list(rows[order])}), path)
    source = Colours(6)
    data = TaughtData(source, CaptionAssignment.clean(source), cache=FeatureCache(tmp_path))
    plain = FileTeacher(path=str(path), dims=None).build(data)
    assert np.array_equal(plain.features.numpy(), rows)
    reduced = FileTeacher(path=str(path), dims=2).build(data)
    torch.testing.assert_close(reduced.features, pca(plain.features, 2))
    assert len({plain.identity, reduced.identity}) == 2


def _write(folder: Path, case: str) -> Path:
    rows = np.ones((6, 5), dtype=np.float32)
    path = folder / ("t.parquet" if case.startswith("table") else "t.npz")
    if case == "garbage":
        path.write_bytes(b"nothing")
    elif case == "other name":
        np.savez(path, embedding=rows)
    elif case == "short":
        np.savez(path, features=rows[:5])
    elif case == "flat":
        np.savez(path, features=rows[:, 0])
    elif case == "words":
        np.savez(path, features=np.array([["a"]] * 6))
    elif case == "nan":
        rows[2, 1] = np.nan
        np.savez(path, features=rows)
    elif case == "table garbage":
        path.write_bytes(b"nothing")
    elif case == "table without ids":
        parquet.write_table(pa.table({"features": list(rows)}), path)
    elif case == "table with a double":
        parquet.write_table(pa.table({"id": [0, 1, 2, 3, 4, 4], "features": list(rows)}), path)
    elif case == "table of lengths":
        parquet.write_table(pa.table({"id": range(6), "features": [[1.0] * (1 + i % 2) for i in range(6)]}), path)
    elif case == "table of holes":
        parquet.write_table(pa.table({"id": range(6), "features": [[1.0]] * 5 + [None]}), path)
    elif case == "table of numbers":
        parquet.write_table(pa.table({"id": range(6), "features": [1.0] * 6}), path)
    return path


@pytest.mark.parametrize(
    ("case", "where", "words"),
    [
        ("missing", "path", "no file"),
        ("garbage", "path", "no npz file"),
        ("other name", "column", "no array 'features'"),
        ("short", "path", "features of 5 samples, the data has 6"),
        ("flat", "column", "shape"),
        ("words", "column", "numbers"),
        ("nan", "column", "sample 2"),
        ("table garbage", "path", "no parquet table"),
        ("table without ids", "column", "no column 'id'"),
        ("table with a double", "path", "each once"),
        ("table of lengths", "column", "lists of one length"),
        ("table of holes", "column", "lists of one length"),
        ("table of numbers", "column", "lists of one length"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path: Path, case: str, where: str, words: str) -> None:
    path, source = _write(tmp_path, case), Colours(6)
    with pytest.raises(UserError, match=words) as error:
        FileTeacher(path=str(path), dims=None).build(TaughtData(source, CaptionAssignment.clean(source)))
    assert error.value.where == where
    assert "\n" not in str(error.value)


def test_a_missing_encoder_is_named_as_the_teacher_s(tmp_path: Path) -> None:
    source = Colours(6)
    data = TaughtData(source, CaptionAssignment.clean(source), cache=FeatureCache(tmp_path))
    with pytest.raises(UserError, match="no frozen text encoder 'gone'") as error:
        TextTeacher(encoder="gone").build(data)
    assert error.value.where == "encoder"
    with pytest.raises(UserError) as error:
        ImageTeacher(encoder=FrozenTower(image_encoder="gone")).build(data)
    assert error.value.where == "encoder.image_encoder"


def test_a_recipe_tells_them_apart_by_kind() -> None:
    adapter = TypeAdapter(ExternalTeacherConfig)
    assert adapter.validate_python({"kind": "text", "dims": None}) == TextTeacher(dims=None)
    assert adapter.validate_python({"kind": "image", "encoder": {"kind": "frozen"}}) == ImageTeacher()
    assert adapter.validate_python({"kind": "file", "path": "x.npz", "dims": 3}) == FileTeacher(path="x.npz", dims=3)
