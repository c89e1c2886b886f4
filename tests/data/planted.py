"""Small data sets with known contents and known faults."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from troth.data import IndexedSource, Ledger, TableSource
from troth.data.blobs import PATH_COLUMNS, FileReader
from troth.data.source import IndexBuilder


def picture(seed: int = 0, size: tuple[int, int] = (40, 30), mode: str = "RGB") -> Image.Image:
    """A random picture, smooth enough for JPEG."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, size=(5, 6, 3), dtype=np.uint8))
    return coarse.resize(size, Image.Resampling.BICUBIC).convert(mode)


def encoded(image: Image.Image, form: str = "JPEG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def jpeg(seed: int = 0, size: tuple[int, int] = (40, 30)) -> bytes:
    return encoded(picture(seed, size), quality=90)


def tar_bytes(members: Sequence[tuple[str, bytes] | tarfile.TarInfo]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return stream.getvalue()


def pairs(count: int, start: int = 0) -> list[tuple[str, bytes]]:
    """Members of ``count`` whole webdataset samples."""
    return [
        member
        for number in range(start, start + count)
        for member in ((f"{number:04d}.jpg", jpeg(number)), (f"{number:04d}.txt", f"caption {number}".encode()))
    ]


def table_source(folder: Path, count: int) -> IndexedSource:
    """``count`` good samples with one caption each."""
    lines = ["image,caption"]
    for number in range(count):
        (folder / f"{number}.jpg").write_bytes(jpeg(number))
        lines.append(f"{number}.jpg,caption {number}")
    (folder / "pairs.csv").write_text("\n".join(lines) + "\n")
    return TableSource(path=str(folder / "pairs.csv")).open()


def caption_source(captions: Sequence[Sequence[str]], categories: Sequence[str | None] | None = None) -> IndexedSource:
    """A source of captions whose images are not there."""
    builder = IndexBuilder(PATH_COLUMNS, Ledger())
    for number, texts in enumerate(captions):
        category = categories[number] if categories is not None else None
        builder.add(f"sample {number}", texts, category=category, path=f"{number}.jpg")
    return IndexedSource("captions", builder.finish(), FileReader(Path("nowhere")), builder.ledger)


def entries(ledger: Ledger) -> set[tuple[str, str]]:
    return {(entry.key, entry.reason) for entry in ledger}


def tokenize(texts: Sequence[str]) -> Tensor:
    """Captions to their bytes, padded to 24."""
    rows = [list(text.encode()[:24]) + [0] * (24 - len(text.encode()[:24])) for text in texts]
    return torch.tensor(rows, dtype=torch.int64)


def words(text: Tensor) -> list[str]:
    """What :func:`tokenize` was given."""
    return [bytes(value for value in row if value).decode() for row in text.tolist()]


def write_all(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
