"""A part of a source: decided by keys, whole in itself, apart from the others."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from pydantic import TypeAdapter

from tests.data.planted import caption_source, jpeg, table_source
from troth.data import IndexedSource, PartSource, SourceConfig, TableSource
from troth.data.part import key_fractions, part_of, rows_of, sample_rows
from troth.errors import UserError


def keys(source: IndexedSource) -> list[str]:
    return [source.key(index) for index in range(len(source))]


@pytest.fixture
def table(tmp_path: Path) -> TableSource:
    table_source(tmp_path, 60)
    return TableSource(path=str(tmp_path / "pairs.csv"))


def test_parts_without_a_gap_hold_every_sample_once(table: TableSource) -> None:
    borders = [0.0, 0.25, 0.35, 1.0]
    parts = [PartSource(source=table, start=start, stop=stop).open() for start, stop in pairwise(borders)]
    found = [key for part in parts for key in keys(part)]
    assert sorted(found) == sorted(keys(table.open()))
    assert all(0 < len(part) < 60 for part in parts)


def test_a_sample_is_the_one_it_was(table: TableSource, tmp_path: Path) -> None:
    whole = table.open()
    part = PartSource(source=table, start=0.5).open()
    assert len(part) > 10
    for index in range(len(part)):
        number = int(part.key(index).removesuffix(".jpg")) if part.key(index).endswith(".jpg") else None
        same = keys(whole).index(part.key(index))
        assert part.captions(index) == whole.captions(same)
        assert part.read_image(index) == whole.read_image(same)
        assert part.metadata(index) == whole.metadata(same)
        assert number is None or part.read_image(index) == jpeg(number)
    assert part.fingerprint != whole.fingerprint
    assert PartSource(source=table).open().fingerprint == whole.fingerprint


def test_a_place_depends_on_key_and_seed_alone() -> None:
    names = [["a"]] * 400
    source, shorter = caption_source(names), caption_source(names[:100])
    fractions = key_fractions(source, 3)
    assert np.array_equal(fractions[:100], key_fractions(shorter, 3))
    other = key_fractions(source, 4)
    assert abs(np.corrcoef(fractions, other)[0, 1]) < 0.15
    assert ((fractions >= 0) & (fractions < 1)).all()
    histogram = np.histogram(fractions, bins=4, range=(0, 1))[0]
    assert histogram.min() > 70


def test_categories_go_with_their_samples() -> None:
    source = caption_source([["x"]] * 50, ["even" if number % 2 == 0 else None for number in range(50)])
    part = part_of(source, 0.0, 0.5, 0)
    for index in range(len(part)):
        number = int(part.key(index).split()[1])
        assert part.category(index) == ("even" if number % 2 == 0 else None)


def test_parts_of_parts_are_cut_by_a_seed_of_their_own(table: TableSource) -> None:
    half = PartSource(source=table, stop=0.5)
    quarter = PartSource(source=half, stop=0.5, seed=1).open()
    assert set(keys(quarter)) < set(keys(half.open()))
    adapter = TypeAdapter(SourceConfig)
    again = adapter.validate_python({"kind": "part", "source": {"kind": "table", "path": table.path}, "stop": 0.5})
    assert again == half


def test_an_empty_part_and_a_missing_whole_are_said(table: TableSource) -> None:
    with pytest.raises(UserError, match="none of the 60 samples"):
        PartSource(source=table, stop=1e-9).open()
    with pytest.raises(UserError, match=r"source\.path"):
        PartSource(source=TableSource(path="no.csv")).open()
    with pytest.raises(ValueError, match=r"start \(0.5\) must be below stop \(0.5\)"):
        PartSource(source=table, start=0.5, stop=0.5)


def test_a_sample_of_a_source_grows_with_its_count_and_keeps_the_samples(table: TableSource) -> None:
    whole = table.open()
    small, large = sample_rows(whole, 10, 0), sample_rows(whole, 20, 0)
    assert len(small) == 10
    assert set(small.tolist()) < set(large.tolist())
    assert np.array_equal(small, np.sort(small))
    assert sample_rows(whole, 10, 1).tolist() != small.tolist()
    assert sample_rows(whole, 99, 0).tolist() == list(range(60))
    part = rows_of(whole, small, "ten")
    assert keys(part) == [whole.key(row) for row in small.tolist()]
    assert part.read_image(3) == whole.read_image(int(small[3]))
