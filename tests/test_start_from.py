"""Runs with an average are opened with it, and runs begin with the weights of another run."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.small_runs import AVERAGE, TOWERS, same, shared_settings, train, weights
from troth import recipe as recipes
from troth import run
from troth.errors import UserError
from troth.run import build, open_run


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return shared_settings(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, settings: list[str]) -> Path:
    """A run with an average, of four steps."""
    folder = tmp_path_factory.mktemp("runs") / "base"
    train(folder, *settings, TOWERS, AVERAGE)
    return folder


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
        ([TOWERS, "start_from=no/such"], "no/such: not a run"),
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


def test_runs_with_and_without_prototypes_start_from_each_other(
    base: Path, settings: list[str], tmp_path: Path
) -> None:
    terms = "[[1.0, {kind='infonce'}], [1.0, {kind='prototypes'}]]"
    episodes = "episodes={size=8, images_per_prototype=2, warmup_episodes=0, projection={hidden_dim=8, dim=4}}"
    own = [*settings, TOWERS, f"objective={{kind='sum', terms={terms}}}", episodes]
    built = build(recipes.load("small-infonce", [*own, f"start_from={base}"]))
    heads = {name: values.clone() for name, values in built.model.prototype_heads.state_dict().items()}
    run.start(built.recipe, built.model)
    assert all(torch.equal(heads[name], values) for name, values in built.model.prototype_heads.state_dict().items())
    source, own_weights = weights(base, 4, "average"), built.model.state_dict()
    assert all(torch.equal(own_weights[name], values) for name, values in source.items())
    train(tmp_path / "episodic", *own)
    built = build(recipes.load("small-infonce", [*settings, TOWERS, f"start_from={tmp_path / 'episodic'}"]))
    run.start(built.recipe, built.model)
