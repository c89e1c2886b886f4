"""A Hugging Face ``datasets`` data set: saved on disk, from the hub, or an object in hand."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from pydantic.dataclasses import dataclass

from troth.data.ledger import Ledger, SampleError
from troth.data.source import IndexBuilder, IndexedSource
from troth.data.table_rows import check_columns, row_key
from troth.errors import UserError
from troth.types import STRICT


@dataclass(frozen=True, config=STRICT)
class HuggingFaceSource:
    """A map-style data set of the ``datasets`` package (``pip install troth[hub]``), in its own order.

    Attributes:
        path: a folder that ``save_to_disk`` wrote, or a name on the hub.
        name: the configuration of a data set on the hub; empty for its default.
        split: which split.
        image_column: an ``Image`` feature, or encoded bytes.
        caption_columns: each cell is a caption or a list of them.
        key_column: unique names of the samples; empty for row numbers.
        category_column: empty for none; class labels give their names.
    """

    kind: Literal["huggingface"] = "huggingface"
    path: str = ""
    name: str = ""
    split: str = "train"
    image_column: str = "image"
    caption_columns: str | tuple[str, ...] = "caption"
    key_column: str = ""
    category_column: str = ""

    def open(self) -> IndexedSource:
        """Load the data set and index its captions.

        Raises:
            UserError: ``datasets`` is not installed, there is no such data set, split or column, or not one usable
                sample.
        """
        datasets = _datasets()
        try:
            if Path(self.path).expanduser().is_dir() and _is_saved(Path(self.path).expanduser()):
                loaded = datasets.load_from_disk(str(Path(self.path).expanduser()))
                loaded = loaded[self.split] if isinstance(loaded, dict) else loaded
            else:
                loaded = datasets.load_dataset(self.path, self.name or None, split=self.split)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{self.path!r} cannot be loaded: {error}", where="path") from error
        return self.from_dataset(loaded)

    def from_dataset(self, dataset: Any) -> IndexedSource:
        """The source over a ``datasets.Dataset`` in hand; the columns are named by this configuration."""
        datasets = _datasets()
        if not isinstance(dataset, datasets.Dataset):
            raise UserError(
                f"a {type(dataset).__name__} has no stable numbering",
                where="path",
                remedy="use a map-style datasets.Dataset: name a split, and do not stream",
            )
        captions = [self.caption_columns] if isinstance(self.caption_columns, str) else list(self.caption_columns)
        others = [name for name in (self.key_column, self.category_column) if name]
        check_columns([self.image_column, *captions, *others], dataset.column_names)
        ledger = Ledger()
        builder = IndexBuilder({"row": pa.int64()}, ledger)
        feature = dataset.features.get(self.category_column)
        row = 0
        # Plain Arrow, without the images: nothing is decoded here.
        for batch in dataset.select_columns(captions + others).with_format("arrow").iter(batch_size=1000):
            for cells in batch.to_pylist():
                found: list[Any] = []
                for name in captions:
                    found.extend(cells[name] if isinstance(cells[name], list) else [cells[name]])
                category = cells[self.category_column] if self.category_column else None
                if category is not None and isinstance(feature, datasets.ClassLabel):
                    category = feature.int2str(int(category))
                key = str(cells[self.key_column]) if self.key_column else row_key(row + 1)
                builder.add(key, found, category=category, row=row)
                row += 1
        images = dataset.select_columns([self.image_column])
        if isinstance(images.features[self.image_column], datasets.Image):
            images = images.cast_column(self.image_column, datasets.Image(decode=False))
        name = self.path or f"datasets.Dataset with {len(dataset)} rows"
        return IndexedSource(name, builder.finish(), HuggingFaceReader(images, self.image_column), ledger)


class HuggingFaceReader:
    """Reads images from a data set whose image column is not decoded."""

    def __init__(self, images: Any, column: str) -> None:
        self._images = images
        self._column = column

    def read(self, index: pa.Table, row: int) -> bytes:
        """The bytes of the image of ``row``. Raises ``OSError``, or ``SampleError`` if the cell holds no image."""
        cell = self._images[index["row"][row].as_py()][self._column]
        if isinstance(cell, dict):
            if cell.get("bytes") is None and cell.get("path"):
                return Path(cell["path"]).read_bytes()
            cell = cell.get("bytes")
        if not isinstance(cell, bytes):
            raise SampleError("", "missing-file", "the cell holds no image")
        return cell


def _is_saved(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))


def _datasets() -> Any:
    try:
        return importlib.import_module("datasets")
    except ImportError as error:
        raise UserError(
            "the datasets package is not installed", where="kind", remedy="pip install 'troth[hub]'"
        ) from error
