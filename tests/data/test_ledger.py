from __future__ import annotations

import logging
import pickle
from pathlib import Path

import pytest

from troth.data import Ledger, LedgerEntry, SampleError
from troth.data.files import atomic_path


def test_an_entry_counts_once_for_each_key_and_reason(tmp_path: Path) -> None:
    ledger = Ledger()
    assert ledger.add(LedgerEntry("a", "empty-file", "first"))
    assert not ledger.add(LedgerEntry("a", "empty-file", "second"))
    ledger.add(LedgerEntry("a", "corrupt-image"))
    ledger.add(LedgerEntry("b\udcff", "corrupt-image", "odd bytes"))
    assert ledger.counts() == {"empty-file": 1, "corrupt-image": 2}
    assert ledger.keys() == {"a", "b\udcff"}
    ledger.write(tmp_path / "deep" / "ledger.jsonl")
    assert list(Ledger.read(tmp_path / "deep" / "ledger.jsonl")) == list(ledger)


def test_damaged_lines_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger([LedgerEntry("a", "empty-file"), LedgerEntry("b", "corrupt-image", "cut")])
    ledger.write(path)
    with caplog.at_level(logging.WARNING, logger="troth"):
        assert list(Ledger.read(path)) == list(ledger)
    assert caplog.text == ""
    first, second = path.read_bytes().splitlines(keepends=True)
    damaged = [
        b'{"key": "c", "rea\x00\x00\n',
        b"\xff\n",
        b"[1]\n",
        b'{"key": "d", "reason": "a whim", "detail": ""}\n',
        b'{"key": 7, "reason": "empty-file"}\n',
        b'{"reason": "empty-file"}\n',
    ]
    path.write_bytes(first + b"".join(damaged) + b"\n" + second + b'{"key": "e", "reas')
    with caplog.at_level(logging.WARNING, logger="troth"):
        assert list(Ledger.read(path)) == list(ledger)
    assert f"{path}: left out 7 damaged of 9 lines" in caplog.text


def test_a_sample_error_survives_pickling_and_takes_the_key_it_lacks() -> None:
    error = pickle.loads(pickle.dumps(SampleError("", "corrupt-image", "cut")))
    assert error.entry("key 7") == LedgerEntry("key 7", "corrupt-image", "cut")
    assert SampleError("own", "empty-file").entry("other").key == "own"


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old")

    def fail() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError("cut off")

    with pytest.raises(RuntimeError, match="cut off"):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert target.read_text() == "old"
