"""All kinds of sources a recipe can name.

:data:`SourceConfig`, the union of all sources, is here with :class:`PartSource`, which contains it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from troth.data.embedded_source import EmbeddedSource
from troth.data.folder import FolderSource
from troth.data.huggingface import HuggingFaceSource
from troth.data.part import part_of
from troth.data.source import IndexedSource
from troth.data.spiked import SpikedSource
from troth.data.table import TableSource
from troth.data.vectors import VectorSource, VectorsSource
from troth.data.webdataset import TarSource
from troth.errors import UserError
from troth.types import STRICT


@dataclass(frozen=True, config=STRICT)
class PartSource:
    """A part of another source, so that a recipe can keep some samples apart from others.

    Every sample has a place in [0, 1) that its key and the seed decide, whatever else the source holds and in whatever
    order. Parts of one source and seed that do not overlap share no sample, and those from 0 to 1 without a gap hold
    all. Different samples may still look alike or have equal captions.

    Attributes:
        source: the whole.
        start: where the part begins.
        stop: where it ends; the place itself is the next part's.
        seed: of the places. Parts are cut from one division only if their seeds are the same.
    """

    source: SourceConfig
    kind: Literal["part"] = "part"
    start: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    stop: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    seed: int = 0

    @model_validator(mode="after")
    def _not_empty(self) -> PartSource:
        if self.start >= self.stop:
            raise ValueError(f"start ({self.start:g}) must be below stop ({self.stop:g})")
        return self

    def open(self) -> IndexedSource | VectorSource:
        """Open the source and take the part. Raises UserError as the source does, or if the part is empty."""
        try:
            whole = self.source.open()
        except UserError as error:
            where = f"source.{error.where}" if error.where else "source"
            raise UserError(error.message, where=where, remedy=error.remedy) from None
        return part_of(whole, self.start, self.stop, self.seed)


#: Told apart by ``kind``; each opens to a :class:`~troth.data.source.Source` by ``.open()``.
SourceConfig = Annotated[
    FolderSource
    | TableSource
    | TarSource
    | HuggingFaceSource
    | EmbeddedSource
    | VectorsSource
    | SpikedSource
    | PartSource,
    Field(discriminator="kind"),
]
