"""Data sets as the command line names them."""

from __future__ import annotations

from pathlib import Path
from typing import cast, get_args

from troth.data import (
    VECTOR_SUFFIXES,
    EmbeddedSource,
    FolderSource,
    SourceConfig,
    TableSource,
    TarSource,
    VectorsSource,
)
from troth.data.embedded_source import EmbeddedSplit
from troth.errors import UserError

_TABLES = (".csv", ".tsv", ".parquet", ".jsonl", ".ndjson")


def data_argument(text: str) -> SourceConfig:
    """Understand a data set named on the command line.

    Raises:
        UserError: if it is none of the forms, or does not exist.
    """
    kind, _, rest = text.partition(":")
    if kind == "embedded":
        splits = get_args(EmbeddedSplit)
        if rest not in splits:
            raise UserError(f"no split {rest!r}", where=text, remedy=f"one of: {', '.join(splits)}")
        return EmbeddedSource(split=cast(EmbeddedSplit, rest))
    if kind == "recipe":
        from troth import recipe as recipes

        return recipes.load(rest).data.source
    if text.endswith((".tar", ".tar.gz", ".tgz")):
        return TarSource(urls=text)
    path = Path(text)
    if path.is_dir():
        return FolderSource(path=str(path))
    if path.suffix.lower() in _TABLES:
        return TableSource(path=str(path))
    if path.suffix.lower() in VECTOR_SUFFIXES:
        return VectorsSource(path=str(path))
    raise UserError(
        "no such data",
        where=text,
        remedy=f"a folder, a {', '.join(_TABLES + VECTOR_SUFFIXES)} file, .tar shards, embedded:SPLIT or recipe:NAME",
    )
