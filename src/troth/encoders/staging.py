"""Folders that are either a whole export or not there."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from troth.errors import UserError

#: The name open_clip 3.3 looks for in a ``local-dir:`` folder.
OPEN_CLIP_RECORD = "open_clip_config.json"
#: What says everything about a flat model but its weights (:func:`troth.encoders.flat_export.export_flat`).
FLAT_RECORD = "troth_export.json"


@contextmanager
def staged_export(folder: Path) -> Iterator[Path]:
    """Yield a new folder to be filled; on success it takes the place of ``folder``, on an error it is removed.

    Args:
        folder: where to write; made, or replaced if an earlier export of either form is there.

    Raises:
        UserError: if other things than an earlier export are there.
    """
    _refuse_foreign(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        yield staged
        # mkdtemp makes folders private; an export is to be shared like any other file of the user
        staged.chmod(0o777 & ~_umask())
        _put_in_place(staged, folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _owned(folder: Path) -> bool:
    """Whether ``folder`` holds an earlier export and nothing else."""
    present = {path.name for path in folder.iterdir()}
    for record in (OPEN_CLIP_RECORD, FLAT_RECORD):
        try:
            config = json.loads((folder / record).read_text(encoding="utf-8"))
            known = set(config["files"]) if config["exported_by"] == "troth" else set()
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if present <= known:
            return True
    return False


def _refuse_foreign(folder: Path) -> None:
    if folder.is_dir():
        if any(folder.iterdir()) and not _owned(folder):
            raise UserError(
                "the folder holds other things than an earlier export",
                where=str(folder),
                remedy="export to a new or empty folder",
            )
    elif folder.exists() or folder.is_symlink():
        raise UserError("not a folder", where=str(folder), remedy="export to a new or empty folder")


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _put_in_place(staged: Path, folder: Path) -> None:
    if folder.is_dir() and any(folder.iterdir()):
        # A folder with files cannot be replaced in one step: the old export moves aside first, and back on failure.
        aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.old."))
        folder.replace(aside)
        try:
            staged.replace(folder)
        except OSError:
            aside.replace(folder)
            raise
        shutil.rmtree(aside)
    else:
        staged.replace(folder)
