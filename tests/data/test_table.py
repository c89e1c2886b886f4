from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.planted import entries, jpeg, write_all
from troth.data import IndexedSource, SampleError, TableSource
from troth.data.table import _blob
from troth.errors import UserError


def rows(source: IndexedSource) -> list[tuple[str, tuple[str, ...]]]:
    return [(source.key(index), source.captions(index)) for index in range(len(source))]


def test_csv_with_everything_that_can_be_wrong(tmp_path: Path) -> None:
    write_all(tmp_path, {"0.jpg": jpeg(0), "in/1.jpg": jpeg(1), "2.jpg": jpeg(2)})
    table = b"\n".join(
        [
            b"\xef\xbb\xbfimage,caption,kind",
            b'0.jpg,"one, with a comma",a',
            b"in/1.jpg,too few",
            b"2.jpg,caf\xe9,a",
            b'in/1.jpg,"two',
            b'lines ""quoted""",b',
            b"",
            b"../up.jpg,out,a",
            b"/etc/passwd,out,a",
            b"in/../../up2.jpg,out,a",
            b"gone.jpg,not there,a",
            b"2.jpg,  ,a",
            b",no image,a",
            b"0.jpg,another,a",
            b'2.jpg,"a stray quote,a',
            b"2.jpg,after the quote,",
            b"bad\xff.jpg,name,a",
        ]
    )
    (tmp_path / "t.csv").write_bytes(table)
    source = TableSource(path=str(tmp_path / "t.csv"), category_column="kind", metadata_columns=("kind",)).open()
    assert rows(source) == [
        ("0.jpg", ("one, with a comma", "another")),
        ("in/1.jpg", ('two\nlines "quoted"',)),
        ("gone.jpg", ("not there",)),
        ("2.jpg", ("after the quote",)),
    ]
    assert source.category(1) == "b"
    assert source.metadata(0) == {"kind": "a"}
    assert source.read_image(1) == jpeg(1)
    assert entries(source.ledger) == {
        ("row-000000002", "broken-member"),
        ("2.jpg", "bad-encoding"),
        ("../up.jpg", "unsafe-path"),
        ("/etc/passwd", "unsafe-path"),
        ("in/../../up2.jpg", "unsafe-path"),
        ("2.jpg", "empty-caption"),
        ("row-000000010", "missing-file"),
        ("row-000000012", "broken-member"),
        ("bad\\xff.jpg", "bad-encoding"),
    }
    with pytest.raises(SampleError, match=r"gone\.jpg: missing-file"):
        source.read_image(2)


def test_absolute_paths_inside_the_root_and_a_root_elsewhere(tmp_path: Path) -> None:
    write_all(tmp_path, {"pictures/0.jpg": jpeg(0), "tables/x": b""})
    inside, outside = tmp_path / "pictures" / "0.jpg", tmp_path / "tables" / "x"
    (tmp_path / "tables" / "t.tsv").write_text(f"image\tcaption\n{inside}\tone\n{outside}\ttwo\n")
    source = TableSource(path=str(tmp_path / "tables" / "t.tsv"), image_root=str(tmp_path / "pictures")).open()
    assert source.read_image(0) == jpeg(0)
    assert entries(source.ledger) == {(str(outside), "unsafe-path")}


def test_keys_are_unique_if_they_are_given(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("id;image;c1;c2\n7;a.jpg;one;\n7;b.jpg;two;three\n8;a.jpg;four;five\n")
    source = TableSource(
        path=str(tmp_path / "t.csv"), key_column="id", caption_columns=("c1", "c2"), delimiter=";"
    ).open()
    assert rows(source) == [("7", ("one",)), ("8", ("four", "five"))]
    assert entries(source.ledger) == {("7", "duplicate-key")}


def test_json_lines(tmp_path: Path) -> None:
    lines = [
        json.dumps({"image": "a.jpg", "caption": ["one", " two ", None]}).encode(),
        b"{broken",
        b"[1, 2]",
        b'{"image": "b.jpg", "caption": "caf\xe9"}',
        b"",
        json.dumps({"image": "c.jpg"}).encode(),
        json.dumps({"image": "d.jpg", "caption": "last", "tag": 5}).encode(),
        b'{"image": "e.jpg", "caption": "\\ud800"}',
    ]
    (tmp_path / "t.jsonl").write_bytes(b"\n".join(lines))
    source = TableSource(path=str(tmp_path / "t.jsonl"), metadata_columns=()).open()
    assert rows(source) == [("a.jpg", ("one", "two")), ("d.jpg", ("last",))]
    assert entries(source.ledger) == {
        ("row-000000002", "broken-member"),
        ("row-000000003", "broken-member"),
        ("row-000000004", "bad-encoding"),
        ("c.jpg", "empty-caption"),
        ("e.jpg", "bad-encoding"),
    }


def test_parquet_of_paths_bytes_and_structs(tmp_path: Path, own_cache: Path) -> None:
    write_all(tmp_path, {"0.jpg": jpeg(0), "1.jpg": jpeg(1)})
    captions = [["one", "other"], ["two"], []]
    columns = {
        "paths": pa.table({"image": ["0.jpg", "1.jpg", "2.jpg"], "caption": captions}),
        "bytes": pa.table({"image": [jpeg(0), jpeg(1), b"x"], "caption": captions}),
        "struct": pa.table({"image": [{"bytes": jpeg(n), "path": f"{n}.jpg"} for n in range(3)], "caption": captions}),
    }
    for name, table in columns.items():
        pq.write_table(table, tmp_path / f"{name}.parquet", row_group_size=2)
        for _ in range(2):
            source = TableSource(path=str(tmp_path / f"{name}.parquet")).open()
            assert [source.read_image(index) for index in range(2)] == [jpeg(0), jpeg(1)], name
            assert [source.captions(index) for index in range(len(source))] == [("one", "other"), ("two",)]
            third = "row-000000003" if name == "bytes" else "2.jpg"
            assert entries(source.ledger) == {(third, "empty-caption")}
    kept = [path.suffix for path in own_cache.rglob("*") if path.is_file()]
    assert sorted(kept) == [".arrow"] * 3 + [".blob"] * 2


def test_bad_utf8_in_parquet_costs_one_row(tmp_path: Path) -> None:
    raw = pa.array([b"good", b"caf\xe9", b"fine"], type=pa.binary())
    hurt = pa.StringArray.from_buffers(3, raw.buffers()[1], raw.buffers()[2])
    pq.write_table(pa.table({"image": ["a", "b", "c"], "caption": hurt}), tmp_path / "t.parquet")
    source = TableSource(path=str(tmp_path / "t.parquet")).open()
    assert rows(source) == [("a", ("good",)), ("c", ("fine",))]
    assert entries(source.ledger) == {("b", "bad-encoding")}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "none.csv"}, "path: there is no table"),
        ({"path": "t.xyz"}, "format: the suffix"),
        ({"path": "t.csv", "image_column": "picture"}, "no column 'picture'.*image, caption"),
        ({"path": "t.csv", "caption_columns": ("caption", "text")}, "no column 'text'"),
        ({"path": "t.csv", "delimiter": "||"}, "delimiter: "),
        ({"path": "t.csv", "format": "parquet"}, "not a parquet file"),
        ({"path": "empty.csv"}, "no header"),
        ({"path": "outside.csv"}, "no usable sample.*2 unsafe-path.*image_root"),
    ],
)
def test_user_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, object], message: str) -> None:
    (tmp_path / "t.csv").write_text("image,caption\na.jpg,one\n")
    (tmp_path / "t.xyz").write_text("")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "outside.csv").write_text("image,caption\n/a.jpg,one\n/b.jpg,two\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        TableSource(**options).open()


def test_lone_surrogates_in_json_lines(tmp_path: Path) -> None:
    write_all(tmp_path, {"0.jpg": jpeg(0)})
    lines = [
        r'{"image": "0.jpg", "caption": "fine", "id": "0", "kind": "x\ud800"}',
        r'{"image": "0.jpg", "caption": "fine", "id": "1\ud800", "kind": "x"}',
        r'{"image": "2\ud800.jpg", "caption": "fine", "id": "2", "kind": "x"}',
        r'{"image": "0.jpg", "caption": "\ud800", "id": "3", "kind": "x"}',
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    source = TableSource(path=str(tmp_path / "t.jsonl"), key_column="id", category_column="kind").open()
    assert rows(source) == [("0", ("fine",))]
    assert source.category(0) == r"x\xed\xa0\x80"
    bad = "bad-encoding"
    assert entries(source.ledger) == {(r"1\xed\xa0\x80", bad), ("2", bad), ("3", bad)}


def test_a_relative_root_of_another_working_folder_is_another_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_all(tmp_path, {"a/pics/0.jpg": jpeg(0), "b/pics/0.jpg": jpeg(1)})
    (tmp_path / "t.csv").write_text(f"image,caption\n{tmp_path}/a/pics/0.jpg,the first\n")
    table = TableSource(path=str(tmp_path / "t.csv"), image_root="pics")
    monkeypatch.chdir(tmp_path / "a")
    assert table.open().read_image(0) == jpeg(0)
    monkeypatch.chdir(tmp_path / "b")
    with pytest.raises(UserError, match="leads out of"):
        table.open()


def test_an_empty_blob_may_be_removed_by_another_process(tmp_path: Path) -> None:
    with _blob(tmp_path / "blob"):
        pass
    assert not list(tmp_path.iterdir())
    with pytest.MonkeyPatch.context() as patch:
        replace = Path.replace
        patch.setattr(Path, "replace", lambda self, target: replace(self, target).unlink())
        with _blob(tmp_path / "blob"):
            pass


def test_a_cache_that_cannot_be_written_is_a_user_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_all(tmp_path, {"0.jpg": jpeg(0), "t.csv": b"image,caption\n0.jpg,a\n"})
    monkeypatch.setenv("TROTH_CACHE", str(tmp_path / "t.csv"))
    with pytest.raises(UserError, match=r"t\.csv/tables: the cache folder cannot be written to.*set TROTH_CACHE"):
        TableSource(path=str(tmp_path / "t.csv")).open()
