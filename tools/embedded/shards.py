"""Webdataset shards as gzip-compressed tars, the same bytes for the same samples."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from splits import fraction

SHARD_BYTES = 4_400_000  # a little below what a shard may weigh: the sizes are estimated before compression


@dataclass(frozen=True, slots=True)
class Sample:
    """One image and what is known about it; both become members of a tar, named by the key."""

    key: str
    webp: bytes
    record: dict[str, Any]

    def text(self) -> bytes:
        """The JSON member; fields that say nothing are left out."""
        said = {name: value for name, value in self.record.items() if value not in (None, "", [])}
        return json.dumps(said, ensure_ascii=False, separators=(",", ":")).encode()

    def estimated_bytes(self) -> int:
        """What the sample takes in a compressed shard, nearly."""
        return len(self.webp) + len(self.text()) // 2 + 110


def write_split(folder: Path, split: str, samples: Iterable[Sample]) -> Iterator[tuple[Path, int]]:
    """Write the samples of a split in the order of a hash of their keys; yields each shard with its count."""
    ordered = sorted(samples, key=lambda sample: fraction(f"order:{sample.key}"))
    for number, shard in enumerate(_divide(ordered)):
        path = folder / f"{split}-{number:05d}.tar.gz"
        path.write_bytes(_tar(shard))
        yield path, len(shard)


def _divide(samples: Sequence[Sample]) -> Iterator[list[Sample]]:
    """Cut into shards of about equal size, as few as the limit allows."""
    total = sum(sample.estimated_bytes() for sample in samples)
    shards = -(-total // SHARD_BYTES)
    shard: list[Sample] = []
    done, number = 0, 1
    for sample in samples:
        shard.append(sample)
        done += sample.estimated_bytes()
        if done >= total * number / shards:
            yield shard
            shard, number = [], number + 1
    if shard:
        yield shard


def _tar(samples: Iterable[Sample]) -> bytes:
    packed = io.BytesIO()
    with (
        gzip.GzipFile(filename="", mode="wb", fileobj=packed, compresslevel=9, mtime=0) as stream,
        tarfile.open(mode="w", fileobj=stream, format=tarfile.USTAR_FORMAT) as tar,
    ):
        for sample in samples:
            for suffix, content in (("webp", sample.webp), ("json", sample.text())):
                member = tarfile.TarInfo(f"{sample.key}.{suffix}")
                member.size, member.mode = len(content), 0o644
                tar.addfile(member, io.BytesIO(content))
    return packed.getvalue()
