"""The ledger: which samples could not be used, and why.

Scraped data is never whole. A sample that cannot be read is skipped, counted and written down here with its key and
its reason, so that nothing crashes and nothing goes missing in silence.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from troth.data.files import atomic_path

logger = logging.getLogger("troth")

#: Why a sample was skipped. A small closed set, so that counts can be compared between runs.
Reason = Literal[
    "missing-file",
    "empty-file",
    "corrupt-image",
    "empty-caption",
    "bad-encoding",
    "broken-member",
    "unsafe-path",
    "image-too-large",
    "duplicate-key",
]

REASONS: tuple[str, ...] = get_args(Reason)


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One sample that was skipped.

    Attributes:
        key: the sample's key in its source (a relative path, a row, a tar member).
        reason: one of :data:`Reason`.
        detail: what exactly was wrong, for a person.
    """

    key: str
    reason: Reason
    detail: str = ""


class SampleError(Exception):
    """One sample cannot be used. Loaders catch it, write it in a ledger and go on with another sample.

    Args:
        key: the sample's key; decoders that see bytes only leave it empty, sources fill it in.
        reason: one of :data:`Reason`.
        detail: what exactly was wrong, for a person.
    """

    def __init__(self, key: str, reason: Reason, detail: str = "") -> None:
        super().__init__(key, reason, detail)
        self.key = key
        self.reason: Reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.key}: {self.reason}" + (f" ({self.detail})" if self.detail else "")

    def entry(self, key: str | None = None) -> LedgerEntry:
        """The ledger entry of this error; ``key`` names the sample where the decoder could not."""
        return LedgerEntry(self.key or (key or ""), self.reason, self.detail)


class Ledger:
    """An ordered collection of :class:`LedgerEntry`, one per (key, reason)."""

    def __init__(self, entries: Iterable[LedgerEntry] = ()) -> None:
        self._entries: dict[tuple[str, str], LedgerEntry] = {}
        self.extend(entries)

    def add(self, entry: LedgerEntry) -> bool:
        """Enter ``entry`` unless its (key, reason) is known already. Returns whether it was new."""
        assert entry.reason in REASONS, entry.reason
        place = (entry.key, entry.reason)
        if place in self._entries:
            return False
        self._entries[place] = entry
        return True

    def extend(self, entries: Iterable[LedgerEntry]) -> None:
        """Add every entry of ``entries`` (another ledger, say)."""
        for entry in entries:
            self.add(entry)

    def counts(self) -> dict[str, int]:
        """How many samples were skipped for each reason, in the order of :data:`REASONS`; zeros left out."""
        counted: Counter[str] = Counter(entry.reason for entry in self)
        return {reason: counted[reason] for reason in REASONS if counted[reason]}

    def keys(self) -> set[str]:
        """The keys of all skipped samples."""
        return {entry.key for entry in self}

    def write(self, path: str | Path) -> None:
        """Write the ledger as JSON lines (``key``, ``reason``, ``detail``), atomically."""
        # A key may hold bytes that are not UTF-8 (surrogates of the file system): JSON escapes keep them.
        with atomic_path(path) as temporary, temporary.open("w", encoding="ascii") as file:
            file.writelines(json.dumps(asdict(entry)) + "\n" for entry in self)

    @classmethod
    def read(cls, path: str | Path) -> Ledger:
        """Read a ledger that :meth:`write` wrote; lines that are damaged are left out, with a warning of how many."""
        lines = [line for line in Path(path).read_bytes().split(b"\n") if line.strip()]
        entries = [entry for entry in map(_entry_of, lines) if entry is not None]
        if len(entries) < len(lines):
            logger.warning("%s: left out %d damaged of %d lines", path, len(lines) - len(entries), len(lines))
        return cls(entries)

    def __iter__(self) -> Iterator[LedgerEntry]:
        return iter(self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, entry: object) -> bool:
        return isinstance(entry, LedgerEntry) and (entry.key, entry.reason) in self._entries

    def __repr__(self) -> str:
        return f"Ledger({self.counts()})"


def _entry_of(line: bytes) -> LedgerEntry | None:
    """Return the entry in a line of a ledger's file, None if it holds none."""
    try:
        entry = LedgerEntry(**json.loads(line.decode("ascii")))
    except (ValueError, TypeError):
        return None
    whole = isinstance(entry.key, str) and isinstance(entry.detail, str) and entry.reason in REASONS
    return entry if whole else None
