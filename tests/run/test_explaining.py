"""``troth explain`` on small runs, and what it refuses."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.small_runs import TOWERS, shared_settings, train
from troth import cli
from troth import recipe as recipes
from troth import run as runs

OBLIQUE = "geometry={kind='oblique', sub_dim=4, num_spheres=4}"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pictures")


@pytest.fixture(scope="module")
def run(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "oblique"
    train(folder, *shared_settings(pictures), TOWERS, OBLIQUE, "train.epochs=1")
    return folder


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(["explain", *arguments])
    return int(ended.value.code or 0)


def test_explain_prints_words_and_writes_overlay_and_arrays(
    run: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, arrays = tmp_path / "new" / "seen.png", tmp_path / "seen.npz"
    code = call(
        str(run), str(pictures / "03.png"), "Picture three", "--out", str(out), "--arrays", str(arrays),
        "--spheres", "2,0",
    )  # fmt: skip
    assert code == 0
    printed = capsys.readouterr().out
    assert "picture" in printed
    assert "three" in printed
    with Image.open(out) as page:
        assert page.format == "PNG"
    with np.load(arrays) as found:
        assert found["sphere"].tolist() == [-1, 2, 0]
        assert found["image"].shape == (3, 32, 32)
        assert found["cell_strength"].shape == (3, 2, 2)
        assert found["words"].tolist() == ["picture", "three"]
        assert f"{found['score'][0]:.4f}" in printed
    everything = ["--out", str(out), "--arrays", str(arrays), "--spheres", "all"]
    assert call(str(run), str(pictures / "03.png"), "three", *everything) == 0
    with np.load(arrays) as found:
        assert found["sphere"].tolist() == [-1, 0, 1, 2, 3]
        # The score is the sum of the spheres', so that all of them add up to it.
        assert found["score"][0] == pytest.approx(found["score"][1:].sum(), abs=1e-6)
    assert not list(tmp_path.glob("**/*.tmp*"))


MISTAKES = [
    (["{pictures}/none.png", "a"], "none.png: no such picture"),
    (["{pictures}/03.txt", "a"], "03.txt: the picture cannot be read: corrupt-image"),
    (["{pictures}/03.png", "  "], "TEXT: the text has no words"),
    (["{pictures}/03.png", "a", "--spheres", "9"], "spheres: there is no sphere 9 (they are 0 to 3)"),
    (["{pictures}/03.png", "a", "--spheres", "one"], "--spheres: not numbers between commas"),
    (["{pictures}/03.png", "a", "--arrays", "a.csv"], "--arrays: writes .npz"),
    (["{pictures}/03.png", "a", "--checkpoint", "77"], "no checkpoint '77'"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=[message for _, message in MISTAKES])
def test_a_mistake_is_one_line_and_writes_nothing(
    run: Path,
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    given = [each.format(pictures=pictures) for each in arguments]
    assert call(str(run), *given, "--out", str(tmp_path / "out.png")) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert not any(tmp_path.iterdir())


def test_an_overlay_has_a_pictures_suffix(run: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(str(run), str(pictures / "03.png"), "a", "--out", "overlay.pdf") == 2
    assert "--out: an overlay is a picture, not .pdf (FILE.png)" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["plain", "heads"])
def test_a_run_on_vectors_has_no_pictures(
    kind: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = np.random.default_rng(0)
    np.savez(
        tmp_path / "pairs.npz",
        image=draw.normal(size=(16, 6)).astype(np.float32),
        text=draw.normal(size=(16, 6)).astype(np.float32),
    )
    model = "{kind='plain', embed_dim=4}" if kind == "plain" else "{kind='heads', embed_dim=4, hidden_dim=8}"
    recipe = recipes.load(
        "digits-paired",
        [
            f"data.source={{kind='vectors', path='{tmp_path / 'pairs.npz'}'}}",
            f"model={model}",
            "evaluation={tasks=[]}",
            "train.epochs=1",
            "train.batch_size=8",
            "train.tensorboard=false",
        ],
    )
    runs.train(recipe, tmp_path / "run", progress=False)
    assert call(str(tmp_path / "run"), str(pictures / "03.png"), "a", "--out", str(tmp_path / "out.png")) == 2
    assert "there is no picture to explain" in capsys.readouterr().err
