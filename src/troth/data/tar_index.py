"""The index of one tar: its samples, where their images are and what was wrong, kept in the cache folder."""

from __future__ import annotations

import gzip
import json
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from troth.data.blobs import RANGE_COLUMNS, content_identity, hash_of, is_remote, remote
from troth.data.files import cache_file, writing_cache
from troth.data.index_cache import INDEX_VERSION, load_index, store_index
from troth.data.ledger import Ledger, LedgerEntry
from troth.data.source import IndexBuilder, printable
from troth.data.tars import Member, TarProblem, list_members
from troth.errors import UserError

#: What counts as an image in a tar or a folder (lower case, no dot).
IMAGE_SUFFIXES = frozenset(
    ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "jp2", "avif", "ppm"),
)
#: No caption file or json is larger: those of a whole tar are in memory while it is indexed.
LARGEST_TEXT = 1 << 20
_COPY_BYTES = 1 << 20
_SAMPLE_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")


@dataclass(frozen=True, slots=True)
class ShardOptions:
    """How to read one tar: its short name, the prefix of its keys, and the limits of :class:`TarSource`."""

    name: str
    category_field: str
    key_prefix: str
    max_unpacked: int


@dataclass(frozen=True, slots=True)
class Shard:
    """One indexed tar.

    Attributes:
        path: the plain tar that ``table`` points into: the tar itself or its unpacked copy in the cache.
        table: the samples, with ``file`` = 0.
        ledger: what was skipped.
    """

    path: str
    table: pa.Table
    ledger: Ledger


@dataclass(slots=True)
class _Group:
    """The members of one key, as far as they have been met."""

    image: Member | None = None
    texts: dict[str, bytes] = field(default_factory=dict)
    refused: bool = False


def index_shard(url: str, options: ShardOptions, folder: Path) -> Shard:
    """Return the index of a tar from the cache, or make it.

    Raises:
        UserError: the tar unpacks to more than ``options.max_unpacked``, or the cache cannot be written.
    """
    copy, index_path = cached_files(url, options, folder)
    gzipped = _is_gzip(url)
    tar_path = str(copy) if gzipped else url
    with writing_cache(folder):
        unpacked = not gzipped or Path(tar_path).is_file()
    if unpacked:
        known = load_index(index_path)
        if known is not None:
            return Shard(tar_path, *known)
    ledger = Ledger()
    damage = _unpack(url, Path(tar_path), options) if gzipped else None
    table = _index(tar_path, options, ledger)
    if damage is not None:
        # A damaged gzip mostly ends as a truncated tar too, whose entry says the same: the ledger keeps one.
        ledger.add(LedgerEntry(options.name, "broken-member", damage))
    store_index(index_path, table, ledger)
    return Shard(tar_path, table, ledger)


def cached_files(url: str, options: ShardOptions, folder: Path) -> tuple[Path, Path]:
    """Return where in ``folder`` the unpacked copy of a gzipped tar and the index of any tar are, or would be."""
    identity = content_identity(url)
    return folder / f"{identity}.tar", folder / f"{hash_of([INDEX_VERSION, identity, asdict(options)])}.arrow"


@contextmanager
def _opened(url: str) -> Iterator[tuple[BinaryIO, int]]:
    """The file as a seekable stream, and its size in bytes."""
    if is_remote(url):
        filesystem, inner = remote(url)
        with filesystem.open(inner, "rb", block_size=_COPY_BYTES) as stream:
            yield stream, int(filesystem.size(inner))
    else:
        with Path(url).open("rb") as stream:
            yield stream, os.fstat(stream.fileno()).st_size


def _is_gzip(url: str) -> bool:
    with _opened(url) as (stream, _):
        return bytes(stream.read(2)) == b"\x1f\x8b"


def _unpack(url: str, target: Path, options: ShardOptions) -> str | None:
    """Unpack a gzipped tar to ``target``, as far as it goes. Returns what was wrong with it, if anything."""
    damage = None
    total = 0
    with _opened(url) as (stream, _), cache_file(target) as sink:
        with gzip.GzipFile(fileobj=stream) as unpacked:
            while True:
                try:
                    # read1 hands over what is there: read() would lose a whole block to damage at its end.
                    block = unpacked.read1(_COPY_BYTES)
                except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                    damage = f"the gzip stream is damaged after {total} unpacked bytes: {error}"
                    break
                if not block:
                    break
                total += len(block)
                if total > options.max_unpacked:
                    raise UserError(
                        f"{url} unpacks to more than {options.max_unpacked / 2**30:g} GiB",
                        where="max_unpacked_gib",
                        remedy="raise it if you trust this tar",
                    )
                sink.write(block)
    return damage


def _index(path: str, options: ShardOptions, ledger: Ledger) -> pa.Table:
    """List a plain tar and join its members to samples."""
    groups: dict[str, _Group] = {}
    others: dict[str, str] = {}
    last = ""
    truncated = False
    with _opened(path) as (stream, size):
        for item in list_members(stream, size):
            match = _SAMPLE_NAME.fullmatch(item.name.removeprefix("./"))
            stem, suffix = (match.group(1), match.group(2).lower()) if match else (item.name, "")
            if isinstance(item, TarProblem):
                if item.name:
                    ledger.add(LedgerEntry(options.key_prefix + stem, item.reason, f"{item.name}: {item.detail}"))
                    groups.setdefault(stem, _Group()).refused = True
                else:
                    key = options.name if item.truncated else f"{options.name}@{item.offset}"
                    ledger.add(LedgerEntry(key, item.reason, item.detail))
                    truncated = truncated or item.truncated
            elif suffix in IMAGE_SUFFIXES or suffix in ("txt", "json"):
                _take(groups.setdefault(stem, _Group()), item, suffix, stream, options.key_prefix + stem, ledger)
                last = stem
            elif match is not None:
                others.setdefault(stem, item.name)
                last = stem
    builder = IndexBuilder(RANGE_COLUMNS, ledger)
    for stem, group in groups.items():
        if truncated and stem == last and (group.image is None or not group.texts):
            continue  # lost to the truncation, which has its entry
        _add(builder, options, stem, group)
    for stem, name in others.items():
        if stem not in groups and not (truncated and stem == last):
            detail = f"neither an image nor a caption by its name: {printable(name)}"
            ledger.add(LedgerEntry(printable(options.key_prefix + stem), "missing-file", detail))
    return builder.finish()


def _take(group: _Group, member: Member, suffix: str, stream: BinaryIO, key: str, ledger: Ledger) -> None:
    """Add a member to its sample: note the image's place, read a caption file."""
    if suffix in IMAGE_SUFFIXES:
        if group.image is None:
            group.image = member
        elif group.image.name == member.name:
            ledger.add(LedgerEntry(key, "duplicate-key", f"{member.name} occurs again; the first is kept"))
    elif suffix in group.texts:
        ledger.add(LedgerEntry(key, "duplicate-key", f"{member.name} occurs again; the first is kept"))
    elif member.size > LARGEST_TEXT:
        detail = f"{member.name} has {member.size} bytes of text, the limit is {LARGEST_TEXT}"
        ledger.add(LedgerEntry(key, "broken-member", detail))
        group.refused = True
    else:
        stream.seek(member.offset)
        group.texts[suffix] = stream.read(member.size)


def _add(builder: IndexBuilder, options: ShardOptions, stem: str, group: _Group) -> None:
    """Add one sample to the index, or enter why not."""
    key = options.key_prefix + stem
    if group.refused:
        return  # entered when it was met
    if group.image is None:
        builder.ledger.add(LedgerEntry(key, "missing-file", "there is a caption but no image"))
        return
    try:
        fields = json.loads(group.texts["json"].decode("utf-8")) if "json" in group.texts else {}
        text = group.texts["txt"].decode("utf-8") if "txt" in group.texts else None
    except UnicodeDecodeError as error:
        builder.ledger.add(LedgerEntry(key, "bad-encoding", str(error)))
        return
    except (ValueError, RecursionError) as error:  # also numbers of more digits than Python reads
        builder.ledger.add(LedgerEntry(key, "broken-member", f"its json: {error}"))
        return
    if not isinstance(fields, dict):
        builder.ledger.add(LedgerEntry(key, "broken-member", "its json is not an object"))
        return
    builder.add(
        key,
        _captions(fields, text),
        category=fields.get(options.category_field),
        metadata={name: value for name, value in fields.items() if name not in ("captions", "caption")},
        file=0,
        offset=group.image.offset,
        size=group.image.size,
    )


def _captions(fields: dict[str, Any], text: str | None) -> list[object]:
    listed = fields.get("captions")
    if isinstance(listed, list) and listed:
        return list(listed)
    if text is not None:
        return [text]
    single = fields.get("caption", listed)
    return [] if single is None else [single]
