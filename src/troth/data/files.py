"""Files that are either whole or not there, and the cache folder."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

from troth.errors import UserError


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


@contextmanager
def writing_cache(folder: Path) -> Iterator[None]:
    """Turn whatever keeps the cache in ``folder`` from being written into one line for the user.

    Raises:
        UserError: for an ``OSError`` inside.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"the cache folder cannot be written to: {error.strerror or error}",
            where=str(folder),
            remedy="set TROTH_CACHE to a folder of yours",
        ) from error


class _RawFile(Protocol):
    def write(self, data: memoryview, /) -> int: ...


class CacheWriter:
    """An unbuffered file in the cache, of which only the writing can go wrong: a ``UserError`` then."""

    def __init__(self, file: _RawFile, folder: Path) -> None:
        self._file = file
        self._folder = folder

    def write(self, data: bytes) -> int:
        """Write all of ``data``; returns its length."""
        rest = memoryview(data)
        with writing_cache(self._folder):
            while rest:
                rest = rest[self._file.write(rest) :]
        return len(data)


@contextmanager
def cache_file(path: Path) -> Iterator[CacheWriter]:
    """As :func:`atomic_path`, with the file open; errors of the block that are not the cache's pass unchanged."""
    folder = path.parent
    with ExitStack() as stack:
        with writing_cache(folder):
            temporary = stack.enter_context(atomic_path(path))
            file = stack.enter_context(temporary.open("wb", buffering=0))
        yield CacheWriter(file, folder)
        with writing_cache(folder):
            stack.close()
