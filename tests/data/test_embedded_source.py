from __future__ import annotations

import time
from pathlib import Path

import pytest

from troth.data import EmbeddedSource, decode, embedded_source
from troth.errors import UserError


@pytest.mark.parametrize("split", ["concept", "retrieval"])
def test_a_split_opens_without_loss_and_quickly_the_second_time(split: str) -> None:
    first = EmbeddedSource(split=split).open()
    assert len(first) > 100
    assert not list(first.ledger)
    assert first.name == f"embedded {split}"
    assert min(decode(first.read_image(len(first) - 1)).size) > 50
    assert "/" not in first.key(0)
    start = time.perf_counter()
    again = EmbeddedSource(split=split).open()
    assert time.perf_counter() - start < 0.5
    assert again.fingerprint == first.fingerprint


def test_missing_shards_are_a_user_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_source, "EMBEDDED_FOLDER", tmp_path)
    with pytest.raises(UserError, match=r"split: .*without the shards of 'train'"):
        EmbeddedSource().open()
