"""A process that trains cannot read the answers."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from troth.bench.data import pairs_source, prepare
from troth.bench.guard import forbidden, guarded_worker
from troth.bench.settings import Place, Setting
from troth.data import CaptionAssignment, EmbeddedSource, TarSource
from troth.errors import UserError


@contextmanager
def under_guard(paths: tuple[str, ...]) -> Iterator[Callable[..., object]]:
    """Yield what calls a function in a process under the guard."""
    with ProcessPoolExecutor(1, get_context("spawn"), guarded_worker, (paths,)) as pool:
        yield lambda function, *arguments: pool.submit(function, *arguments).result()


def read(path: Path) -> int:
    return len(path.read_bytes())


def read_mask(path: Path) -> int:
    with np.load(path) as stored:
        return int(stored["mismatched"].sum())


def listed(path: Path) -> list[str]:
    return [each.name for each in path.iterdir()]


def move(path: Path, to: Path) -> None:
    path.rename(to)


def number_of_pairs(source: TarSource | EmbeddedSource) -> int:
    return len(source.open())


def threads_of_libraries() -> tuple[str, dict[str, set[int]]]:
    """What libraries loaded later are told, and by how many threads those that are there compute."""
    import faiss  # noqa: F401  # loads a BLAS of its own when the worker has begun

    found: dict[str, set[int]] = {}
    for library in threadpool_info():
        found.setdefault(library["user_api"], set()).add(library["num_threads"])
    return os.environ["OMP_NUM_THREADS"], found


@pytest.fixture
def place(tmp_path: Path, small_yardstick: None) -> Place:
    place = Place(tmp_path, Setting.parse("uniform-40"), 0)
    prepare(place)
    return place


def test_a_worker_computes_on_one_thread_whatever_it_computes_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # also where there is one core
    with under_guard(forbidden(tmp_path)) as call:
        assert call(threads_of_libraries) == ("1", {"blas": {1}, "openmp": {1}})


def test_the_mask_can_be_read_without_the_guard_and_not_under_it(place: Place) -> None:
    assert read_mask(place.answers) == 77
    link = place.root / "link"
    link.symlink_to(place.answers)
    shard, copy, index = EmbeddedSource().files()[:3]
    assert (shard.suffix, copy.suffix, index.suffix) == (".gz", ".tar", ".arrow")
    assert all(path.is_file() for path in (shard, copy, index)), "the preparation opened them"
    with under_guard(forbidden(place.root)) as call:
        assert call(number_of_pairs, pairs_source(place.pairs)) == 192
        with pytest.raises(PermissionError, match="must not know which pairs are wrong"):
            call(read_mask, place.answers)
        for path in (place.answers, link, place.right, shard, copy, index):
            with pytest.raises(PermissionError):
                call(read, path)
        with pytest.raises(UserError, match="kept from training"):
            call(CaptionAssignment.load, place.answers)
        with pytest.raises(PermissionError):
            call(listed, place.answers.parent)
        with pytest.raises(PermissionError):
            call(move, place.answers, place.root / "elsewhere")
        for split in ("train", "concept"):
            with pytest.raises(PermissionError):
                call(number_of_pairs, EmbeddedSource(split=split))
    assert read_mask(place.answers) == 77


def test_an_oracle_reads_the_right_pairs_and_no_answers(place: Place) -> None:
    with under_guard(forbidden(place.root, right=True)) as call:
        assert call(number_of_pairs, pairs_source(place.right)) == 115
        with pytest.raises(PermissionError):
            call(read, place.answers)


def test_workers_end_with_a_parent_that_was_killed(repository: Path) -> None:
    command = [sys.executable, "-m", "tests.bench.pool"]
    with subprocess.Popen(command, cwd=repository, stdout=subprocess.PIPE, text=True) as parent:
        worker = int(parent.stdout.readline())
        assert runs(worker)
        parent.kill()
    deadline = time.monotonic() + 30
    while runs(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not runs(worker)


def runs(process: int) -> bool:
    """Say whether a process is there and has not ended."""
    try:
        os.kill(process, 0)
        status = Path(f"/proc/{process}/stat")
        return not status.is_file() or status.read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
