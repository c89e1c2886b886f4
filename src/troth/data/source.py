"""What every data source looks like, and the one index they all keep.

A source is a numbered list of samples: sample ``i`` has a key, one or several captions, perhaps a category, and image
bytes that are read on demand. The number is the *sample id*: it is stable for as long as the content is, and
everything that remembers something about a pair is keyed by it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa

from troth.data.ledger import Ledger, LedgerEntry, SampleError
from troth.errors import UserError

#: The columns every index has; sources add the columns that say where the image is.
COMMON_COLUMNS: dict[str, pa.DataType] = {
    "key": pa.large_string(),
    "captions": pa.large_list(pa.large_string()),
    "category": pa.large_string(),
    "metadata": pa.large_string(),
}

_ROWS_PER_CHUNK = 65_536


@runtime_checkable
class Source(Protocol):
    """A numbered list of image-text samples. See :class:`IndexedSource` for the meaning of each method."""

    name: str
    ledger: Ledger

    @property
    def fingerprint(self) -> str:
        """Sha256 (hex) of keys and captions in id order."""

    def __len__(self) -> int: ...

    def key(self, index: int) -> str:
        """The key of sample ``index``: unique, and what the ledger names it by."""

    def captions(self, index: int) -> tuple[str, ...]:
        """Its captions: at least one, stripped, none blank."""

    def category(self, index: int) -> str | None:
        """Its category, if the source knows one."""

    def metadata(self, index: int) -> Mapping[str, Any]:
        """Whatever else the source says about it."""

    def read_image(self, index: int) -> bytes:
        """Its encoded image. Raises :class:`~troth.data.ledger.SampleError` if that cannot be read."""


class ImageReader(Protocol):
    """Fetches encoded images by the locator columns of an index. Must be picklable."""

    def read(self, index: pa.Table, row: int) -> bytes:
        """The bytes of the image of ``row``. May raise ``OSError`` or ``SampleError``."""


def clean_captions(captions: Iterable[object]) -> list[str]:
    """Strip captions and drop the blank and missing (``None``, NaN) ones; the order is kept."""
    return [text for caption in captions if isinstance(caption, str) and (text := caption.strip())]


class IndexBuilder:
    """Collects samples into an index and enters what cannot be used into a ledger.

    Args:
        locator: names and types of the columns that say where an image is.
        ledger: where empty captions and duplicate keys are entered.
        merge: if True a repeated key adds its captions to the first sample instead of being a ``duplicate-key``.
    """

    def __init__(self, locator: Mapping[str, pa.DataType], ledger: Ledger, *, merge: bool = False) -> None:
        self.schema = pa.schema([*COMMON_COLUMNS.items(), *locator.items()])
        self.ledger = ledger
        self._merge = merge
        self._row_of: dict[str, int] = {}
        self._more: dict[int, list[str]] = {}
        self._rows: list[dict[str, Any]] = []
        self._chunks: list[pa.RecordBatch] = []

    def add(
        self,
        key: str,
        captions: Iterable[object],
        *,
        category: object = None,
        metadata: Mapping[str, Any] | None = None,
        **locator: Any,
    ) -> bool:
        """Add one sample. Returns False, with an entry in the ledger, if it cannot be used.

        Args:
            key: unique among the samples.
            captions: what is no text or blank is left out.
            category: its name, in any form; None if it has none.
            metadata: further fields.
            **locator: where the image is.
        """
        if not is_unicode(key):
            self.ledger.add(LedgerEntry(printable(key), "bad-encoding", "the key is not valid UTF-8"))
            return False
        captions = list(captions)
        kept = clean_captions(captions)
        if not all(map(is_unicode, kept)):
            self.ledger.add(LedgerEntry(key, "bad-encoding", "a caption is not valid UTF-8"))
            return False
        if not kept:
            detail = "every caption is blank" if captions else "it has no caption"
            self.ledger.add(LedgerEntry(key, "empty-caption", detail))
            return False
        try:
            category = None if category is None else printable(str(category))
            known = json.dumps(dict(metadata), ensure_ascii=True, default=str) if metadata else None
        except (ValueError, RecursionError) as error:
            self.ledger.add(LedgerEntry(key, "broken-member", f"its metadata: {error}"))
            return False
        if key in self._row_of:
            if self._merge:
                self._more.setdefault(self._row_of[key], []).extend(kept)
                return True
            self.ledger.add(LedgerEntry(key, "duplicate-key", "the first sample of this key is kept"))
            return False
        self._row_of[key] = len(self._row_of)
        self._rows.append(
            {"key": key, "captions": kept, "category": category, "metadata": known, **locator},
        )
        if len(self._rows) >= _ROWS_PER_CHUNK:
            self._flush()
        return True

    def finish(self) -> pa.Table:
        """The index of all samples added, in the order they were added."""
        self._flush()
        table = pa.Table.from_batches(self._chunks, schema=self.schema)
        if self._more:
            captions = table["captions"].to_pylist()
            for row, more in self._more.items():
                captions[row] = list(dict.fromkeys(captions[row] + more))
            column = pa.array(captions, type=COMMON_COLUMNS["captions"])
            table = table.set_column(self.schema.get_field_index("captions"), "captions", column)
        return table

    def _flush(self) -> None:
        if self._rows:
            self._chunks.append(pa.RecordBatch.from_pylist(self._rows, schema=self.schema))
            self._rows = []


class IndexedSource:
    """A source over an Arrow index and a reader of images; every source of the package opens to one.

    Args:
        name: what to call it in messages.
        index: a table with :data:`COMMON_COLUMNS` and the reader's locator columns.
        reader: fetches the images.
        ledger: what was skipped while the index was made.
        where: the configuration field to name if there is no usable sample.

    Raises:
        UserError: if not one sample is usable.
    """

    def __init__(self, name: str, index: pa.Table, reader: ImageReader, ledger: Ledger, *, where: str = "path") -> None:
        if index.num_rows == 0:
            found = ", ".join(f"{count} {reason}" for reason, count in ledger.counts().items())
            example = next((f"; for example {entry.key}: {entry.detail}" for entry in ledger), "")
            raise UserError(
                f"{name} has no usable sample",
                where=where,
                remedy=f"skipped: {found}{example}" if found else "it holds no pair of an image and a caption",
            )
        self.name = name
        self.index = index
        self.reader = reader
        self.ledger = ledger
        self._keys = index["key"]
        self._captions = index["captions"]
        self._categories = index["category"]
        self._metadata = index["metadata"]

    def __len__(self) -> int:
        return int(self.index.num_rows)

    def __repr__(self) -> str:
        return f"IndexedSource({self.name!r}, {len(self)} samples, skipped {self.ledger.counts()})"

    def key(self, index: int) -> str:
        """The key of sample ``index``: unique, and what the ledger names it by."""
        return str(self._keys[index].as_py())

    def captions(self, index: int) -> tuple[str, ...]:
        """The captions of sample ``index``: at least one, stripped, none blank."""
        return tuple(self._captions[index].as_py())

    def category(self, index: int) -> str | None:
        """The category of sample ``index``, if the source knows one."""
        category = self._categories[index].as_py()
        return None if category is None else str(category)

    def metadata(self, index: int) -> Mapping[str, Any]:
        """Whatever else the source says about sample ``index`` (the json of a webdataset, further columns)."""
        known = self._metadata[index].as_py()
        fields: dict[str, Any] = json.loads(known) if known else {}
        return fields

    def read_image(self, index: int) -> bytes:
        """The encoded image of sample ``index``.

        Raises:
            SampleError: ``missing-file``, ``empty-file`` or what the reader found, with the sample's key.
        """
        try:
            data = self.reader.read(self.index, index)
        except SampleError as error:
            raise SampleError(self.key(index), error.reason, error.detail) from error
        except OSError as error:
            raise SampleError(self.key(index), "missing-file", error.strerror or str(error)) from error
        if not data:
            raise SampleError(self.key(index), "empty-file", "the image has no bytes")
        return data

    @cached_property
    def fingerprint(self) -> str:
        """Sha256 (hex) of keys and captions in id order.

        It does not depend on where the data lies or what it is called. It does depend on the order, since a sample
        id is a place in that order: memory keyed by id must not be carried over to a shuffled copy.
        """
        digest = hashlib.sha256()
        for batch in self.index.select(["key", "captions"]).to_batches(max_chunksize=8192):
            for key, captions in zip(batch["key"].to_pylist(), batch["captions"].to_pylist(), strict=True):
                digest.update(json.dumps([key, captions], ensure_ascii=True).encode("ascii"))
                digest.update(b"\n")
        return digest.hexdigest()


def captions_column(source: Source) -> pa.LargeListArray:
    """All captions of a source as one Arrow array of lists, row = sample id."""
    if isinstance(source, IndexedSource):
        combined = source.index["captions"].combine_chunks()
        return combined.combine_chunks() if isinstance(combined, pa.ChunkedArray) else combined
    rows = [list(source.captions(index)) for index in range(len(source))]
    return pa.array(rows, type=COMMON_COLUMNS["captions"])


def categories_array(source: Source) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The category of every sample as a number ``(N,)``; -1 where the source knows none."""
    if isinstance(source, IndexedSource):
        names = source.index["category"].to_pylist()
    else:
        names = [source.category(index) for index in range(len(source))]
    numbers: dict[str, int] = {}
    return np.fromiter(
        (-1 if name is None else numbers.setdefault(name, len(numbers)) for name in names),
        dtype=np.int64,
        count=len(names),
    )


def is_unicode(text: str) -> bool:
    """Whether ``text`` can be written as UTF-8 (no lone surrogates, which stand for undecodable bytes)."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def printable(text: str) -> str:
    """``text`` with what cannot be written as UTF-8 (undecodable bytes, lone surrogates) as backslash escapes."""
    try:
        data = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        # Not from undecodable bytes: JSON can say "\\ud800".
        data = text.encode("utf-8", "surrogatepass")
    return data.decode("utf-8", "backslashreplace")
