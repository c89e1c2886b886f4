"""Diagnostics are read back as they were saved."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.report.diagnosed import diagnosed, plain
from troth.errors import UserError
from troth.evaluate import Diagnostics


@pytest.mark.parametrize("whole", [diagnosed(), plain()], ids=["everything", "little"])
def test_they_are_read_back_as_they_were_saved(whole: Diagnostics, tmp_path: Path) -> None:
    assert whole.save(tmp_path) == tmp_path / "diagnostics.json"
    assert Diagnostics.load(tmp_path) == whole
    assert {path.name for path in tmp_path.iterdir()} == {"diagnostics.json", "arrays.npz"}


def test_numbers_are_in_the_json_and_arrays_are_not(tmp_path: Path) -> None:
    record = json.loads(diagnosed().save(tmp_path).read_text(encoding="utf-8"))
    kinds = record["data"][0]["distances"]["kinds"]
    assert kinds["positive"]["mean"] == pytest.approx(diagnosed().data[0].distances.kinds["positive"].mean)
    assert kinds["positive"]["counts"] == {"array": "data/0/distances/kinds/positive/counts"}
    assert record["scale"]["converged"] == 95
    with np.load(tmp_path / "arrays.npz") as arrays:
        assert arrays["data/0/distances/kinds/positive/counts"].sum() == 30
        assert arrays["scale/step"].dtype == np.int64


def test_what_is_no_saved_diagnostics_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such file: diagnostics\.json"):
        Diagnostics.load(tmp_path)
    path = diagnosed().save(tmp_path)
    whole = path.read_text(encoding="utf-8")
    for text, words in (
        ("{", "not saved diagnostics"),
        ("[]", "not saved diagnostics"),
        (whole.replace('"version": 1', '"version": 99'), r"json: diagnostics of version 99, this Troth reads 1"),
        (whole.replace('"step": 200', '"step": "soon"'), "step: Input should be a valid integer"),
        (whole.replace('"array": "scale/step"', '"array": "elsewhere"'), "not saved diagnostics"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=words):
            Diagnostics.load(tmp_path)
    path.write_text(whole, encoding="utf-8")
    (tmp_path / "arrays.npz").unlink()
    with pytest.raises(UserError, match=r"no such file: arrays\.npz"):
        Diagnostics.load(tmp_path)
