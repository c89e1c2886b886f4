"""A folder of images with captions beside them."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic.dataclasses import dataclass

from troth.data.blobs import PATH_COLUMNS, FileReader
from troth.data.ledger import Ledger, LedgerEntry
from troth.data.source import IndexBuilder, IndexedSource, printable
from troth.data.tar_index import IMAGE_SUFFIXES, LARGEST_TEXT
from troth.data.tars import unsafe_name
from troth.errors import UserError
from troth.types import STRICT


@dataclass(frozen=True, config=STRICT)
class FolderSource:
    """Images anywhere below a folder, in the order of their paths; the key is the path relative to the folder.

    Captions are lines of a text file of the same name (``cat.jpg``, ``cat.txt``), or come from one JSON file that
    maps each relative path to a caption or a list of them. Linked subfolders are not followed.

    Skipped with an entry in the ledger: images without captions and captions without image, blank captions and
    captions that are not UTF-8, caption files that are no regular files or of more than 1 MiB, and subfolders that
    cannot be listed. Unreadable images are met, and entered, when they are read.

    Attributes:
        path: the folder.
        caption_suffix: of the text files.
        captions_file: the JSON file, relative to the folder; empty for text files.
        category: ``folder``: the subfolder an image lies in is its category; ``none``: there are no categories.
    """

    kind: Literal["folder"] = "folder"
    path: str = ""
    caption_suffix: str = ".txt"
    captions_file: str = ""
    category: Literal["folder", "none"] = "folder"

    def open(self) -> IndexedSource:
        """List the folder and read the captions.

        Raises:
            UserError: no such folder or captions file, or not one usable sample.
        """
        root = Path(self.path).expanduser().absolute()
        if not self.path or not root.is_dir():
            raise UserError(f"there is no folder {self.path!r}", where="path", remedy="check the path")
        images: list[str] = []
        texts: set[str] = set()
        ledger = Ledger()
        for name in sorted(_files(root, ledger)):
            suffix = PurePosixPath(name).suffix
            if suffix[1:].lower() in IMAGE_SUFFIXES:
                images.append(name)
            elif suffix == self.caption_suffix:
                texts.add(name)
        builder = IndexBuilder(PATH_COLUMNS, ledger)
        if self.captions_file:
            captions = _read_mapping(root / self.captions_file)
            _report_unlisted(captions, images, ledger)
        for name in images:
            if self.captions_file:
                listed = captions.get(name, [])
                found: list[Any] | None = listed if isinstance(listed, list) else [listed]
            else:
                found = self._caption_lines(root, name, texts, ledger)
            if found is not None:
                builder.add(name, found, category=self._category(name), path=name)
        for name in sorted(texts):
            ledger.add(LedgerEntry(printable(name), "missing-file", "there is a caption but no image"))
        return IndexedSource(str(self.path), builder.finish(), FileReader(root), ledger)

    def _caption_lines(self, root: Path, name: str, texts: set[str], ledger: Ledger) -> list[Any] | None:
        """The captions beside image ``name``; None if they cannot be read, which is entered. Crosses off ``texts``."""
        beside = str(PurePosixPath(name).with_suffix(self.caption_suffix))
        # Two images of one stem share their captions, so the file is crossed off by the first and still read.
        texts.discard(beside)
        try:
            data = _read(root / beside, LARGEST_TEXT)
            if len(data) <= LARGEST_TEXT:
                return data.decode("utf-8-sig").split("\n")
            detail = f"{beside}: more than {LARGEST_TEXT} bytes of text"
            ledger.add(LedgerEntry(printable(name), "broken-member", detail))
        except FileNotFoundError:
            return []
        except UnicodeDecodeError as error:
            ledger.add(LedgerEntry(printable(name), "bad-encoding", f"{beside}: {error}"))
        except OSError as error:
            ledger.add(LedgerEntry(printable(name), "missing-file", f"{beside}: {error.strerror or error}"))
        return None

    def _category(self, name: str) -> str | None:
        parent = str(PurePosixPath(name).parent)
        return None if self.category == "none" or parent == "." else printable(parent)


def _files(root: Path, ledger: Ledger) -> Iterator[str]:
    """The relative paths of all files below ``root``, with forward slashes; unreadable folders are entered."""

    def enter(error: OSError) -> None:
        name = os.path.relpath(error.filename, root)
        ledger.add(LedgerEntry(printable(name), "missing-file", f"the folder cannot be read: {error.strerror}"))

    for folder, _, names in os.walk(root, onerror=enter):
        relative = Path(folder).relative_to(root).as_posix()
        for name in names:
            yield name if relative == "." else f"{relative}/{name}"


def _read(path: Path, limit: int = -1) -> bytes:
    """A regular file, up to one byte more than ``limit``. Raises ``OSError`` for anything else."""
    # Non-blocking, so that a named pipe in a scraped folder cannot hang the listing.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError("not a regular file")
        return file.read(limit + 1 if limit >= 0 else -1)


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        mapping = json.loads(_read(path))
    except FileNotFoundError as error:
        raise UserError(f"there is no {path}", where="captions_file", remedy="check the name") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}", where="captions_file") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}", where="captions_file") from error
    if not isinstance(mapping, dict):
        raise UserError(f"{path} is not a JSON object of image paths and captions", where="captions_file")
    return mapping


def _report_unlisted(captions: dict[str, Any], images: list[str], ledger: Ledger) -> None:
    """Enter the captions that belong to no image of the folder."""
    for name in sorted(captions.keys() - set(images)):
        problem = unsafe_name(name)
        if problem is not None:
            ledger.add(LedgerEntry(printable(name), "unsafe-path", problem))
        else:
            ledger.add(LedgerEntry(printable(name), "missing-file", "there is a caption but no image"))
