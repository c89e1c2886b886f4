from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.data.planted import entries, jpeg, write_all
from troth.data import FolderSource, SampleError, check_source
from troth.errors import UserError


def test_folder_with_everything_that_can_be_wrong(tmp_path: Path) -> None:
    write_all(
        tmp_path,
        {
            "cats/b.jpg": jpeg(1),
            "cats/b.txt": b"first \r\n\r\n second\n",
            "cats/a.PNG": b"not a picture",
            "cats/a.txt": "\ufeffmarked".encode(),
            "top.jpeg": jpeg(2),
            "top.txt": b"x",
            "zero.webp": b"",
            "zero.txt": b"y",
            "blank.jpg": jpeg(),
            "blank.txt": b"  \n",
            "alone.jpg": jpeg(),
            "latin.jpg": jpeg(),
            "latin.txt": b"caf\xe9",
            "lost.txt": b"no image",
            "notes.md": b"not a caption",
        },
    )
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "pipe.txt").write_bytes(b"z")
    source = FolderSource(path=str(tmp_path)).open()
    found = {source.key(index): index for index in range(len(source))}
    assert list(found) == ["cats/a.PNG", "cats/b.jpg", "pipe.jpg", "top.jpeg", "zero.webp"]
    assert source.captions(found["cats/b.jpg"]) == ("first", "second")
    assert source.captions(found["cats/a.PNG"]) == ("marked",)
    assert source.category(found["cats/b.jpg"]) == "cats"
    assert source.category(found["top.jpeg"]) is None
    assert source.read_image(found["cats/b.jpg"]) == jpeg(1)
    indexed = {
        ("blank.jpg", "empty-caption"),
        ("alone.jpg", "empty-caption"),
        ("latin.jpg", "bad-encoding"),
        ("lost.txt", "missing-file"),
    }
    assert entries(source.ledger) == indexed
    (tmp_path / "top.jpeg").unlink()
    seen: list[int] = []
    checked = check_source(source, progress=seen.append)
    assert entries(checked) == indexed | {
        ("cats/a.PNG", "corrupt-image"),
        ("zero.webp", "empty-file"),
        ("pipe.jpg", "missing-file"),
        ("top.jpeg", "missing-file"),
    }
    assert seen == [1, 2, 3, 4, 5]
    assert entries(source.ledger) == indexed


def test_captions_of_one_file(tmp_path: Path) -> None:
    write_all(tmp_path, {"a.jpg": jpeg(), "sub/b.jpg": jpeg(1), "c.jpg": jpeg(2)})
    listed = {"a.jpg": "one", "sub/b.jpg": ["two", "three"], "gone.jpg": "four", "../up.jpg": "five"}
    (tmp_path / "captions.json").write_text(json.dumps(listed))
    source = FolderSource(path=str(tmp_path), captions_file="captions.json", category="none").open()
    assert [source.captions(index) for index in range(len(source))] == [("one",), ("two", "three")]
    assert source.category(1) is None
    assert entries(source.ledger) == {
        ("c.jpg", "empty-caption"),
        ("gone.jpg", "missing-file"),
        ("../up.jpg", "unsafe-path"),
    }


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    write_all(tmp_path, {"a.jpg": jpeg(), "a.txt": b"x"})
    for end in (b".jpg", b".txt"):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9" + end)).write_bytes(jpeg())
    source = FolderSource(path=str(tmp_path)).open()
    assert len(source) == 1
    assert entries(source.ledger) == {("caf\\xe9.jpg", "bad-encoding")}


def test_the_fingerprint_is_of_content_and_order(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_all(tmp_path / name, {"a.jpg": jpeg(), "a.txt": b"x", "b.jpg": jpeg(1), "b.txt": b"y"})
    first = FolderSource(path=str(tmp_path / "one")).open()
    assert first.fingerprint == FolderSource(path=str(tmp_path / "two")).open().fingerprint
    (tmp_path / "two" / "b.txt").write_bytes(b"z")
    assert first.fingerprint != FolderSource(path=str(tmp_path / "two")).open().fingerprint


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": ""}, "path: there is no folder"),
        ({"path": "nowhere"}, "path: there is no folder"),
        ({"path": "empty"}, "path: .*no usable sample"),
        ({"path": "bare"}, "no usable sample.*1 empty-caption"),
        ({"path": "bare", "captions_file": "c.json"}, "captions_file: there is no"),
        ({"path": "bare", "captions_file": "bad.json"}, "captions_file: .*not JSON"),
        ({"path": "bare", "captions_file": "list.json"}, "captions_file: .*not a JSON object"),
    ],
)
def test_user_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, str], message: str) -> None:
    write_all(tmp_path, {"bare/a.jpg": jpeg(), "bare/bad.json": b"{", "bare/list.json": b"[]"})
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        FolderSource(**options).open()


def test_reading_reports_the_samples_key(tmp_path: Path) -> None:
    write_all(tmp_path, {"a.jpg": jpeg(), "a.txt": b"x"})
    source = FolderSource(path=str(tmp_path)).open()
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(SampleError, match=r"a\.jpg: missing-file"):
        source.read_image(0)


def test_lone_surrogates_in_a_captions_file(tmp_path: Path) -> None:
    write_all(tmp_path, {"0.jpg": jpeg(0), "1.jpg": jpeg(1)})
    (tmp_path / "all.json").write_text(r'{"0.jpg": "fine", "1.jpg": "\ud800", "2\ud800.jpg": "b"}')
    source = FolderSource(path=str(tmp_path), captions_file="all.json").open()
    assert len(source) == 1
    assert entries(source.ledger) == {("1.jpg", "bad-encoding"), (r"2\xed\xa0\x80.jpg", "missing-file")}


def test_only_regular_files_of_sane_size_are_read_as_captions(tmp_path: Path) -> None:
    write_all(tmp_path, {f"{number}.jpg": jpeg(number) for number in range(4)})
    write_all(tmp_path, {"0.txt": b"fine", "1.txt": b"a" * ((1 << 20) + 1), "2.txt": b"a" * (1 << 20)})
    os.mkfifo(tmp_path / "3.txt")
    os.mkfifo(tmp_path / "all.json")
    source = FolderSource(path=str(tmp_path)).open()
    assert [source.key(index) for index in range(len(source))] == ["0.jpg", "2.jpg"]
    assert entries(source.ledger) == {("1.jpg", "broken-member"), ("3.jpg", "missing-file")}
    with pytest.raises(UserError, match=r"captions_file: .*all\.json cannot be read: not a regular file"):
        FolderSource(path=str(tmp_path), captions_file="all.json").open()
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="is not JSON"):
        FolderSource(path=str(tmp_path), captions_file="deep.json").open()


def test_a_subfolder_that_cannot_be_listed_is_in_the_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_all(tmp_path, {"0.jpg": jpeg(0), "0.txt": b"fine", "in/deep/1.jpg": jpeg(1), "in/deep/1.txt": b"lost"})
    scandir = os.scandir

    def refusing(path: str) -> object:
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    # Not by its mode, which means nothing to root.
    monkeypatch.setattr(os, "scandir", refusing)
    source = FolderSource(path=str(tmp_path)).open()
    assert len(source) == 1
    assert [(each.key, each.reason) for each in source.ledger] == [("in/deep", "missing-file")]
    assert "Permission denied" in next(iter(source.ledger)).detail
