"""Rows of CSV, TSV, JSON lines and parquet files, each on its own: a broken row never takes its neighbours along."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from troth.data.ledger import LedgerEntry, Reason
from troth.errors import UserError

#: One row: its number from 1 (the header is not counted), and its cells by column name.
Row = tuple[int, dict[str, Any]]


def row_key(number: int) -> str:
    """What a row without a key of its own is called."""
    return f"row-{number:09d}"


def read_rows(path: Path, form: str, delimiter: str, columns: Sequence[str]) -> Iterator[Row | LedgerEntry]:
    """Read a table row by row.

    Args:
        path: the file.
        form: ``csv``, ``tsv``, ``jsonl`` or ``parquet``.
        delimiter: of csv and tsv.
        columns: the columns needed.

    Yields:
        Rows, and entries for the rows that cannot be read. Text that is not UTF-8 holds lone surrogates.

    Raises:
        UserError: a column is missing, or a parquet file is damaged.
    """
    if form == "parquet":
        yield from _parquet_rows(path, columns)
        return
    with path.open("rb") as file:
        if form == "jsonl":
            yield from _json_rows(file, columns)
        else:
            yield from _delimited_rows(file, delimiter, columns)


def _delimited_rows(file: BinaryIO, delimiter: str, columns: Sequence[str]) -> Iterator[Row | LedgerEntry]:
    records = _records(file, delimiter)
    header = next(records, None)
    if not isinstance(header, list):
        raise UserError("the table has no header line", where="path", remedy="its first line must name the columns")
    header[0] = header[0].removeprefix("\ufeff")
    check_columns(columns, header)
    for number, record in enumerate(records, start=1):
        if isinstance(record, str):
            yield _broken(number, record)
        elif len(record) != len(header):
            yield _broken(number, f"{len(record)} cells instead of {len(header)}")
        else:
            yield number, dict(zip(header, record, strict=True))


def _records(file: BinaryIO, delimiter: str) -> Iterator[list[str] | str]:
    """Parse one record at a time; a message stands for a record that cannot be parsed.

    An unbalanced quote would make the csv reader swallow everything up to the next quote. So after an error the file
    is set back to the line after the one the broken record began with. Blank lines are not records.
    """
    position = file.tell()
    while first := file.readline():
        lines = _Lines(file, first)
        if first.strip(b"\r\n"):
            try:
                yield next(csv.reader(lines, delimiter=delimiter, strict=True))
            except csv.Error as error:
                lines.size = len(first)
                file.seek(position + lines.size)
                yield str(error)
        position += lines.size


class _Lines:
    """The lines of one record: the one already read, then as many as the csv reader asks for."""

    def __init__(self, file: BinaryIO, first: bytes) -> None:
        self._file = file
        self._next = first
        self.size = len(first)

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._next
        if line:
            self._next = b""
        else:
            line = self._file.readline()
            self.size += len(line)
        if not line:
            raise StopIteration
        return line.decode("utf-8", "surrogateescape")


def _json_rows(file: BinaryIO, columns: Sequence[str]) -> Iterator[Row | LedgerEntry]:
    known = False
    number = 0
    for line in file:
        if not line.strip():
            continue
        number += 1
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            yield _broken(number, str(error), "bad-encoding")
            continue
        except (ValueError, RecursionError) as error:
            yield _broken(number, f"not JSON: {error}")
            continue
        if not isinstance(row, dict):
            yield _broken(number, "not a JSON object")
            continue
        if not known:
            check_columns(columns, list(row))
            known = True
        yield number, row


def _parquet_rows(path: Path, columns: Sequence[str]) -> Iterator[Row | LedgerEntry]:
    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise UserError(f"not a parquet file: {error}", where=str(path)) from error
    check_columns(columns, file.schema_arrow.names)
    number = 0
    for group in range(file.num_row_groups):
        try:
            for batch in file.iter_batches(batch_size=256, row_groups=[group], columns=list(columns)):
                for cells in zip(*(_cells(batch.column(name)) for name in columns), strict=True):
                    number += 1
                    yield number, dict(zip(columns, cells, strict=True))
        except (OSError, pa.ArrowInvalid) as error:
            end = sum(file.metadata.row_group(each).num_rows for each in range(group + 1))
            for lost in range(number + 1, end + 1):
                yield _broken(lost, f"row group {group}: {error}")
            number = end


def _cells(column: pa.Array) -> list[Any]:
    """The values of a column; text is decoded here, since Arrow would refuse a whole column for one bad byte."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        binary = pa.binary() if pa.types.is_string(column.type) else pa.large_binary()
        return [
            None if value is None else value.decode("utf-8", "surrogateescape")
            for value in column.cast(binary).to_pylist()
        ]
    values: list[Any] = column.to_pylist()
    return values


def check_columns(needed: Sequence[str], found: Sequence[str]) -> None:
    """Raise UserError for the first column of ``needed`` that is not in ``found``."""
    for name in needed:
        if name not in found:
            raise UserError(f"there is no column {name!r}", where="columns", remedy=f"there are {', '.join(found)}")


def _broken(number: int, detail: str, reason: Reason = "broken-member") -> LedgerEntry:
    return LedgerEntry(row_key(number), reason, detail)
