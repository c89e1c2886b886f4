"""Teachers as recipes name them, in whole runs on heads and on towers."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from troth import recipe as recipes
from troth import run
from troth.data import Ledger
from troth.encoders import OpenClip
from troth.errors import UserError
from troth.recipe import Recipe
from troth.run import build
from troth.train import CachedTeacher, InputTeacher, MomentumTeacher, OnlineTeacher, TaughtStream, read_log

MIMIC = "objective={kind='sum', terms=[[1.0, {kind='infonce'}], [2.5, {kind='mimic'}]]}"
TOWERS = (
    "model={kind='small', image_size=32, patch_size=16, embed_dim=16, vision_width=64, vision_layers=1, "
    "text_width=64, text_layers=1, context_length=8}"
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a small timm tower."""
    path = tmp_path_factory.mktemp("weights") / "tower.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(1)
        save_file(timm.create_model("test_byobnet", num_classes=0).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What the runs share: sixteen pictures, two of which share a caption, and one that cannot be read."""
    folder = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(0)
    for number in range(16):
        Image.fromarray(draw.integers(0, 255, (40, 48, 3)).astype(np.uint8)).save(folder / f"{number:02}.png")
        (folder / f"{number:02}.txt").write_text(f"picture {number // 2}\n")
    (folder / "broken.png").write_bytes(b"not a picture")
    (folder / "broken.txt").write_text("broken\n")
    return [
        f"data.source={{kind='folder', path='{folder}'}}",
        "evaluation={tasks=[]}",
        "train={epochs=2, batch_size=8, precision='float32', device='cpu', checkpoint_every_steps=2, log_every=1, "
        "tensorboard=false}",
    ]


def heads(weights: Path) -> str:
    return (
        "model={kind='heads', embed_dim=8, hidden_dim=16, image_encoder='timm:test_byobnet', image_size=32, "
        f"image_weights='{weights}'}}"
    )


def tower(weights: Path, image_size: int) -> str:
    return (
        f"encoder={{kind='frozen', image_encoder='timm:test_byobnet', image_size={image_size}, "
        f"image_weights='{weights}'}}"
    )


@pytest.mark.parametrize(
    ("model", "teacher"),
    [
        ("heads", "{kind='input'}"),
        ("heads", "{kind='cached', TOWER}"),
        ("towers", "{kind='cached', TOWER}"),
        ("towers", "{kind='online', TOWER, micro_batch_size=3}"),
    ],
)
def test_a_taught_run_trains_and_resumes(
    tmp_path: Path, settings: list[str], weights: Path, model: str, teacher: str, caplog: pytest.LogCaptureFixture
) -> None:
    own = [heads(weights) if model == "heads" else TOWERS, f"teacher={teacher.replace('TOWER', tower(weights, 64))}"]
    recipe = recipes.load("heads-infonce", [*settings, *own, MIMIC])
    result = run.train(recipe, tmp_path / "run", progress=False)
    assert [record["step"] for record in read_log(tmp_path / "run", "train")] == [1, 2, 3, 4]
    assert recipes.load(tmp_path / "run" / "recipe.toml") == recipe
    weights_file = result.checkpoint / "model.safetensors"
    assert set(load_file(weights_file)) == set(build(recipe).model.state_dict()), "the teacher is no part of the model"
    assert Ledger.read(tmp_path / "run" / "ledger.jsonl").counts() == {"corrupt-image": 1}
    expected = weights_file.read_bytes()
    shutil.rmtree(result.checkpoint)  # as if the run had ended two steps earlier
    with caplog.at_level(logging.WARNING, logger="troth"):
        assert run.resume(tmp_path / "run", progress=False).step == 4
    assert not caplog.records, "not bit for bit"
    assert weights_file.read_bytes() == expected
    run.show_dry_run(recipe)


def test_the_teacher_changes_what_is_learned(settings: list[str], weights: Path) -> None:
    """The features come through the whole recipe: with those of the input, heads are taught by their own input."""
    recipe = recipes.load("heads-infonce", [*settings, heads(weights), MIMIC, "teacher.kind=input"])
    stream = build(recipe).stream()
    assert isinstance(stream, TaughtStream)
    loaded = next(stream.batches(0, 1))
    assert torch.equal(loaded.teacher_image, loaded.batch.image)
    other = recipes.load(
        "heads-infonce", [*settings, heads(weights), MIMIC, f"teacher={{kind='cached', {tower(weights, 32)}}}"]
    )
    taught = next(build(other).stream().batches(0, 1))
    assert torch.equal(taught.teacher_image, loaded.teacher_image), "the same encoder, looked up by sample id"


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (["teacher.kind=oral"], "teacher: unknown kind 'oral' (one of: 'input', 'cached', 'online', 'momentum')"),
        (["teacher={kind='input', dim=3}"], "teacher.dim: unknown key (known here: kind)"),
        (["teacher={kind='cached', encodr={}}"], "teacher.encodr: unknown key (did you mean 'encoder'?)"),
        (["teacher={kind='online', encoder={kind='vgg'}}"], "teacher.encoder: unknown kind 'vgg'"),
        (
            ["teacher={kind='online', encoder={kind='open_clip', name='RN50'}}"],
            "teacher.encoder: random weights teach nothing: set the encoder's pretrained (RN50 has none of its own)",
        ),
        (["teacher={kind='online', micro_batch_size=0}"], "teacher.micro_batch_size: input should be greater than 0"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_a_mistake_in_a_recipe_is_one_line(settings: list[str], line: str) -> None:
    with pytest.raises(UserError) as caught:
        recipes.load("small-infonce", settings)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("own", "line"),
    [
        (
            [MIMIC],
            'teacher: the objective copies a teacher, and the recipe names none (such as teacher = { kind = "input" })',
        ),
        ([TOWERS, MIMIC], 'and the recipe names none (such as teacher = { kind = "online" })'),
        (
            ["teacher.kind=input"],
            'teacher: no part of the objective copies a teacher (leave it out, or set it to "none")',
        ),
        ([TOWERS, MIMIC, "teacher.kind=input"], "teacher.kind: towers take pictures"),
        ([MIMIC, "teacher.kind=online"], "teacher.kind: heads take features"),
        (
            [TOWERS, MIMIC, "teacher={kind='cached', encoder={kind='frozen', image_encoder='vgg'}}"],
            "teacher.encoder.image_encoder: there is no frozen image encoder 'vgg'",
        ),
        (
            [TOWERS, MIMIC, "teacher={kind='online', encoder={kind='frozen', image_encoder='timm:resnet19'}}"],
            "teacher.encoder.image_encoder: timm has no model 'resnet19' (did you mean resnet18",
        ),
        (
            [
                TOWERS,
                MIMIC,
                "teacher={kind='cached', encoder={kind='frozen', image_encoder='timm:vgg11', image_weights='no.pt'}}",
            ],
            "teacher.encoder.image_weights: there is no weights file 'no.pt'",
        ),
        (
            [TOWERS, MIMIC, "teacher={kind='online', encoder={kind='frozen', image_weights='no.pt'}}"],
            "teacher.encoder.image_weights: efficientnet-lite0 takes the weights of its package only",
        ),
        (
            [TOWERS, MIMIC, "teacher={kind='online', encoder={kind='open_clip', name='RN51', pretrained='openai'}}"],
            "teacher.encoder.name: open_clip has no model 'RN51' (did you mean RN50",
        ),
        (
            [TOWERS, MIMIC, "teacher={kind='cached', encoder={kind='open_clip', name='RN50', pretrained='lion'}}"],
            "teacher.encoder.pretrained: open_clip has no weights 'lion' for RN50",
        ),
        (
            [TOWERS, MIMIC, "teacher={kind='online', encoder={kind='open_clip', name='local-dir:no/such'}}"],
            "teacher.encoder.name: no open_clip configuration at 'local-dir:no/such'",
        ),
    ],
    ids=lambda value: str(value)[-60:],
)
def test_what_only_building_can_find_is_one_line_too(settings: list[str], own: list[str], line: str) -> None:
    with pytest.raises(UserError) as caught:
        build(recipes.load("heads-infonce", [*settings, *own])).stream()
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_teacher_survives_being_written() -> None:
    online = OnlineTeacher(encoder=OpenClip(pretrained="openai"))
    for kind in (InputTeacher(), CachedTeacher(), online, MomentumTeacher(), None):
        recipe = Recipe(teacher=kind)
        assert recipes.from_dict(recipes.to_dict(recipe)) == recipe
    assert recipes.load("heads-infonce").teacher is None
    assert recipes.load("heads-infonce", ["teacher.kind=cached"]).teacher == CachedTeacher()
