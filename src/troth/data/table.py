"""A table of image paths (or image bytes) and captions: CSV, TSV, JSON lines or parquet."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from pydantic.dataclasses import dataclass

from troth.data.blobs import PATH_COLUMNS, RANGE_COLUMNS, FileReader, RangeReader, content_identity, hash_of
from troth.data.files import CacheWriter, cache_file, cache_folder
from troth.data.index_cache import INDEX_VERSION, load_index, store_index
from troth.data.ledger import Ledger, LedgerEntry
from troth.data.source import ImageReader, IndexBuilder, IndexedSource, is_unicode, printable
from troth.data.table_rows import read_rows, row_key
from troth.errors import UserError
from troth.types import STRICT

_FORMATS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}


@dataclass(frozen=True, config=STRICT)
class TableSource:
    """One row an image and its captions, in the order of the file.

    Without a key column an image's path is its key, and rows that repeat a path add their captions to one sample.
    With one, a repeated key is entered as ``duplicate-key``. Rows are numbered from 1 in the ledger.

    Skipped with an entry: rows with a wrong number of cells or broken JSON (``broken-member``), text that is not
    UTF-8, blank captions, and paths that lead out of ``image_root``. Files are looked for when they are read.

    Attributes:
        path: the table.
        format: ``auto`` goes by the suffix: .csv, .tsv, .jsonl, .ndjson, .parquet.
        image_column: paths; or, in parquet, the bytes themselves or Hugging Face's ``{bytes, path}``, which are
            copied once into the cache for random access.
        caption_columns: each cell is a caption or (JSON lines, parquet) a list of them.
        key_column: unique names of the samples; empty for none.
        category_column: empty for none.
        metadata_columns: further columns to keep.
        image_root: the folder paths are relative to, and must not lead out of; empty for the table's own folder. The
            paths are judged as they are written: links inside the folder may point anywhere.
        delimiter: of csv and tsv; empty for ``,`` and tab.
    """

    kind: Literal["table"] = "table"
    path: str = ""
    format: Literal["auto", "csv", "tsv", "jsonl", "parquet"] = "auto"
    image_column: str = "image"
    caption_columns: str | tuple[str, ...] = "caption"
    key_column: str = ""
    category_column: str = ""
    metadata_columns: tuple[str, ...] = ()
    image_root: str = ""
    delimiter: str = ""

    def open(self) -> IndexedSource:
        """Read the table.

        Raises:
            UserError: no such file, format or column, not one usable sample, or a cache that cannot be written.
        """
        path = Path(self.path).expanduser().absolute()
        if not self.path or not path.is_file():
            raise UserError(f"there is no table {self.path!r}", where="path", remedy="check the path")
        if len(self.delimiter) > 1:
            raise UserError(f"{self.delimiter!r} is not one character", where="delimiter")
        root = Path(self.image_root).expanduser().absolute() if self.image_root else path.parent
        # The root too: which paths lead out of it is judged in the index, and it may be relative.
        facts = [INDEX_VERSION, content_identity(str(path)), asdict(self), str(root)]
        stem = cache_folder() / "tables" / hash_of(facts)
        index_path, blob_path = stem.with_suffix(".arrow"), stem.with_suffix(".blob")
        known = load_index(index_path)
        if known is None or (_has_bytes(known[0]) and not blob_path.is_file()):
            ledger = Ledger()
            with _blob(blob_path) as blob:
                index = _Reading(self, root, blob, ledger).index(path, self._form(path))
            store_index(index_path, index, ledger)
            known = index, ledger
        reader: ImageReader = RangeReader([str(blob_path)]) if _has_bytes(known[0]) else FileReader(root)
        return IndexedSource(str(self.path), known[0], reader, known[1])

    def columns(self) -> list[str]:
        """Every column this source reads."""
        captions = [self.caption_columns] if isinstance(self.caption_columns, str) else list(self.caption_columns)
        named = [self.image_column, *captions, self.key_column, self.category_column, *self.metadata_columns]
        return list(dict.fromkeys(name for name in named if name))

    def captions(self, cells: dict[str, Any]) -> list[Any]:
        """The captions of a row."""
        names = [self.caption_columns] if isinstance(self.caption_columns, str) else list(self.caption_columns)
        found: list[Any] = []
        for name in names:
            cell = cells.get(name)
            found.extend(cell if isinstance(cell, list) else [cell])
        return found

    def _form(self, path: Path) -> str:
        form = _FORMATS.get(path.suffix.lower(), "") if self.format == "auto" else self.format
        if not form:
            raise UserError(
                f"the suffix of {path.name!r} names no format",
                where="format",
                remedy="say csv, tsv, jsonl or parquet",
            )
        return form


def _has_bytes(index: pa.Table) -> bool:
    """Whether the images are in the blob, rather than files of their own."""
    return bool(index["file"].null_count < index.num_rows)


class _Blob:
    """The file that image bytes of a table are copied to, made when the first ones come."""

    def __init__(self, file: CacheWriter) -> None:
        self._file = file
        self.size = 0

    def append(self, data: bytes) -> int:
        offset = self.size
        self.size += self._file.write(data)
        return offset


@contextmanager
def _blob(path: Path) -> Iterator[_Blob]:
    """A blob at ``path`` that exists afterwards only if something was written to it."""
    with cache_file(path) as file:
        blob = _Blob(file)
        yield blob
    if not blob.size:
        # Another process that reads the same table may have been first.
        path.unlink(missing_ok=True)


class _Reading:
    """One pass over a table."""

    def __init__(self, table: TableSource, root: Path, blob: _Blob, ledger: Ledger) -> None:
        self.table = table
        self.root = root
        self.blob = blob
        self.ledger = ledger
        self.merge = not table.key_column
        self.builder = IndexBuilder({**PATH_COLUMNS, **RANGE_COLUMNS}, ledger, merge=self.merge)

    def index(self, path: Path, form: str) -> pa.Table:
        delimiter = self.table.delimiter or ("\t" if form == "tsv" else ",")
        for row in read_rows(path, form, delimiter, self.table.columns()):
            if isinstance(row, LedgerEntry):
                self.ledger.add(row)
            else:
                self._add(*row)
        return self.builder.finish()

    def _add(self, number: int, cells: dict[str, Any]) -> None:
        table = self.table
        image = cells.get(table.image_column)
        path = image.get("path") if isinstance(image, dict) else image
        data = image.get("bytes") if isinstance(image, dict) else image
        named = cells.get(table.key_column) if table.key_column else path
        key = str(named) if isinstance(named, str | int) and str(named) else row_key(number)
        if not is_unicode(key):
            self.ledger.add(LedgerEntry(printable(key), "bad-encoding", f"row {number}"))
            return
        locator = self._place(key, data) if isinstance(data, bytes) else self._path(key, path)
        if locator is None:
            return
        category = cells.get(table.category_column) if table.category_column else None
        self.builder.add(
            key,
            table.captions(cells),
            category=category,
            metadata={name: cells.get(name) for name in table.metadata_columns},
            **locator,
        )

    def _place(self, key: str, data: bytes) -> dict[str, Any]:
        return {"path": None, "file": 0, "offset": self.blob.append(data), "size": len(data)}

    def _path(self, key: str, path: object) -> dict[str, Any] | None:
        """The path relative to the root, or None with an entry."""
        if not isinstance(path, str) or not path.strip():
            self.ledger.add(LedgerEntry(key, "missing-file", "the row names no image"))
            return None
        if not is_unicode(path):
            self.ledger.add(LedgerEntry(key, "bad-encoding", f"its path: {printable(path)}"))
            return None
        if path.startswith(os.sep) or ".." in path:
            inside = os.path.relpath(os.path.normpath(self.root / path), self.root)
        else:
            inside = os.path.normpath(path)  # the same, ten times faster
        if inside == ".." or inside.startswith(".." + os.sep) or "\0" in path:
            detail = f"{path} leads out of {self.root}; if that is right, set image_root"
            self.ledger.add(LedgerEntry(key, "unsafe-path", detail))
            return None
        return {"path": inside, "file": None, "offset": None, "size": None}
