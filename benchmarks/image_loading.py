"""Loading a folder of 1-4 megapixel JPEGs at 224 px: ours against open_clip's CSV pipeline.

Ours is the source, transform and loader of ``troth.data``; the peer is ``open_clip_train``'s ``CsvDataset`` behind the
same DataLoader, with ``open_clip.image_transform``. Both read the same files, tokenise the same captions with the
same tokenizer and hand over batches of the same size. Pictures are made up to be like photographs: smooth colour noise
at every scale (a 1/f spectrum), shapes with sharp edges, a little grain; JPEG quality 90.

The pixel difference is the mean absolute difference of the evaluation transform's pixels to open_clip's, on the scale
of 0 to 255.
"""

from __future__ import annotations

import ast
import csv
import importlib.util
import itertools
import logging
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pandas
import torch
from PIL import Image, ImageDraw
from torch.utils.data import DataLoader, Dataset

from benchmarks.table import Record, arguments, report, save
from troth.data import ImageTextStream, ImageTransform, Plan, TableSource

SIZE = 224
BATCH = 32
PEER = "open_clip 3.3 CsvDataset"


def photograph(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """A picture with the spectrum of a photograph, shapes and grain."""
    canvas = np.zeros((height, width, 3), dtype=np.float32)
    for level in range(2, 11):
        coarse = rng.normal(size=(max(2, height >> (11 - level)), max(2, width >> (11 - level)), 3))
        planes = [
            np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.BICUBIC))
            for plane in np.ascontiguousarray(coarse.transpose(2, 0, 1), dtype=np.float32)
        ]
        canvas += np.stack(planes, axis=-1) * (60.0 / 1.6 ** (level - 2))
    picture = Image.fromarray(np.clip(canvas + 128, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for _ in range(40):
        x, y = int(rng.integers(width)), int(rng.integers(height))
        reach = int(rng.integers(5, max(6, width // 6)))
        colour = tuple(int(value) for value in rng.integers(0, 256, size=3))
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape((x, y, x + reach, y + int(reach * rng.uniform(0.3, 1.5))), fill=colour)
    grainy = np.asarray(picture, dtype=np.float32) + rng.normal(scale=3.0, size=(height, width, 1))
    return Image.fromarray(np.clip(grainy, 0, 255).astype(np.uint8))


def make_folder(folder: Path, count: int, seed: int = 0) -> Path:
    """Write ``count`` JPEGs of 1 to 4 megapixels and a table of them. Returns the table."""
    rng = np.random.default_rng(seed)
    table = folder / "pairs.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["filepath", "title"])
        for number in range(count):
            pixels = rng.uniform(1e6, 4e6)
            aspect = rng.choice([4 / 3, 3 / 2, 16 / 9, 1.0, 3 / 4, 2 / 3])
            path = folder / f"{number:05d}.jpg"
            photograph(rng, int((pixels * aspect) ** 0.5), int((pixels / aspect) ** 0.5)).save(path, quality=90)
            writer.writerow([str(path), f"a made-up photograph, number {number}"])
    return table


def ours(table: Path, train: bool, workers: int, count: int) -> Callable[[], Iterable[object]]:
    """Our pipeline over one epoch."""
    source = TableSource(path=str(table), image_column="filepath", caption_columns="title").open()
    stream = ImageTextStream(
        source,
        Plan(len(source), BATCH, seed=0),
        image_transform=ImageTransform(image_size=SIZE, train=train),
        tokenize=open_clip.get_tokenizer("ViT-B-32"),
        num_workers=workers,
    )
    return lambda: stream.batches(0, count // BATCH)


def csv_dataset() -> Any:
    """open_clip's ``CsvDataset``, from its own file.

    Only the class is run: importing ``open_clip_train.data`` needs webdataset and braceexpand, which reading a CSV
    does not.
    """
    spec = importlib.util.find_spec("open_clip_train")
    assert spec is not None, "open_clip_torch 3.3 brings open_clip_train with it"
    [folder] = spec.submodule_search_locations or []
    tree = ast.parse((Path(folder) / "data.py").read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "CsvDataset"]
    names: dict[str, Any] = {
        "Dataset": Dataset,
        "Image": Image,
        "logging": logging,
        "pd": pandas,
        "tokenize": open_clip.tokenize,
    }
    exec(compile(tree, "open_clip_train/data.py", "exec"), names)
    return names["CsvDataset"]


def peer(table: Path, train: bool, workers: int) -> Callable[[], Iterable[object]]:
    """open_clip's pipeline over one epoch."""
    dataset = csv_dataset()(
        str(table),
        open_clip.image_transform(SIZE, is_train=train),
        img_key="filepath",
        caption_key="title",
        sep=",",
        tokenizer=open_clip.get_tokenizer("ViT-B-32"),
    )
    return lambda: DataLoader(dataset, batch_size=BATCH, shuffle=True, drop_last=True, num_workers=workers)


def images_per_second(
    contenders: dict[str, Callable[[], Iterable[object]]], count: int, rounds: int
) -> dict[str, float]:
    """The best of several rounds for each contender, taking turns so that neither has the machine's better minutes."""
    best = dict.fromkeys(contenders, 0.0)
    for _, name in itertools.product(range(rounds), contenders):
        start = time.perf_counter()
        batches = sum(1 for _ in contenders[name]())
        best[name] = max(best[name], batches * BATCH / (time.perf_counter() - start))
        assert batches == count // BATCH
    return best


def pixel_difference(paths: Iterable[Path], margin: float) -> float:
    """Mean absolute difference of our evaluation pixels to open_clip's, 0 to 255."""
    resize, crop = open_clip.image_transform(SIZE, is_train=False).transforms[:2]
    transform = ImageTransform(image_size=SIZE, draft_margin=margin)
    differences = []
    for path in paths:
        with Image.open(path) as image:
            expected = np.asarray(crop(resize(image.convert("RGB"))), dtype=np.float32)
        found = np.asarray(transform.pixels(path.read_bytes()), dtype=np.float32)
        differences.append(np.abs(found - expected).mean())
    return float(np.mean(differences))


def transforms_per_second(paths: Iterable[Path], margin: float, train: bool) -> float:
    """Our transform alone at another ``draft_margin``, per second of processor time."""
    transform = ImageTransform(image_size=SIZE, train=train, draft_margin=margin)
    encoded = [path.read_bytes() for path in paths]
    start = time.process_time()
    for data in encoded:
        transform(data)
    return len(encoded) / (time.process_time() - start)


def main() -> None:
    options = arguments(__doc__ or "").parse_args()
    torch.set_num_threads(1)
    count, rounds = (64, 1) if options.quick else (128, 3)
    records: list[Record] = []
    with tempfile.TemporaryDirectory() as folder:
        table = make_folder(Path(folder), count)
        paths = sorted(Path(folder).glob("*.jpg"))
        for train, workers in itertools.product((True, False), (0, 2)):
            contenders = {"ours": ours(table, train, workers, count), "peer": peer(table, train, workers)}
            speed = images_per_second(contenders, count, rounds)
            case = f"{'train' if train else 'evaluation'} 1-4 MP to {SIZE} px, {workers} workers"
            records.append(Record(case, "per_second", speed["ours"], speed["peer"], PEER))
        margin = ImageTransform().draft_margin
        records.append(
            Record("evaluation pixels, 0-255", "mean_absolute_difference", pixel_difference(paths[:64], margin))
        )
        for other in (1.0, 1.5, 2.0, 3.0, float("inf")):
            case = f"draft_margin={other:g}"
            difference = pixel_difference(paths[:64], other)
            records.append(Record(case, "mean_absolute_difference", difference))
            records.append(Record(f"{case} evaluation", "per_second", transforms_per_second(paths[:64], other, False)))
    if options.save:
        save("image_loading", "python -m benchmarks.image_loading", options.save, records)
    report("Image loading", records)


if __name__ == "__main__":
    main()
