"""Whole runs of towers: averaged, adapted, locked, and begun with the weights of another run."""

import json
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from troth import recipe as recipes
from troth import run
from troth.encoders.towers import quiet_open_clip
from troth.errors import UserError
from troth.run import build, open_run
from troth.train import TrainResult, read_log

TOWERS = (
    "model={kind='small', image_size=32, patch_size=16, embed_dim=16, vision_width=64, vision_layers=2, "
    "text_width=64, text_layers=1, context_length=8}"
)
ADAPTED = (
    "model={kind='timm', name='test_vit', image_size=160, embed_dim=16, text_width=32, text_layers=1, text_heads=1, "
    "context_length=8}"
)
AVERAGE = "train.average={decay=0.5}"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What the runs share: sixteen small pictures with captions."""
    folder = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(0)
    for number in range(16):
        Image.fromarray(draw.integers(0, 255, (40, 48, 3)).astype(np.uint8)).save(folder / f"{number:02}.png")
        (folder / f"{number:02}.txt").write_text(f"picture {number}\n")
    return [
        f"data.source={{kind='folder', path='{folder}'}}",
        "evaluation={tasks=[]}",
        "train={epochs=2, batch_size=8, precision='float32', device='cpu', checkpoint_every_steps=2, keep_last=9, "
        "log_every=1, tensorboard=false}",
    ]


def train(folder: Path, *settings: str) -> TrainResult:
    return run.train(recipes.load("small-infonce", settings), folder, progress=False)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, settings: list[str]) -> Path:
    """A run with an average, of four steps."""
    folder = tmp_path_factory.mktemp("runs") / "base"
    train(folder, *settings, TOWERS, AVERAGE)
    return folder


def weights(folder: Path, step: int, name: str = "model") -> dict[str, torch.Tensor]:
    tensors = load_file(folder / "checkpoints" / f"step-{step:08d}" / f"{name}.safetensors")
    return {key.removeprefix("module."): values for key, values in tensors.items() if key != "n_averaged"}


def same(model: torch.nn.Module, expected: dict[str, torch.Tensor]) -> bool:
    state = model.state_dict()
    assert state.keys() == expected.keys()
    return all(torch.equal(values, expected[name]) for name, values in state.items())


def test_a_run_is_opened_with_its_average_unless_asked_otherwise(base: Path) -> None:
    opened = open_run(base)
    assert opened.weights == "average"
    assert same(opened.model, weights(base, 4, "average"))
    trained = open_run(base, "2", weights="trained")
    assert (trained.weights, trained.step) == ("trained", 2)
    assert same(trained.model, weights(base, 2))
    assert not same(trained.model, weights(base, 2, "average"))
    with pytest.raises(UserError, match="trained or average"):
        open_run(base, weights="best")


def test_an_export_is_the_average(base: Path, tmp_path: Path) -> None:
    run.export(base, "best", tmp_path / "average")
    run.export(base, "best", tmp_path / "trained", "trained")
    for name, file in (("average", "average"), ("trained", "model")):
        exported = load_file(tmp_path / name / "open_clip_model.safetensors")
        assert torch.equal(exported["logit_scale"], weights(base, 4, file)["log_scale"])


def test_a_run_without_average_has_none(base: Path, settings: list[str], tmp_path: Path) -> None:
    train(tmp_path / "plain", *settings, TOWERS, "train.epochs=1")
    assert open_run(tmp_path / "plain").weights == "trained"
    with pytest.raises(UserError, match="the run kept no average"):
        open_run(tmp_path / "plain", weights="average")


@pytest.mark.parametrize(("which", "step"), [("", 4), ("@2", 2), ("@last", 4)])
def test_a_run_starts_with_another_ones_average(base: Path, settings: list[str], which: str, step: int) -> None:
    own = [*settings, TOWERS, "seed=5", f"start_from={base}{which}"]
    built = build(recipes.load("small-infonce", own))
    recipe = run.start(built.recipe, built.model)
    assert recipe.start_from == f"{base}@{step}"
    assert same(built.model, weights(base, step, "average"))


def test_it_resumes_without_them(base: Path, settings: list[str], tmp_path: Path) -> None:
    copy = tmp_path / "base"
    shutil.copytree(base, copy)
    folder = tmp_path / "next"
    own = [*settings, TOWERS, "seed=5", AVERAGE, f"start_from={copy}", "towers.image={lock_after_epochs=1}"]
    result = train(folder, *own)
    whole = {name: (result.checkpoint / f"{name}.safetensors").read_bytes() for name in ("model", "average")}
    assert recipes.load(folder / "recipe.toml").start_from == f"{copy}@4"
    first, last = weights(folder, 2), weights(folder, 4)
    visual = [name for name in first if ".visual." in name]
    assert visual
    assert all(torch.equal(first[name], last[name]) for name in visual)
    shutil.rmtree(folder / "checkpoints")  # as if it had ended before its first checkpoint
    assert run.resume(folder, progress=False).step == 4
    assert {name: (result.checkpoint / f"{name}.safetensors").read_bytes() for name in whole} == whole
    shutil.rmtree(copy)
    shutil.rmtree(result.checkpoint)
    run.resume(folder, progress=False)
    assert {name: (result.checkpoint / f"{name}.safetensors").read_bytes() for name in whole} == whole


def test_scale_and_bias_come_along_unless_the_recipe_says_them(base: Path, settings: list[str]) -> None:
    def begun(*own: str) -> torch.nn.Module:
        built = build(recipes.load("small-infonce", [*settings, TOWERS, f"start_from={base}", *own]))
        run.start(built.recipe, built.model)
        return built.model

    scale = float(weights(base, 4, "average")["log_scale"].exp())
    assert float(begun().scale.detach()) == pytest.approx(scale)
    assert float(begun("scale.init=20.0").scale.detach()) == pytest.approx(20.0)
    assert float(begun("scale.cap=10.0").scale.detach()) == pytest.approx(10.0)
    sigmoid = begun("objective.kind=sigmoid")
    assert float(sigmoid.bias.detach()) == -10.0, "the other run had none"
    assert float(sigmoid.scale.detach()) == pytest.approx(scale)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ([TOWERS, "start_from=no/such"], "start_from: no/such: not a run"),
        ([TOWERS, "start_from=BASE@77"], "no checkpoint '77'"),
        ([TOWERS.replace("embed_dim=16", "embed_dim=32"), "start_from=BASE"], "is [64, 16] in BASE and [64, 32] here"),
        ([TOWERS.replace("vision_layers=2", "vision_layers=3"), "start_from=BASE"], "BASE has no encoder.clip.visual"),
        ([TOWERS.replace("vision_layers=2", "vision_layers=1"), "start_from=BASE"], "BASE has encoder.clip.visual"),
    ],
    ids=["no run", "no step", "width", "deeper", "shallower"],
)
def test_weights_that_do_not_fit_are_one_line(
    base: Path, settings: list[str], tmp_path: Path, own: list[str], message: str
) -> None:
    own = [setting.replace("BASE", str(base)) for setting in own]
    for act in (lambda recipe: run.train(recipe, tmp_path / "run", progress=False), run.show_dry_run):
        with pytest.raises(UserError) as caught:
            act(recipes.load("small-infonce", [*settings, *own]))
        assert message.replace("BASE", str(base)) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_the_average_can_be_the_teacher(settings: list[str], tmp_path: Path) -> None:
    mimic = "objective={kind='sum', terms=[[1.0, {kind='infonce'}], [2.5, {kind='mimic'}]]}"
    own = [*settings, TOWERS, mimic, "teacher.kind=momentum"]
    with pytest.raises(UserError, match=r"teacher\.kind: there is no average of the weights to teach"):
        train(tmp_path / "run", *own)
    result = train(tmp_path / "run", *own, AVERAGE)
    losses = [record["loss"] for record in read_log(tmp_path / "run", "train")]
    whole = (result.checkpoint / "average.safetensors").read_bytes()
    shutil.rmtree(result.checkpoint)
    run.resume(tmp_path / "run", progress=False)
    assert (result.checkpoint / "average.safetensors").read_bytes() == whole
    assert [record["loss"] for record in read_log(tmp_path / "run", "train")] == losses
    run.show_dry_run(recipes.load("small-infonce", [*own, AVERAGE]))


def test_adapters_train_resume_and_leave_with_the_export(
    settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = tmp_path / "plain"
    train(plain, *settings, ADAPTED, "train.epochs=1")
    lora = "towers.image.lora={rank=2, targets=['qkv'], dropout=0.1}"
    own = [*settings, ADAPTED, lora, f"start_from={plain}", AVERAGE]
    recipe = recipes.load("small-infonce", own)
    run.show_dry_run(recipe)
    image = next(line for line in capsys.readouterr().out.splitlines() if "image tower" in line)
    total, learning = (int(word.replace(",", "")) for word in image.split() if word.replace(",", "").isdigit())
    assert 0 < learning < total / 10
    folder = tmp_path / "adapted"
    result = train(folder, *own)
    before, after = weights(plain, 2), weights(folder, 4)
    trunk = {name for name in before if ".trunk." in name}
    for name in trunk:
        known = name if name in after else f"{name.rpartition('.')[0]}.base_layer.{name.rpartition('.')[2]}"
        assert torch.equal(before[name], after[known]), name
    assert all(values.any() for name, values in after.items() if "lora_B" in name)
    whole = (result.checkpoint / "model.safetensors").read_bytes()
    shutil.rmtree(result.checkpoint)
    run.resume(folder, progress=False)
    assert (result.checkpoint / "model.safetensors").read_bytes() == whole
    run.export(folder, "best", tmp_path / "exported")
    with quiet_open_clip():
        theirs = open_clip.create_model(f"local-dir:{tmp_path / 'exported'}").eval()
    picture = torch.rand(2, 3, 160, 160)
    with torch.no_grad():
        ours = open_run(folder).model.embed_image(picture)
        torch.testing.assert_close(theirs.encode_image(picture, normalize=True), ours, rtol=1e-4, atol=1e-5)
    begun = build(recipes.load("small-infonce", [*settings, ADAPTED, lora, f"start_from={folder}"]))
    run.start(begun.recipe, begun.model)
    assert same(begun.model, weights(folder, 4, "average"))
    without = build(recipes.load("small-infonce", [*settings, ADAPTED, f"start_from={folder}"]))
    with pytest.raises(UserError, match="has adapters, which this model has no places for") as caught:
        run.start(without.recipe, without.model)
    assert "local-dir:" in str(caught.value)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (["towers.image.locked=1.5"], "towers.image.locked"),
        (["towers.image.lockd=true"], "towers.image.lockd: unknown key (did you mean 'locked'"),
        (["towers.picture.locked=true"], "towers.picture: unknown key (known here: image, text)"),
        (["towers.image.unlocked_groups=1"], "towers.image: unlocked_groups counts groups of a locked tower"),
        (["train.average.decay=2"], "train.average.decay"),
        (["towers.image.lora.rnk=2"], "towers.image.lora.rnk: unknown key (did you mean 'rank'?)"),
    ],
)
def test_a_mistake_in_a_recipe_is_one_line(own: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        recipes.load("small-infonce", own)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_only_building_can_find_names_its_tower(settings: list[str]) -> None:
    for own, message in (
        ("towers.text.freeze_batch_norm=true", "towers.text.freeze_batch_norm: the text tower has no batch norms"),
        ("towers.image={locked=true, unlocked_groups=9}", "towers.image.unlocked_groups: the image tower has 4 groups"),
        ("towers.image.lora={rank=2}", "towers.image.lora: adapters go into timm"),
    ):
        with pytest.raises(UserError) as caught:
            build(recipes.load("small-infonce", [*settings, TOWERS, own]))
        assert str(caught.value).startswith(message)


@pytest.mark.parametrize("name", ["continue", "continue-locked"])
def test_the_recipes_of_continued_training_train(name: str, settings: list[str], base: Path, tmp_path: Path) -> None:
    run.export(base, "best", tmp_path / "exported")
    own = [
        *settings[:1],
        "model.pretrained=none",
        f"model.name=local-dir:{tmp_path / 'exported'}",
        "train.epochs=1",
        "train.batch_size=8",
        "train.micro_batch_size=4",
        "train.num_workers=0",
        "train.device=cpu",
        "train.tensorboard=false",
    ]
    recipe = recipes.load(name, own)
    result = run.train(recipe, tmp_path / "run", progress=False)
    assert recipes.load(name).description
    after, before = weights(tmp_path / "run", result.step), weights(base, 4, "average")
    changed = {key for key, values in before.items() if not torch.equal(after[key], values)}
    assert any("visual" in key for key in changed) == (name == "continue")
    assert any("text_projection" in key for key in changed)
    assert json.loads((result.checkpoint / "trainer.json").read_text())["position"]["step"] == 2
