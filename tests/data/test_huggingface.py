from __future__ import annotations

import pickle
from pathlib import Path

import datasets
import pytest

from tests.data.planted import entries, jpeg
from troth.data import HuggingFaceSource, SampleError
from troth.errors import UserError


def example() -> datasets.Dataset:
    return datasets.Dataset.from_dict(
        {
            "image": [{"bytes": jpeg(0), "path": None}, {"bytes": jpeg(1), "path": None}, None],
            "caption": [["one", "two"], [" "], ["three"]],
            "label": [1, 0, 1],
        },
        features=datasets.Features(
            {
                "image": datasets.Image(),
                "caption": datasets.List(datasets.Value("string")),
                "label": datasets.ClassLabel(names=["dog", "cat"]),
            }
        ),
    )


def test_a_data_set_in_hand_and_on_disk(tmp_path: Path) -> None:
    example().save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"test": example()}).save_to_disk(str(tmp_path / "many"))
    columns = {"caption_columns": "caption", "category_column": "label"}
    sources = [
        HuggingFaceSource(**columns).from_dataset(example()),
        HuggingFaceSource(path=str(tmp_path / "one"), **columns).open(),
        HuggingFaceSource(path=str(tmp_path / "many"), split="test", **columns).open(),
    ]
    for source in sources:
        assert source.captions(0) == ("one", "two")
        assert source.category(0) == "cat"
        assert source.read_image(0) == jpeg(0)
        assert pickle.loads(pickle.dumps(source)).read_image(0) == jpeg(0)
        assert entries(source.ledger) == {("row-000000002", "empty-caption")}
        with pytest.raises(SampleError, match="row-000000003: missing-file"):
            source.read_image(1)
    assert len({source.fingerprint for source in sources}) == 1


def test_user_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no column 'text'"):
        HuggingFaceSource(caption_columns="text").from_dataset(example())
    with pytest.raises(UserError, match="stable numbering"):
        HuggingFaceSource().from_dataset(example().to_iterable_dataset())
    datasets.DatasetDict({"test": example()}).save_to_disk(str(tmp_path / "many"))
    with pytest.raises(UserError, match="cannot be loaded"):
        HuggingFaceSource(path=str(tmp_path / "many"), split="nope").open()
