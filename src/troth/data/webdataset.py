"""Webdataset-format tars, local or remote, as an addressable source.

Every tar is listed once; the list (captions included) is kept in the cache folder and mapped into memory from there,
so that opening a known set is quick and workers share its pages. Images are then single ranged reads.
"""

from __future__ import annotations

import glob
import itertools
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field
from pydantic.dataclasses import dataclass

from troth.data.blobs import RangeReader, is_remote, local_path, remote
from troth.data.files import cache_folder
from troth.data.ledger import Ledger, LedgerEntry
from troth.data.source import IndexedSource
from troth.data.tar_index import ShardOptions, cached_files, index_shard
from troth.errors import UserError
from troth.types import STRICT

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


@dataclass(frozen=True, config=STRICT)
class TarSource:
    """Tars in which the files of one sample share their name up to the first dot: ``0007.jpg``, ``0007.txt``.

    A sample has one image (``.jpg .jpeg .png .webp .gif .bmp .tif .tiff .jp2 .avif .ppm``) and captions: the list
    ``captions`` of its ``.json``, else its ``.txt`` as one caption, else the ``caption`` of its ``.json``. The other
    fields of the ``.json`` are its metadata.

    Skipped with an entry in the ledger: damaged members and headers, what lies behind a truncation (one entry, named
    after the tar), links and names that are absolute or hold ``..``, images without captions and captions without
    image, names of which neither is made (``photo.v1.jpg``), texts of more than 1 MiB, and repeated keys.

    Attributes:
        urls: paths or fsspec URLs of ``.tar`` or ``.tar.gz`` files; braces (``{000..127}``, ``{a,b}``) and globs are
            expanded, a local folder stands for all its tars. Gzipped tars are unpacked once into the cache.
        category_field: the field of the ``.json`` that names the sample's category.
        key_with_shard: name samples ``shard/key``. Many writers number each shard from zero; turn this off only if
            keys are unique over all shards.
        max_unpacked_gib: refuse a gzipped tar (or one that says it is) that unpacks to more.
    """

    kind: Literal["webdataset"] = "webdataset"
    urls: str | tuple[str, ...] = ()
    category_field: str = "category"
    key_with_shard: bool = True
    max_unpacked_gib: Annotated[float, Field(gt=0)] = 64.0

    def open(self) -> IndexedSource:
        """Index the tars (or find their indexes in the cache) and return the source.

        Raises:
            UserError: no such tar, a gzip bomb, not one usable sample, or a cache that cannot be written.
        """
        urls = expand_urls(self.urls)
        names = shard_names(urls)
        ledger = Ledger()
        tables: list[pa.Table] = []
        files: list[str] = []
        for number, (url, name) in enumerate(zip(urls, names, strict=True)):
            shard = index_shard(url, self._options(name), cache_folder() / "tars")
            files.append(shard.path)
            ledger.extend(shard.ledger)
            column = pa.array(np.full(shard.table.num_rows, number, dtype=np.int32))
            place = shard.table.schema.get_field_index("file")
            tables.append(shard.table.set_column(place, "file", column))
        index = drop_duplicates(pa.concat_tables(tables), ledger)
        title = str(self.urls) if isinstance(self.urls, str) else f"{len(urls)} tars"
        return IndexedSource(title, index, RangeReader(files), ledger, where="urls")

    def files(self) -> tuple[Path, ...]:
        """Return the local tars and where the cache keeps, or would keep, their unpacked copies and indexes."""
        urls = expand_urls(self.urls)
        folder = cache_folder() / "tars"
        found: list[Path] = []
        for url, name in zip(urls, shard_names(urls), strict=True):
            found += [Path(url), *cached_files(url, self._options(name), folder)]
        return tuple(found)

    def _options(self, name: str) -> ShardOptions:
        return ShardOptions(
            name=name,
            category_field=self.category_field,
            key_prefix=f"{name}/" if self.key_with_shard else "",
            max_unpacked=int(self.max_unpacked_gib * 2**30),
        )


def expand_urls(urls: str | Sequence[str]) -> list[str]:
    """Expand braces, globs and folders to a list of tars, in the order given (globs and folders sorted).

    Raises:
        UserError: a pattern that matches nothing.
    """
    patterns = [urls] if isinstance(urls, str) else list(urls)
    found = [url for pattern in patterns for each in expand_braces(pattern) for url in _matches(each)]
    if not found:
        raise UserError("no tar is named", where="urls", remedy="give a path such as shards/{000..127}.tar")
    return found


def expand_braces(pattern: str) -> list[str]:
    """``a{0..2}`` to ``a0 a1 a2`` (zero-padded as the first number is), ``a{x,y}`` to ``ax ay``."""
    match = _BRACES.search(pattern)
    if match is None:
        return [pattern]
    limits = _RANGE.fullmatch(match.group(1))
    if limits is not None:
        first, last = limits.groups()
        width = len(first)
        choices = [f"{number:0{width}d}" for number in range(int(first), int(last) + 1)]
    else:
        choices = match.group(1).split(",")
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return [f"{head}{choice}{rest}" for choice, rest in itertools.product(choices, expand_braces(tail))]


def shard_names(urls: Sequence[str]) -> list[str]:
    """A short name for each tar: its file name without ``.tar``; with as many parents as make all names differ."""
    parts = [PurePosixPath(re.sub(r"\.tar(\.gz)?$|\.tgz$", "", url)).parts for url in urls]
    longest = max(len(each) for each in parts)
    for depth in range(1, longest + 1):
        names = ["/".join(each[-depth:]).lstrip("/") for each in parts]
        if len(set(names)) == len(names):
            return names
    raise UserError("the same tar is named twice", where="urls", remedy="name each tar once")


def drop_duplicates(index: pa.Table, ledger: Ledger) -> pa.Table:
    """Keep the first sample of each key; enter the others as ``duplicate-key``."""
    keys = index["key"]
    if len(keys.unique()) == len(keys):
        return index
    seen: set[str] = set()
    keep: list[bool] = []
    for key in keys.to_pylist():
        keep.append(key not in seen)
        if key in seen:
            ledger.add(LedgerEntry(key, "duplicate-key", "the first sample of this key is kept"))
        seen.add(key)
    return index.filter(pa.array(keep))


def _matches(pattern: str) -> list[str]:
    if is_remote(pattern):
        filesystem, inner = remote(pattern)
        if not any(character in inner for character in "*?["):
            if not filesystem.exists(inner):
                raise _missing(pattern)
            return [pattern]
        found = sorted(filesystem.unstrip_protocol(path) for path in filesystem.glob(inner))
    else:
        path = Path(local_path(pattern)).expanduser().absolute()
        if path.is_dir():
            found = sorted(
                str(each) for end in ("*.tar", "*.tar.gz", "*.tgz") for each in path.glob(end) if each.is_file()
            )
        elif path.is_file():
            found = [str(path)]
        else:
            found = sorted(each for each in glob.glob(str(path)) if Path(each).is_file())  # noqa: PTH207 - may be absolute
    if not found:
        raise _missing(pattern)
    return found


def _missing(pattern: str) -> UserError:
    return UserError(f"there is no tar {pattern}", where="urls", remedy="check the path")
