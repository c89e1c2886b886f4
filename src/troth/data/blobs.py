"""Random access to byte ranges of big files, local or remote: the reader below tars and repacked tables."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa

from troth.data.ledger import SampleError

#: The locator columns of :class:`RangeReader`: number of the file, first byte, number of bytes.
RANGE_COLUMNS: dict[str, pa.DataType] = {"file": pa.int32(), "offset": pa.int64(), "size": pa.int64()}

#: No encoded image is larger; a file or member that is gets refused as ``image-too-large``.
MAX_IMAGE_BYTES = 1 << 30

_OPEN_FILES = 64


class RangeReader:
    """Reads images that are byte ranges of files.

    Local files are read by ``pread``, so that forked workers share descriptors without sharing a position. Remote
    ones (fsspec URLs) are read by ranged requests. Connections and descriptors are opened on first use in each
    process and never pickled.

    Args:
        files: local paths or fsspec URLs, numbered by the ``file`` column of the index.
    """

    def __init__(self, files: Sequence[str]) -> None:
        self.files = tuple(files)
        self._descriptors: OrderedDict[int, int] = OrderedDict()

    def read(self, index: pa.Table, row: int) -> bytes:
        """The bytes of the image of ``row``. Raises ``OSError``, or ``SampleError`` if the file is too short."""
        number = index["file"][row].as_py()
        offset = index["offset"][row].as_py()
        size = index["size"][row].as_py()
        if size > MAX_IMAGE_BYTES:
            raise SampleError("", "image-too-large", f"{size} encoded bytes")
        data = self.read_range(number, offset, size)
        if len(data) != size:
            detail = f"{self.files[number]} ends after {len(data)} of its {size} bytes"
            raise SampleError("", "broken-member", detail)
        return data

    def read_range(self, number: int, offset: int, size: int) -> bytes:
        """Up to ``size`` bytes from ``offset`` of file ``number``; fewer at its end."""
        if size == 0:
            return b""
        path = self.files[number]
        if is_remote(path):
            filesystem, inner = remote(path)
            return bytes(filesystem.cat_file(inner, start=offset, end=offset + size))
        descriptor = self._descriptor(number)
        parts: list[bytes] = []
        while size > 0 and (part := os.pread(descriptor, size, offset)):
            parts.append(part)
            offset += len(part)
            size -= len(part)
        return b"".join(parts)

    def close(self) -> None:
        """Close every open descriptor; reading opens them again."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def _descriptor(self, number: int) -> int:
        if number in self._descriptors:
            self._descriptors.move_to_end(number)
        else:
            if len(self._descriptors) >= _OPEN_FILES:
                os.close(self._descriptors.popitem(last=False)[1])
            self._descriptors[number] = os.open(self.files[number], os.O_RDONLY)
        return self._descriptors[number]

    def __getstate__(self) -> dict[str, Any]:
        return {"files": self.files, "_descriptors": OrderedDict()}

    def __del__(self) -> None:
        # __init__ may not have run (unpickling interrupted).
        if getattr(self, "_descriptors", None):
            self.close()


class FileReader:
    """Reads images that are files of their own, by the ``path`` column (relative to a root folder)."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, index: pa.Table, row: int) -> bytes:
        """The bytes of the image of ``row``. Raises ``OSError``, or ``SampleError`` if it is no plain, sane file."""
        # Non-blocking, so that a named pipe in a scraped folder cannot hang the loader.
        descriptor = os.open(self.root / index["path"][row].as_py(), os.O_RDONLY | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise SampleError("", "missing-file", "not a regular file")
            if status.st_size > MAX_IMAGE_BYTES:
                raise SampleError("", "image-too-large", f"{status.st_size} encoded bytes")
            return file.read()


#: The locator column of :class:`FileReader`.
PATH_COLUMNS: dict[str, pa.DataType] = {"path": pa.large_string()}


def is_remote(path: str) -> bool:
    """Whether ``path`` is an fsspec URL rather than a local path (``file://`` counts as local)."""
    return "://" in path and not path.startswith("file://")


def local_path(url: str) -> str:
    """A ``file://`` URL as a path; anything else unchanged."""
    return unquote(urlsplit(url).path) if url.startswith("file://") else url


def remote(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL and the path within it (fsspec caches file systems per process)."""
    import fsspec

    filesystem, inner = fsspec.core.url_to_fs(url)
    return filesystem, inner


def content_identity(url: str) -> str:
    """A short hash of what tells whether a file is the one met before: its place, size and time or entity tag."""
    if is_remote(url):
        filesystem, inner = remote(url)
        info = filesystem.info(inner)
        known = ("size", "etag", "ETag", "mtime", "LastModified", "last_modified", "created", "md5Hash")
        facts = [url, *(f"{name}={info[name]}" for name in known if info.get(name) is not None)]
    else:
        path = Path(url).resolve()
        status = path.stat()
        facts = [str(path), f"size={status.st_size}", f"mtime={status.st_mtime_ns}"]
    return hash_of(facts)


def hash_of(facts: Any) -> str:
    """A short hash of something JSON can say, for file names in the cache."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
