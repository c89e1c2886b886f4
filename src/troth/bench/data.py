"""Noisy pairs as a data set of their own, and the truth about them somewhere else."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from troth.bench.settings import FOREIGN_PART, Place, Setting
from troth.data import CaptionAssignment, EmbeddedSource, Noise, PartSource, Source, TarSource, atomic_path
from troth.data.noise import caption_owner
from troth.embed import FrozenEncoders
from troth.train.teacher import encode_pictures, share_pictures
from troth.train.teacher_tower import FrozenTower, load_stages


def pairs_source(path: Path) -> TarSource:
    """Return how a recipe names the pairs written to ``path``."""
    return TarSource(urls=str(path.resolve()), key_with_shard=False)


def training_pairs(setting: Setting) -> tuple[Source, Source | None]:
    """Open the pairs of a setting with their own captions, and the reserve of foreign captions if it has one."""
    if setting.kind != "foreign":
        return EmbeddedSource().open(), None
    whole = EmbeddedSource()
    return PartSource(whole, stop=FOREIGN_PART).open(), PartSource(whole, start=FOREIGN_PART).open()


def prepare(place: Place) -> None:
    """Write the pairs of a setting, the right ones of them, and the answers, unless they are there.

    The noise is a function of the setting and the seed. A tar holds each picture's encoded bytes as they are, in the
    order of the embedded split, under a key that is a hash of the sample's (whose own would name what the picture
    shows), and the captions it was given: nothing is left of its own captions, its category or metadata.
    """
    if place.pairs.is_file() and place.right.is_file() and place.answers.is_file():
        return
    source, reserve = training_pairs(place.setting)
    noise = Noise(fraction=place.setting.rate, partners=place.setting.kind)
    assignment = noise.draw(source, place.seed, reserve)
    assignment.save(place.answers)
    write_pairs(place.right, source, reserve, assignment, np.flatnonzero(~assignment.mismatched).tolist())
    write_pairs(place.pairs, source, reserve, assignment, range(len(source)))


def write_pairs(
    path: Path, source: Source, reserve: Source | None, assignment: CaptionAssignment, rows: Iterable[int]
) -> None:
    """Write samples of a source with the captions an assignment gives them as a plain tar, atomically.

    Args:
        path: the tar.
        source: the pictures.
        reserve: where foreign captions come from, if there are any.
        assignment: whose captions each sample gets.
        rows: the samples, in the order they are written.
    """
    with atomic_path(path) as temporary, tarfile.open(temporary, "w") as tar:
        for row in rows:
            place, owner = caption_owner(int(assignment.caption_of[row]), source, reserve)
            captions = json.dumps({"captions": list(place.captions(owner))}, ensure_ascii=False)
            picture = source.read_image(row)
            key = opaque_key(source.key(row))
            _add(tar, f"{key}.{_suffix(picture)}", picture)
            _add(tar, f"{key}.json", captions.encode())


def opaque_key(key: str) -> str:
    """Return what a sample is called in the tars: the same in all of them, and no word of its caption."""
    return f"pair-{hashlib.sha256(key.encode()).hexdigest()[:20]}"


def share_features(frozen: FrozenEncoders, sources: Iterable[TarSource | PartSource], *, stages: bool) -> None:
    """Compute the frozen features of the embedded pairs once, and cache those of noisy pairs by picking rows.

    Args:
        frozen: the encoders under the heads.
        sources: tars of :func:`prepare`, or parts of them.
        stages: whether judges will see intermediate features too, which are shared likewise.
    """
    whole = EmbeddedSource().open()
    row_of = {opaque_key(whole.key(row)): row for row in range(len(whole))}
    picked = []
    for source in (each.open() for each in sources):
        rows = [row_of[source.key(index)] for index in range(len(source))]
        same = all(source.read_image(index) == whole.read_image(row) for index, row in enumerate(rows))
        assert same, f"{source.name} has other pictures than the embedded pairs"
        picked.append((source, torch.tensor(rows)))
    for source, chosen in picked:
        frozen.share(whole, chosen, source)
    tower = load_stages(FrozenTower(), "float32", torch.device("cpu")) if stages else None
    if tower is not None:
        seen = encode_pictures(tower, whole, frozen.cache, num_workers=2).tensors
        assert bool(seen["valid"].all()), "every embedded picture can be read"
        for source, chosen in picked:
            share_pictures(tower, seen["features"], chosen, source, frozen.cache)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def _suffix(picture: bytes) -> str:
    with Image.open(io.BytesIO(picture)) as image:
        return (image.format or "png").lower()
