"""Random damage: a source opens with what is left or says that nothing is, and never does anything else."""

from __future__ import annotations

import contextlib
import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.data.planted import jpeg, pairs, tar_bytes, write_all
from troth.data import FolderSource, IndexedSource, SampleError, TableSource, TarSource
from troth.errors import UserError


def hurt(data: bytes, rng: np.random.Generator) -> bytes:
    """Flip some bytes, cut a piece out, or stop early."""
    array = np.frombuffer(data, dtype=np.uint8).copy()
    kind = rng.integers(3)
    if kind == 0:
        array[rng.integers(0, len(array), size=8)] = rng.integers(0, 256, size=8)
        return array.tobytes()
    start = int(rng.integers(len(data)))
    return data[:start] + (data[start + int(rng.integers(1, 700)) :] if kind == 1 else b"")


def outcome(open_source: Callable[[], IndexedSource], whole: int) -> str:
    try:
        source = open_source()
    except UserError:
        return "nothing"
    for index in range(len(source)):
        assert source.captions(index)
        assert isinstance(source.metadata(index), dict)
        with contextlib.suppress(SampleError):
            assert source.read_image(index)
    if len(source) == whole:
        return "whole"
    return "part" if len(source.ledger) else "part, silently"


@pytest.mark.parametrize("end", [".tar", ".tar.gz"])
def test_tars(tmp_path: Path, end: str) -> None:
    data = tar_bytes(pairs(6))
    data = gzip.compress(data, mtime=0) if end == ".tar.gz" else data
    rng = np.random.default_rng(0)
    outcomes = []
    for number in range(60):
        path = tmp_path / f"{number}{end}"
        path.write_bytes(hurt(data, rng))
        outcomes.append(outcome(TarSource(urls=str(path)).open, 6))
    assert outcomes.count("part") > 10
    assert "part, silently" not in outcomes


def test_tables(tmp_path: Path) -> None:
    rows = ["image,caption", *(f'{number}.jpg,"a caption, number {number}"' for number in range(20))]
    write_all(tmp_path, {f"{number}.jpg": jpeg(number) for number in range(20)})
    rng = np.random.default_rng(0)
    outcomes = []
    for number in range(60):
        path = tmp_path / f"{number}.csv"
        damaged = hurt("\n".join(rows).encode(), rng)
        path.write_bytes(damaged)
        outcomes.append(outcome(TableSource(path=str(path)).open, 20))
        if outcomes[-1] != "nothing":
            # Rows that are cut out leave no trace; those that are there are captions or entries, each of them.
            source = TableSource(path=str(path)).open()
            found = sum(len(source.captions(index)) for index in range(len(source))) + len(source.ledger)
            assert found == sum(1 for line in damaged.split(b"\n") if line.strip(b"\r")) - 1
    assert outcomes.count("part") > 5


def test_caption_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(60):
        write_all(tmp_path, {f"{number}.jpg": jpeg(0), f"{number}.txt": hurt("grün und blau".encode(), rng)})
    source = FolderSource(path=str(tmp_path)).open()
    assert len(source) + len(source.ledger) == 60
    assert 0 < len(source.ledger) < 60
