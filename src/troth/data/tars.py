"""Reading the table of contents of a tar that may be damaged or hostile.

The members are listed once by their headers; nothing is ever extracted to disk by its name. What is wrong is told as
:class:`TarProblem` instead of ending the listing where that can be avoided: after a damaged header the next valid
one is searched, and a tar that stops in the middle gives everything before that point.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import BinaryIO

from troth.data.ledger import Reason

BLOCK = tarfile.BLOCKSIZE
_RECORD = tarfile.RECORDSIZE
_EXTENSIONS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_LONGEST_EXTENSION = 1 << 20
_PAX_LENGTH = re.compile(rb"(\d{1,9}) ")


@dataclass(frozen=True, slots=True)
class Member:
    """One regular file in a tar: its name and where its bytes are."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class TarProblem:
    """Something in a tar that is not a usable member.

    Attributes:
        name: the member's name; empty if the tar itself is damaged.
        offset: where in the tar.
        reason: ``unsafe-path`` or ``broken-member``.
        detail: what is wrong, for a person.
        truncated: whether the listing ends here because the tar does.
    """

    name: str
    offset: int
    reason: Reason
    detail: str
    truncated: bool = False


def unsafe_name(name: str) -> str | None:
    """Why a member or file name must not be followed, or None if it may be."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or (len(name) > 1 and name[1] == ":" and name[0].isalpha()):
        return "absolute name"
    if ".." in path.parts:
        return "'..' in the name"
    return None


def list_members(stream: BinaryIO, size: int) -> Iterator[Member | TarProblem]:
    """List a plain tar.

    Args:
        stream: the tar, seekable, at any position.
        size: its length in bytes.
    """
    offset = 0
    while True:
        if size - offset < BLOCK:
            # The zero blocks that end every whole tar were not met.
            yield TarProblem("", offset, "broken-member", f"truncated after {size} bytes", truncated=True)
            return
        try:
            info, following = _read_header(stream, offset, size)
        except _TruncatedError as error:
            yield TarProblem("", offset, "broken-member", f"truncated after {size} bytes, {error}", truncated=True)
            return
        except tarfile.HeaderError as error:
            found = _next_header(stream, offset + BLOCK, size)
            if found is None:
                yield TarProblem("", offset, "broken-member", f"byte {offset}: {error}, to the end", truncated=True)
                return
            yield TarProblem("", offset, "broken-member", f"byte {offset}: {error}; goes on at byte {found}")
            offset = found
            continue
        if info is None:
            # The end. Writers pad to a record of 20 blocks; if more follows, the zeros were a hole.
            found = _next_header(stream, offset + BLOCK, size) if size - offset > _RECORD else None
            if found is None:
                return
            yield TarProblem("", offset, "broken-member", f"byte {offset}: zeros; goes on at byte {found}")
            offset = found
            continue
        if info.offset_data + (info.size if info.isreg() else 0) > size:
            detail = f"truncated after {size} bytes, inside {info.name!r}"
            yield TarProblem("", offset, "broken-member", detail, truncated=True)
            return
        offset = following
        if not info.isdir():
            yield _judge(info)


def _judge(info: tarfile.TarInfo) -> Member | TarProblem:
    problem = unsafe_name(info.name)
    if problem is not None:
        return TarProblem(info.name, info.offset_data, "unsafe-path", problem)
    if info.issym() or info.islnk():
        return TarProblem(info.name, info.offset_data, "unsafe-path", f"a link to {info.linkname!r}")
    if info.issparse():
        return TarProblem(info.name, info.offset_data, "broken-member", "sparse members are not supported")
    if not info.isreg():
        return TarProblem(info.name, info.offset_data, "unsafe-path", "not a regular file")
    return Member(info.name, info.offset_data, info.size)


class _TruncatedError(Exception):
    """The tar ends within a header."""


def _read_header(stream: BinaryIO, offset: int, size: int) -> tuple[tarfile.TarInfo | None, int]:
    """The member whose header starts at ``offset`` (None: the end mark) and the offset of the header after it.

    Not tarfile's own iteration: that ends silently at damage, and trusts the sizes of long-name records.
    """
    extended: dict[str, str] = {}
    while True:
        if size - offset < BLOCK:
            raise _TruncatedError("inside a header")
        stream.seek(offset)
        block = stream.read(BLOCK)
        if not any(block):
            return None, offset
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        if info.size < 0:
            raise tarfile.HeaderError(f"{info.name!r} has a negative size")
        offset += BLOCK
        if info.type not in _EXTENSIONS:
            return _finish(info, extended, offset)
        if info.size > _LONGEST_EXTENSION:
            raise tarfile.HeaderError("an extended header of absurd length")
        if info.size > size - offset:
            raise _TruncatedError("inside a header")
        content = stream.read(info.size)
        offset += _blocks(info.size)
        if info.type == tarfile.XHDTYPE:
            extended.update(_pax_records(content))
        elif info.type != tarfile.XGLTYPE:
            # Global pax headers carry comments and times; names and sizes are never global in practice.
            name = "path" if info.type == tarfile.GNUTYPE_LONGNAME else "linkpath"
            extended[name] = content.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _finish(info: tarfile.TarInfo, extended: dict[str, str], offset: int) -> tuple[tarfile.TarInfo, int]:
    info.name = extended.get("path", info.name)
    info.linkname = extended.get("linkpath", info.linkname)
    if "size" in extended:
        # 2^63 has 19 digits; Python itself refuses to read more than some thousands.
        if not extended["size"].isdecimal() or len(extended["size"]) > 19:
            raise tarfile.HeaderError(f"{info.name!r} has no valid size")
        info.size = int(extended["size"])
    if any(name.startswith("GNU.sparse") for name in extended):
        info.type = tarfile.GNUTYPE_SPARSE
    info.offset_data = offset
    has_data = info.isreg() or info.type not in tarfile.SUPPORTED_TYPES
    return info, offset + (_blocks(info.size) if has_data else 0)


def _pax_records(content: bytes) -> Iterator[tuple[str, str]]:
    """Parse ``"<length> <key>=<value>\\n"`` records, each giving its own length."""
    position = 0
    while (match := _PAX_LENGTH.match(content, position)) is not None:
        end = position + int(match.group(1))
        if not match.end() < end <= len(content):
            raise tarfile.HeaderError("a damaged extended header")
        key, _, value = content[match.end() : end - 1].partition(b"=")
        yield key.decode("utf-8", "surrogateescape"), value.decode("utf-8", "surrogateescape")
        position = end


def _blocks(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _next_header(stream: BinaryIO, offset: int, size: int) -> int | None:
    """The offset of the first valid header at or after ``offset``, in whole blocks."""
    stream.seek(offset)
    while offset + BLOCK <= size:
        block = stream.read(BLOCK)
        if block[257:262] == b"ustar":
            try:
                tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            except tarfile.HeaderError:
                pass
            else:
                return offset
        offset += BLOCK
    return None
