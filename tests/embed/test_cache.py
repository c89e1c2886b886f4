"""The cache: a name for every content, damage noticed, several processes at once."""

from __future__ import annotations

import dataclasses
import logging
import multiprocessing
import time
from pathlib import Path

import pytest
import torch

from troth.embed import CacheEntry, CacheKey, FeatureCache, Uncached
from troth.errors import UserError

KEY = CacheKey(weights="w", data="d")
ENTRY = CacheEntry({"features": torch.arange(6.0).view(2, 3), "valid": torch.tensor([True, False])}, {"ledger": "[]"})


def never():
    raise AssertionError("must come from the cache")


def test_what_is_stored_comes_back(tmp_path):
    cache = FeatureCache(tmp_path / "made" / "here")
    computed = cache.get_or_compute(KEY, lambda: ENTRY)
    assert computed is ENTRY
    again = cache.get_or_compute(KEY, never)
    assert torch.equal(again.tensors["features"], ENTRY.tensors["features"])
    assert torch.equal(again.tensors["valid"], ENTRY.tensors["valid"])
    assert again.notes == {"ledger": "[]"}
    assert [path.name for path in cache.folder.iterdir()] == [f"{KEY.digest}.safetensors"], "no lock, no part"


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(CacheKey)])
def test_any_other_content_is_another_file(field, tmp_path):
    cache = FeatureCache(tmp_path)
    cache.store(KEY, ENTRY)
    other = dataclasses.replace(KEY, **{field: "another"})
    assert cache.path(other) != cache.path(KEY)
    assert cache.load(other) is None
    assert cache.load(dataclasses.replace(KEY)) is not None


def test_fields_do_not_run_into_each_other():
    assert CacheKey(weights="ab", data="c").digest != CacheKey(weights="a", data="bc").digest


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped", "text"])
def test_a_damaged_file_is_computed_again_with_a_note(damage, tmp_path, caplog):
    cache = FeatureCache(tmp_path)
    path = cache.store(KEY, ENTRY)
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[-1] ^= 0x40
    path.write_bytes({"truncated": content[:-5], "empty": b"", "flipped": content, "text": b"hello" * 99}[damage])
    with caplog.at_level(logging.WARNING):
        again = cache.get_or_compute(KEY, lambda: ENTRY)
    assert again is ENTRY
    assert "computed again" in caplog.text
    assert cache.get_or_compute(KEY, never).notes == ENTRY.notes


def test_a_failed_write_leaves_nothing_and_costs_nothing(tmp_path, monkeypatch, caplog):
    import troth.embed.cache as module

    def full(tensors, name, metadata):
        Path(name).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_file", full)
    cache = FeatureCache(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert cache.get_or_compute(KEY, lambda: ENTRY) is ENTRY
    assert "could not be cached" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_an_unusable_folder_is_found_before_anything_is_computed(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="set TROTH_CACHE"):
        FeatureCache(tmp_path / "file").get_or_compute(KEY, never)


def test_the_folder_comes_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("TROTH_CACHE", str(tmp_path))
    assert FeatureCache().folder == tmp_path
    monkeypatch.delenv("TROTH_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert FeatureCache().folder == tmp_path / ".cache" / "troth"


def test_uncached_keeps_nothing(tmp_path):
    calls = []
    cache = Uncached(tmp_path)
    for _ in range(2):
        cache.get_or_compute(KEY, lambda: calls.append(1) or ENTRY)
    assert len(calls) == 2
    assert list(tmp_path.iterdir()) == []


def _compute(folder, counter, queue):
    def compute():
        with counter.get_lock():
            counter.value += 1
        time.sleep(0.3)
        return ENTRY

    queue.put(float(FeatureCache(folder).get_or_compute(KEY, compute).tensors["features"].sum()))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_of_two_processes_one_computes_and_both_get_it(tmp_path):
    context = multiprocessing.get_context("fork")
    counter, queue = context.Value("i", 0), context.Queue()
    processes = [context.Process(target=_compute, args=(tmp_path, counter, queue)) for _ in range(3)]
    for process in processes:
        process.start()
    assert [queue.get(timeout=30) for _ in processes] == [15.0] * 3
    for process in processes:
        process.join()
    assert counter.value == 1
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]
