"""Diagnosing small real runs: what is measured is the run's own points, of the right pairs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from troth import cli
from troth import recipe as recipes
from troth import run as runs
from troth.data.part import sample_rows
from troth.embed import Embedder
from troth.evaluate import Diagnostics, alignment, converge_step, modality_gap, uniformity
from troth.geometry import FILIP, Euclidean, Oblique, Sphere
from troth.run.diagnose import diagnose, distance_in_words, geometry_in_words
from troth.train import read_log

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 50, 220), "yellow": (230, 220, 40)}
TOWERS = (
    'model={kind="small", image_size=32, patch_size=16, embed_dim=16, vision_width=64, vision_layers=1, text_width=64, '
    "text_layers=1, context_length=8}"
)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders of small pictures: 32 to train on, in pairs of one caption, and 12 others; one cannot be read."""
    folder = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(0)
    for part, count in (("train", 32), ("other", 12)):
        for number in range(count):
            name, colour = list(COLOURS.items())[number % 4]
            path = folder / part / name / f"{number:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.clip(np.array(colour) + draw.integers(-25, 25, (40, 48, 3)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
            path.with_suffix(".txt").write_text(f"{name} {number // 8}\npicture {number}\n")
    (folder / "train" / "red" / "broken.png").write_bytes(b"not a picture")
    (folder / "train" / "red" / "broken.txt").write_text("a broken picture\n")
    return folder


def source(folder: Path) -> str:
    return f'{{kind="folder", path="{folder}"}}'


def settings(pictures: Path) -> list[str]:
    return [
        TOWERS,
        f"data.source={source(pictures / 'train')}",
        "data.noise.fraction=0.5",
        'geometry={kind="oblique", sub_dim=4, num_spheres=4}',
        "evaluation.tasks=["
        f'{{kind="zero-shot", name="colour", source={source(pictures / "other")}, class_field="category", topk=[1]}}, '
        f'{{kind="retrieval", name="again", source={source(pictures / "other")}, k=[1]}}, '
        f'{{kind="retrieval", name="trained", source={source(pictures / "train")}, k=[1]}}]',
        "train={epochs=2, batch_size=8, precision='float32', device='cpu', log_every=1, tensorboard=false}",
    ]


@pytest.fixture(scope="module")
def run(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "small"
    runs.train(recipes.load("small-infonce", settings(pictures)), folder, progress=False)
    return folder


@pytest.fixture(scope="module")
def measured(run: Path) -> Diagnostics:
    return Diagnostics.load(diagnose(run, "last", pairs=20, draws=3))


def embedder_of(run: Path) -> Embedder:
    return Embedder(runs.open_run(run, "last").model, num_workers=0)


@torch.no_grad()
def test_training_pictures_are_measured_with_their_own_captions(run: Path, measured: Diagnostics) -> None:
    opened = runs.open_run(run, "last")
    data = opened.recipe.data.source.open()
    chosen = [row for row in sample_rows(data, 20, 0).tolist() if data.key(row) != "red/broken.png"]
    embedder = embedder_of(run)
    index, image = embedder.images(data)
    image = image[torch.isin(index, torch.tensor(chosen))]
    captions = [data.captions(row)[0] for row in chosen]
    text = embedder.texts(captions)
    group = torch.tensor([captions.index(caption) for caption in captions])
    part, geometry = measured.data[0], embedder.geometry
    kinds = part.distances.kinds
    assert (part.name, part.in_domain) == ("training data", True)
    assert kinds["positive"].number == len(chosen)
    assert kinds["negative"].number == int((group[:, None] != group).sum()) < len(chosen) * (len(chosen) - 1)
    assert kinds["positive"].mean == pytest.approx(-float(geometry.paired_similarity(image, text).mean()), abs=1e-5)
    different = group[:, None] != group
    for kind, rows, columns in (("image_image", image, image), ("text_text", text, text), ("negative", image, text)):
        expected = -float(geometry.similarity(rows, columns)[different].mean())
        assert kinds[kind].mean == pytest.approx(expected, abs=1e-5)  # type: ignore[index]
    assert part.measures == pytest.approx(
        {
            "modality_gap": modality_gap(image, text, geometry),
            "alignment": alignment(image, text, geometry),
            "image_uniformity": uniformity(image, geometry, group),
            "text_uniformity": uniformity(text, geometry, group),
        },
        abs=1e-4,
    )


def test_other_data_are_those_of_the_tasks_once_each(measured: Diagnostics) -> None:
    assert [(part.name, part.in_domain) for part in measured.data] == [("training data", True), ("colour", False)]
    assert measured.data[1].distances.kinds["positive"].number == 12
    assert measured.data[0].distances.edges == measured.data[1].distances.edges
    assert "The data of trained are the training data: they say nothing of other data." in measured.notes
    assert "The run was trained with 50% wrong captions; its training pictures are measured with their own." in (
        measured.notes
    )


def test_all_spheres_have_the_accuracy_of_the_task(run: Path, measured: Diagnostics) -> None:
    (subsets,) = measured.subsets
    assert (subsets.task, subsets.sizes, subsets.chance) == ("colour", (1, 2, 4), 0.25)
    whole = runs.run_tasks(runs.open_run(run, "last").recipe, runs.open_run(run, "last").model)[0].metrics["top1"]
    assert subsets.mean[-1] == whole
    assert [len(draws) for draws in subsets.draws] == [3, 3, 1]


def test_the_scale_is_that_of_the_log(run: Path, measured: Diagnostics) -> None:
    records = read_log(run, "train")
    assert measured.scale.step == tuple(record["step"] for record in records)
    assert measured.scale.scale == pytest.approx([record["scale"] for record in records])
    assert measured.scale.steps_per_epoch == len(records) / 2
    assert measured.scale.converged == converge_step(measured.scale.step, measured.scale.scale, len(records) / 2)


def test_measuring_again_gives_the_same(run: Path, measured: Diagnostics, tmp_path: Path) -> None:
    again = Diagnostics.load(diagnose(run, "last", out=tmp_path / "again", pairs=20, draws=3))
    assert again == measured


def test_the_command_prints_saves_and_draws(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["diagnose", str(run), "--out", str(tmp_path / "out"), "--pairs", "9", "--weights", "trained"])
    assert ended.value.code == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "diagnostics.json",
        "arrays.npz",
        "diagnostics.html",
    }
    record = json.loads((tmp_path / "out" / "diagnostics.json").read_text())
    assert record["data"][1]["distances"]["kinds"]["positive"]["number"] == 9
    shown = capsys.readouterr().out
    assert "colour" in shown
    assert "modality gap" in shown


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def check(*arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            cli.main(["diagnose", *arguments])
        assert ended.value.code == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        return line

    return check


def test_mistakes_are_one_line_and_leave_nothing(
    run: Path, pictures: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    out = tmp_path / "out"
    assert "--pairs: 1 pairs have no negatives" in fails(str(run), "--pairs", "1", "--out", str(out))
    assert "not a run" in fails(str(tmp_path), "--out", str(out))
    one = tmp_path / "one"
    one.mkdir()
    for number in range(2):
        (one / f"{number}.png").write_bytes((pictures / "other" / "red" / "00.png").read_bytes())
        (one / f"{number}.txt").write_text("the same caption\n")
    task = f'evaluation.tasks=[{{kind="retrieval", source={source(one)}, k=[1]}}]'
    line = fails(str(run), "--set", task, "--out", str(out))
    assert "evaluation.tasks.0.source: 2 readable pairs of" in line
    assert "have no negatives (more samples, of different captions)" in line
    assert not out.exists()


def test_a_run_on_vectors_with_a_fixed_scale_and_no_other_data(tmp_path: Path) -> None:
    chosen = ["train.epochs=1", "train.batch_size=20", "train.tensorboard=false", "train.log_every=1"]
    chosen += ["data.source.num_samples=60", "evaluation.tasks=[]", 'geometry={kind="euclidean"}']
    runs.train(recipes.load("spiked-paired", chosen), tmp_path / "run", progress=False)
    found = Diagnostics.load(diagnose(tmp_path / "run", pairs=30))
    assert [part.name for part in found.data] == ["training data"]
    assert found.data[0].distances.kinds["positive"].number == 30
    assert found.subsets == ()
    assert not found.scale.learnable
    assert found.scale.converged is None
    words = " ".join(found.notes)
    for note in ("The scale was not trained.", "name no other data", "of the points' directions", "count as positives"):
        assert note in words


def test_geometries_and_distances_have_words() -> None:
    assert geometry_in_words(Sphere()) == "sphere"
    assert geometry_in_words(Euclidean()) == "Euclidean"
    assert geometry_in_words(FILIP()) == "FILIP"
    assert geometry_in_words(Oblique(sub_dim=2, num_spheres=3, distance="geodesic_sum")) == (
        "oblique, 3 spheres of 2 dimensions, geodesic sum"
    )
    geometries = [Oblique(distance="inner_product"), Oblique(distance="geodesic"), Oblique(distance="geodesic_sum")]
    assert len({distance_in_words(geometry) for geometry in [*geometries, Sphere(), Euclidean(), FILIP()]}) == 6
