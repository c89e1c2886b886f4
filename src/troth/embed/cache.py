"""The one cache of embeddings: files named by what they were computed from.

A cached file can never be stale, since its name is a hash of everything its content depends on: another model, other
data, another preprocessing is another name. A file that is damaged is computed again, with a note in the log.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from troth.encoders.hashing import hash_tensors
from troth.errors import UserError

logger = logging.getLogger(__name__)

#: Raised when the layout of the files changes, so that old ones are not misread.
_FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheKey:
    """Everything that cached tensors depend on. Two keys that differ anywhere are two files.

    Attributes:
        weights: hash of the encoder's weights.
        data: hash of the content that was encoded.
        preprocessing: how pictures were prepared.
        tokenizer: how captions were prepared.
        prompts: the templates captions were put into, if any.
        geometry: where the embeddings live; empty for raw features.
        dtype: what they were computed in.
    """

    weights: str
    data: str
    preprocessing: str = ""
    tokenizer: str = ""
    prompts: str = ""
    geometry: str = ""
    dtype: str = "float32"

    @property
    def digest(self) -> str:
        """Sha256 (hex) of all fields and of the file format."""
        content = json.dumps({"format": _FORMAT, **asdict(self)}, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """What one file holds.

    Attributes:
        tensors: the named tensors, on the CPU.
        notes: named texts that belong to them (the ledger of pictures that could not be read, as JSON).
        lasting: whether computing it again would give the same; what would not is not stored.
    """

    tensors: Mapping[str, Tensor]
    notes: Mapping[str, str] = field(default_factory=dict)
    lasting: bool = True


class FeatureCache:
    """A folder of safetensors files, safe for several processes at once.

    Args:
        folder: where the files are; None for ``$TROTH_CACHE``, or ``~/.cache/troth`` if that is not set.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        if folder is None:
            folder = os.environ.get("TROTH_CACHE") or Path("~/.cache/troth")
        self.folder = Path(folder).expanduser()

    def path(self, key: CacheKey) -> Path:
        """Return where the tensors of ``key`` are, or would be."""
        return self.folder / f"{key.digest}.safetensors"

    def load(self, key: CacheKey) -> CacheEntry | None:
        """Return what is cached under ``key``; None if there is no such file, or a damaged one (noted in the log)."""
        path = self.path(key)
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
        except Exception as error:  # safetensors and the file system raise several types for damaged files
            logger.warning("the cache file %s cannot be read and is computed again: %s", path, error)
            return None
        if metadata.get("checksum") != hash_tensors(tensors):
            logger.warning("the cache file %s is damaged and is computed again", path)
            return None
        return CacheEntry(tensors, json.loads(metadata["notes"]))

    def store(self, key: CacheKey, entry: CacheEntry) -> Path:
        """Write ``entry`` under ``key``, atomically; a file that is there already is replaced."""
        self._make_folder()
        path = self.path(key)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in entry.tensors.items()}
        metadata = {
            "key": json.dumps(asdict(key), sort_keys=True),
            "notes": json.dumps(dict(entry.notes)),
            "checksum": hash_tensors(tensors),
        }
        descriptor, name = tempfile.mkstemp(dir=self.folder, prefix=f".{key.digest[:16]}.", suffix=".part")
        os.close(descriptor)
        try:
            save_file(tensors, name, metadata=metadata)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        return path

    def get_or_compute(self, key: CacheKey, compute: Callable[[], CacheEntry]) -> CacheEntry:
        """Return what is cached under ``key``, computing and storing it first if need be.

        Of several processes that ask for the same key at the same time, one computes and the others wait for it.

        Raises:
            UserError: if the cache folder cannot be made or written to (found out before anything is computed).
        """
        found = self.load(key)
        if found is not None:
            return found
        self._make_folder()
        with _exclusive(self.path(key).with_suffix(".lock"), self.folder):
            found = self.load(key)
            if found is not None:
                return found
            entry = compute()
            if not entry.lasting:
                return entry
            try:
                self.store(key, entry)
            except OSError as error:  # a full disk must not cost what was just computed
                logger.warning("the embeddings could not be cached in %s: %s", self.folder, error)
            return entry

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unusable(self.folder, error) from error


class Uncached(FeatureCache):
    """Computes everything and keeps nothing: for embeddings of weights that change before they are asked for again."""

    def get_or_compute(self, key: CacheKey, compute: Callable[[], CacheEntry]) -> CacheEntry:
        """Return what ``compute`` returns."""
        return compute()


def _unusable(folder: Path, error: OSError) -> UserError:
    return UserError(
        f"the cache folder cannot be written to: {error.strerror or error}",
        where=str(folder),
        remedy="set TROTH_CACHE to a folder of yours",
    )


@contextlib.contextmanager
def _exclusive(path: Path, folder: Path) -> Iterator[None]:
    """Hold the advisory lock of ``path``; the system lets go of it if the process dies, the file is removed after."""
    try:
        import fcntl
    except ImportError:  # no such locks on Windows: then two processes may compute the same, which is only slower
        yield
        return
    lock: Any = None
    while lock is None:
        try:
            candidate = path.open("a")
        except OSError as error:
            raise _unusable(folder, error) from error
        fcntl.flock(candidate, fcntl.LOCK_EX)
        # The process that held it before has removed the file: then this lock is of a file nobody else will open.
        if path.exists() and os.path.samestat(os.fstat(candidate.fileno()), path.stat()):
            lock = candidate
        else:
            candidate.close()
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.close()
