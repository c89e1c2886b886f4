"""Indexes kept on disk: an Arrow file with the ledger in its metadata, mapped into memory when it is opened again."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa

from troth.data.files import atomic_path, writing_cache
from troth.data.ledger import Ledger, LedgerEntry

#: Part of every cache key: raise it when the meaning of a stored index changes.
INDEX_VERSION = 2

_LEDGER = b"troth.ledger"


def load_index(path: Path) -> tuple[pa.Table, Ledger] | None:
    """A stored index and its ledger; None if there is none or the file is damaged (it is then made anew)."""
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        ledger = Ledger(LedgerEntry(**entry) for entry in json.loads(table.schema.metadata[_LEDGER]))
    except (OSError, pa.ArrowInvalid, ValueError, TypeError, KeyError):
        return None
    return table.replace_schema_metadata(None), ledger


def store_index(path: Path, table: pa.Table, ledger: Ledger) -> None:
    """Write an index and its ledger, atomically.

    Raises:
        UserError: the folder cannot be written to.
    """
    table = table.replace_schema_metadata({_LEDGER: json.dumps([asdict(entry) for entry in ledger]).encode()})
    with writing_cache(path.parent), atomic_path(path) as temporary, pa.OSFile(str(temporary), "wb") as sink:
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
