from __future__ import annotations

import gzip
import io
import json
import pickle
import tarfile
from pathlib import Path

import fsspec
import pytest

from tests.data.planted import entries, jpeg, pairs, tar_bytes
from troth.data import IndexedSource, SampleError, TarSource
from troth.data.files import CacheWriter, cache_file
from troth.data.tars import BLOCK
from troth.data.webdataset import expand_braces, shard_names
from troth.errors import UserError


def opened(folder: Path, data: bytes, name: str = "shard.tar", **options: object) -> IndexedSource:
    (folder / name).write_bytes(data)
    return TarSource(urls=str(folder / name), **options).open()


def header(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def keys(source: IndexedSource) -> list[str]:
    return [source.key(index) for index in range(len(source))]


def test_samples_captions_and_metadata(tmp_path: Path) -> None:
    fields = {"captions": [" one ", "", "two"], "category": "pets", "licence": "CC0"}
    members = [
        ("a/0.jpg", jpeg(0)),
        ("a/0.json", json.dumps(fields).encode()),
        ("1.json", json.dumps({"caption": "from json", "width": 3}).encode()),
        ("1.PNG", b"other bytes"),
        ("2.txt", "gr\u00fcn\nund blau\n".encode()),
        ("2.json", json.dumps({"caption": "less than the text"}).encode()),
        ("2.jpg", jpeg(2)),
        ("2.cls", b"7"),
        ("README", b"nothing"),
    ]
    source = opened(tmp_path, tar_bytes(members))
    assert keys(source) == ["shard/a/0", "shard/1", "shard/2"]
    assert [source.captions(index) for index in range(3)] == [("one", "two"), ("from json",), ("gr\u00fcn\nund blau",)]
    assert source.category(0) == "pets"
    assert source.category(1) is None
    assert source.metadata(0) == {"category": "pets", "licence": "CC0"}
    assert source.metadata(1) == {"width": 3}
    assert source.read_image(0) == jpeg(0)
    assert source.read_image(1) == b"other bytes"
    assert not list(source.ledger)


def test_everything_wrong_with_a_member_is_in_the_ledger(tmp_path: Path) -> None:
    members: list[tuple[str, bytes] | tarfile.TarInfo] = [
        *pairs(2),
        ("no-caption.jpg", jpeg()),
        ("no-image.txt", b"caption"),
        ("blank.jpg", jpeg()),
        ("blank.txt", b" \n"),
        ("latin.jpg", jpeg()),
        ("latin.txt", "gr\u00fcn".encode("latin-1")),
        ("json.jpg", jpeg()),
        ("json.json", b"{not json"),
        ("list.jpg", jpeg()),
        ("list.json", b"[1]"),
        ("zero.jpg", b""),
        ("zero.txt", b"caption"),
        ("0001.jpg", jpeg(9)),
        ("/absolute.jpg", jpeg()),
        ("../../climb.jpg", jpeg()),
        ("../../climb.txt", b"caption"),
        ("a\\..\\back.jpg", jpeg()),
        header("link.jpg", tarfile.SYMTYPE, "/etc/passwd"),
        ("link.txt", b"caption"),
        header("hard.jpg", tarfile.LNKTYPE, "0000.jpg"),
        header("device.jpg", tarfile.CHRTYPE),
        header("folder", tarfile.DIRTYPE),
    ]
    source = opened(tmp_path, tar_bytes(members))
    assert keys(source) == ["shard/0000", "shard/0001", "shard/zero"]
    assert source.read_image(1) == jpeg(1)
    assert entries(source.ledger) == {
        ("shard/no-caption", "empty-caption"),
        ("shard/no-image", "missing-file"),
        ("shard/blank", "empty-caption"),
        ("shard/latin", "bad-encoding"),
        ("shard/json", "broken-member"),
        ("shard/list", "broken-member"),
        ("shard/0001", "duplicate-key"),
        ("shard//absolute", "unsafe-path"),
        ("shard/../../climb", "unsafe-path"),
        ("shard/a\\", "unsafe-path"),
        ("shard/link", "unsafe-path"),
        ("shard/hard", "unsafe-path"),
        ("shard/device", "unsafe-path"),
    }
    with pytest.raises(SampleError) as caught:
        source.read_image(2)
    assert (caught.value.key, caught.value.reason) == ("shard/zero", "empty-file")


@pytest.mark.parametrize("form", ["plain", "gzip"])
def test_a_truncated_tar_gives_what_came_before_and_one_entry(tmp_path: Path, form: str) -> None:
    whole = tar_bytes(pairs(6))
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        places = {info.name: info for info in archive}
    third = places["0003.jpg"]
    cuts = {
        "inside an image": third.offset_data + 100,
        "inside a header": third.offset + 100,
        "between members": third.offset,
        "between image and caption": places["0003.txt"].offset,
        "inside the caption": places["0003.txt"].offset_data + 1,
    }
    for number, cut in enumerate(cuts.values()):
        data = whole[:cut] if form == "plain" else gzip.compress(whole[:cut])
        source = opened(tmp_path, data, f"cut{number}.tar" + (".gz" if form == "gzip" else ""))
        assert keys(source) == [f"cut{number}/000{sample}" for sample in range(3)]
        assert entries(source.ledger) == {(f"cut{number}", "broken-member")}
        assert source.read_image(2) == jpeg(2)


def test_a_truncated_or_damaged_gzip_gives_what_came_before_and_one_entry(tmp_path: Path) -> None:
    packed = gzip.compress(tar_bytes(pairs(40)), mtime=0)
    source = opened(tmp_path, packed[: len(packed) // 2], "cut.tar.gz")
    assert 10 < len(source) < 30
    assert entries(source.ledger) == {("cut", "broken-member")}
    assert all(source.read_image(index) == jpeg(index) for index in range(len(source)))
    hurt = bytearray(packed)
    hurt[-6] ^= 0xFF
    source = opened(tmp_path, bytes(hurt), "sum.tar.gz")
    assert len(source) == 40
    assert entries(source.ledger) == {("sum", "broken-member")}


def test_after_a_damaged_header_the_listing_goes_on(tmp_path: Path) -> None:
    data = bytearray(tar_bytes(pairs(5)))
    with tarfile.open(fileobj=io.BytesIO(bytes(data))) as archive:
        places = {info.name: info.offset for info in archive}
    data[places["0002.jpg"] + 150] ^= 0x01
    source = opened(tmp_path, bytes(data))
    assert keys(source) == [f"shard/000{number}" for number in (0, 1, 3, 4)]
    broken = (f"shard@{places['0002.jpg']}", "broken-member")
    assert entries(source.ledger) == {broken, ("shard/0002", "missing-file")}
    hole = bytearray(tar_bytes(pairs(60)))
    start = len(hole) // 4 // BLOCK * BLOCK
    hole[start : start + 4 * BLOCK] = bytes(4 * BLOCK)
    source = opened(tmp_path, bytes(hole), "hole.tar")
    assert len(source) >= 56
    assert source.ledger.counts()["broken-member"] >= 1


def test_negative_sizes_and_absurd_headers_end_no_loop(tmp_path: Path) -> None:
    negative = tarfile.TarInfo("n.jpg").tobuf(tarfile.GNU_FORMAT)
    negative = negative[:124] + b"\xff" * 12 + negative[136:]
    total = sum(negative[:148]) + 8 * 32 + sum(negative[156:])
    negative = negative[:148] + f"{total:06o}\0 ".encode() + negative[156:]
    assert tarfile.TarInfo.frombuf(negative, "utf-8", "strict").size < 0
    source = opened(tmp_path, negative + tar_bytes(pairs(2)))
    assert keys(source) == ["shard/0000", "shard/0001"]
    assert entries(source.ledger) == {("shard@0", "broken-member")}


def test_long_and_odd_names(tmp_path: Path) -> None:
    long = "d" * 90 + "/" + "\u00e9" * 60 + ".more"
    members = [(f"{long}.jpg", jpeg()), (f"{long}.txt", b"x"), ("./dot/0.jpg", jpeg(1)), ("./dot/0.txt", b"y")]
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        path = tmp_path / f"{form}.tar"
        with tarfile.open(path, "w", format=form) as archive:
            for name, data in members:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        source = TarSource(urls=str(path), key_with_shard=False).open()
        # `x.more.jpg` is member `more.jpg` of sample x, which is no image suffix: only the second sample is one.
        assert keys(source) == ["dot/0"]
        assert source.read_image(0) == jpeg(1)


def test_a_gzip_bomb_is_a_user_error_and_leaves_nothing(tmp_path: Path, own_cache: Path) -> None:
    bomb = gzip.compress(bytes(4 << 20))
    with pytest.raises(UserError, match="max_unpacked_gib"):
        opened(tmp_path, bomb, "bomb.tar.gz", max_unpacked_gib=1 / 1024)
    assert not [path for path in own_cache.rglob("*") if path.is_file()]


def test_an_unusable_or_missing_tar_is_a_user_error(tmp_path: Path) -> None:
    for number, data in enumerate((b"", bytes(10240), b"rubbish" * 500, tar_bytes([("0.jpg", jpeg())]))):
        with pytest.raises(UserError, match="no usable sample"):
            opened(tmp_path, data, f"{number}.tar")
    for urls in (str(tmp_path / "none.tar"), "memory://none.tar", "", str(tmp_path / "x{0..2}.tar")):
        with pytest.raises(UserError, match="urls"):
            TarSource(urls=urls).open()


def test_the_cache_is_used_and_noticed_when_stale_or_damaged(tmp_path: Path, own_cache: Path) -> None:
    first = opened(tmp_path, gzip.compress(tar_bytes([*pairs(3), ("lone.txt", b"x")])), "s.tar.gz")
    stored = {path: path.stat().st_mtime_ns for path in own_cache.rglob("*") if path.is_file()}
    assert len(stored) == 2
    again = TarSource(urls=str(tmp_path / "s.tar.gz")).open()
    assert {path: path.stat().st_mtime_ns for path in stored} == stored
    assert again.fingerprint == first.fingerprint
    assert entries(again.ledger) == entries(first.ledger) == {("s/lone", "missing-file")}
    for path in stored:
        if path.suffix == ".arrow":
            path.write_bytes(path.read_bytes()[:100])
    assert TarSource(urls=str(tmp_path / "s.tar.gz")).open().fingerprint == first.fingerprint
    changed = opened(tmp_path, gzip.compress(tar_bytes(pairs(5))), "s.tar.gz")
    assert len(changed) == 5


@pytest.mark.parametrize("end", [".tar", ".tar.gz"])
def test_remote_tars_are_read_by_ranges(tmp_path: Path, end: str) -> None:
    data = tar_bytes(pairs(4))
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/part-0" + end, gzip.compress(data) if end == ".tar.gz" else data)
    memory.pipe("/bucket/part-1" + end, gzip.compress(data) if end == ".tar.gz" else data)
    (tmp_path / ("part-0" + end)).write_bytes(memory.cat_file("/bucket/part-0" + end))
    remote = TarSource(urls="memory://bucket/part-{0..1}" + end).open()
    assert len(remote) == 8
    assert remote.read_image(6) == jpeg(2)
    assert remote.key(6) == "part-1/0002"
    globbed = TarSource(urls="memory://bucket/part-*" + end).open()
    assert globbed.fingerprint == remote.fingerprint
    local = TarSource(urls=f"file://{tmp_path}/part-0{end}").open()
    assert [local.read_image(index) for index in range(4)] == [remote.read_image(index) for index in range(4)]


def test_keys_of_all_shards(tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f"{number}.tar").write_bytes(tar_bytes(pairs(3, start=number)))
    assert len(TarSource(urls=str(tmp_path)).open()) == 6
    joined = TarSource(urls=str(tmp_path / "{0..1}.tar"), key_with_shard=False).open()
    assert keys(joined) == ["0000", "0001", "0002", "0003"]
    assert entries(joined.ledger) == {("0001", "duplicate-key"), ("0002", "duplicate-key")}
    assert joined.read_image(3) == jpeg(3)
    with pytest.raises(UserError, match="named twice"):
        TarSource(urls=(str(tmp_path / "0.tar"), str(tmp_path / "0.tar"))).open()


def test_a_source_can_be_pickled_while_it_is_open(tmp_path: Path) -> None:
    source = opened(tmp_path, tar_bytes(pairs(3)))
    assert source.read_image(1) == jpeg(1)
    copy = pickle.loads(pickle.dumps(source))
    assert copy.read_image(2) == jpeg(2)
    assert copy.fingerprint == source.fingerprint


def test_a_tar_cut_after_it_was_indexed_is_a_broken_member(tmp_path: Path) -> None:
    data = tar_bytes(pairs(3))
    source = opened(tmp_path, data)
    with (tmp_path / "shard.tar").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(SampleError) as caught:
        source.read_image(2)
    assert caught.value.reason == "broken-member"


def test_braces_and_names() -> None:
    assert expand_braces("s3://b/{a,b}-{08..10}.tar") == [
        f"s3://b/{letter}-{number}.tar" for letter in "ab" for number in ("08", "09", "10")
    ]
    assert expand_braces("plain.tar") == ["plain.tar"]
    assert shard_names(["x/a.tar", "y/a.tar.gz", "y/b.tgz"]) == ["x/a", "y/a", "y/b"]


HUGE = "9" * 5000


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (f'{{"caption": "a", "id": {HUGE}}}', "broken-member"),
        ('{"caption": "a", "id": ' + "[" * 100_000 + "]" * 100_000 + "}", "broken-member"),
        (r'{"caption": "a\ud800"}', "bad-encoding"),
    ],
)
def test_hostile_json_costs_one_sample(tmp_path: Path, content: str, reason: str) -> None:
    source = opened(tmp_path, tar_bytes([*pairs(1), ("bad.jpg", jpeg()), ("bad.json", content.encode())]))
    assert keys(source) == ["shard/0000"]
    assert entries(source.ledger) == {("shard/bad", reason)}


def test_a_category_that_is_no_utf8_is_written_with_escapes(tmp_path: Path) -> None:
    source = opened(tmp_path, tar_bytes([("0.jpg", jpeg()), ("0.json", rb'{"caption": "a", "category": "x\ud800"}')]))
    assert source.category(0) == r"x\xed\xa0\x80"
    assert source.metadata(0) == {"category": "x\ud800"}


def test_a_pax_size_of_absurd_length_costs_one_member(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("bad.jpg")
        info.pax_headers = {"size": HUGE}
        archive.addfile(info)
        for name, data in pairs(1):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    source = opened(tmp_path, stream.getvalue())
    assert keys(source) == ["shard/0000"]
    # The listing goes on at the member's own header, which says that it is empty.
    assert [entry.reason for entry in source.ledger] == ["broken-member", "empty-caption"]


def test_a_text_of_absurd_length_costs_one_sample(tmp_path: Path) -> None:
    source = opened(tmp_path, tar_bytes([*pairs(1), ("big.jpg", jpeg()), ("big.txt", b"a" * ((1 << 20) + 1))]))
    assert keys(source) == ["shard/0000"]
    assert [(each.key, each.reason) for each in source.ledger] == [("shard/big", "broken-member")]
    assert "the limit is 1048576" in next(iter(source.ledger)).detail


def test_names_that_make_no_sample_are_in_the_ledger(tmp_path: Path) -> None:
    members = [
        ("photo.v1.jpg", jpeg()),
        ("photo.v1.txt", b"a"),
        ("raw.cr2", b"raw"),
        ("0000.cls", b"7"),
        ("README", b""),
    ]
    source = opened(tmp_path, tar_bytes([*pairs(1), *members]))
    assert keys(source) == ["shard/0000"]
    assert entries(source.ledger) == {("shard/photo", "missing-file"), ("shard/raw", "missing-file")}
    assert "photo.v1.jpg" in next(iter(source.ledger)).detail


@pytest.mark.parametrize("pattern", ["", "*.tar"])
def test_a_folder_called_like_a_tar_is_not_one(tmp_path: Path, pattern: str) -> None:
    (tmp_path / "x.tar").mkdir()
    with pytest.raises(UserError, match="there is no tar"):
        TarSource(urls=str(tmp_path / pattern)).open()
    (tmp_path / "y.tar").write_bytes(tar_bytes(pairs(1)))
    assert keys(TarSource(urls=str(tmp_path / pattern)).open()) == ["y/0000"]


@pytest.mark.parametrize("end", [".tar", ".tar.gz"])
def test_a_cache_that_cannot_be_written_is_a_user_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("TROTH_CACHE", str(tmp_path / "file" / "cache"))
    data = tar_bytes(pairs(1))
    with pytest.raises(UserError, match=r"file/cache/tars: the cache folder cannot be written to.*set TROTH_CACHE"):
        opened(tmp_path, gzip.compress(data) if end == ".tar.gz" else data, f"0{end}")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_a_user_error(tmp_path: Path) -> None:
    with (
        Path("/dev/full").open("wb", buffering=0) as full,
        pytest.raises(UserError, match=r"No space left.*TROTH_CACHE"),
    ):
        CacheWriter(full, tmp_path).write(b"data")
    with cache_file(tmp_path / "new") as file:
        assert file.write(b"da") + file.write(b"ta") == 4
    assert (tmp_path / "new").read_bytes() == b"data"
    with pytest.raises(OSError, match="of the source"), cache_file(tmp_path / "other"):
        raise OSError("of the source")
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
