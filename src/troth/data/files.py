"""Files that are either whole or not there, and the cache folder."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it replaces ``path``, on an error it is removed.

    Args:
        path: the file to be written. Missing parent folders are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def cache_folder() -> Path:
    """Where unpacked shards and their indexes are kept: ``$TROTH_CACHE``, else ``~/.cache/troth``."""
    named = os.environ.get("TROTH_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "troth"
