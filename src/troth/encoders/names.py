"""Telling a user who names something that does not exist what there is instead."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

from troth.errors import UserError


def closest(name: str, known: Iterable[str], otherwise: str) -> str:
    """Return a remedy that names up to three known names like ``name``, or ``otherwise`` if none is."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    found = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.5)
    return f"did you mean {', '.join(by_lower[key] for key in found)}?" if found else otherwise


def looks_like_path(value: str) -> bool:
    """Whether ``value`` was meant as a file rather than as the tag of published weights."""
    return "/" in value or "\\" in value or Path(value).suffix in {".pt", ".pth", ".bin", ".safetensors", ".npz"}


def existing_file(value: str, where: str) -> Path | None:
    """Return ``value`` as a path if it names a file, None if it can only be a tag; a missing file is an error."""
    path = Path(value).expanduser()
    if path.is_file():
        return path
    if looks_like_path(value):
        raise UserError(f"there is no weights file {value!r}", where=where, remedy="give an existing file, or a tag")
    return None
