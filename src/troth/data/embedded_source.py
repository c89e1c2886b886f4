"""The data set that comes with the package: OpenClipart drawings and three styles of emoji, with their captions."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic.dataclasses import dataclass

from troth.data.source import IndexedSource
from troth.data.webdataset import TarSource
from troth.errors import UserError
from troth.types import STRICT

#: Where the shards lie; their licences and attributions are beside them.
EMBEDDED_FOLDER = Path(__file__).parent / "embedded"

EmbeddedSplit = Literal["train", "style-shift", "retrieval", "concept"]


@dataclass(frozen=True, config=STRICT)
class EmbeddedSource:
    """The embedded data set of public-domain drawings and openly licensed emoji.

    Attributes:
        split: ``train``; ``style-shift`` (every emoji name in a style never trained on); ``retrieval`` (clip art
            held out of training); ``concept`` (emoji concepts held out in all styles).
    """

    kind: Literal["embedded"] = "embedded"
    split: EmbeddedSplit = "train"

    def open(self) -> IndexedSource:
        """Open the split. Its shards are unpacked into the cache once. Raises UserError if they are not there."""
        shards = self._shards()
        if not shards.urls:
            raise UserError(
                f"the package was installed without the shards of {self.split!r}",
                where="split",
                remedy=f"they belong in {EMBEDDED_FOLDER}",
            )
        source = shards.open()
        source.name = f"embedded {self.split}"
        return source

    def files(self) -> tuple[Path, ...]:
        """Return the shards, and where the cache keeps, or would keep, their unpacked copies and indexes."""
        shards = self._shards()
        return shards.files() if shards.urls else ()

    def _shards(self) -> TarSource:
        urls = sorted(str(path) for path in EMBEDDED_FOLDER.glob(f"{self.split}-*.tar*"))
        return TarSource(urls=tuple(urls), key_with_shard=False)
