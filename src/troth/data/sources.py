"""All kinds of sources a recipe can name."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from troth.data.embedded_source import EmbeddedSource
from troth.data.folder import FolderSource
from troth.data.huggingface import HuggingFaceSource
from troth.data.table import TableSource
from troth.data.webdataset import TarSource

#: Told apart by ``kind``; each opens to a :class:`~troth.data.source.Source` by ``.open()``.
SourceConfig = Annotated[
    FolderSource | TableSource | TarSource | HuggingFaceSource | EmbeddedSource,
    Field(discriminator="kind"),
]
