"""Episodes as recipes name them, in whole runs on heads and on towers."""

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
from troth.data import EpisodePlan, Ledger
from troth.run import build, open_run
from troth.train import read_log

TOWERS = (
    "model={kind='small', image_size=32, patch_size=16, embed_dim=16, vision_width=64, vision_layers=1, "
    "text_width=64, text_layers=1, context_length=8}"
)
PROTOTYPES = "objective={kind='sum', terms=[[1.0, {kind='infonce'}], [1.0, {kind='prototypes'}]]}"
EPISODES = "episodes={size=16, images_per_prototype=4, projection={hidden_dim=16, dim=8}, kmeans={iterations=4}}"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What the runs share: sixteen pictures of two captions each, and one in their midst that cannot be read."""
    folder = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(0)
    for number in range(16):
        Image.fromarray(draw.integers(0, 255, (40, 48, 3)).astype(np.uint8)).save(folder / f"{number:02}.png")
        (folder / f"{number:02}.txt").write_text(f"picture {number // 2}\nimage {number}\n")
    (folder / "07b.png").write_bytes(b"not a picture")
    (folder / "07b.txt").write_text("broken\n")
    return [
        f"data.source={{kind='folder', path='{folder}'}}",
        "evaluation={tasks=[]}",
        "train={epochs=4, batch_size=8, precision='float32', device='cpu', checkpoint_every_steps=3, log_every=1, "
        "tensorboard=false}",
    ]


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Heads on a small timm tower with random weights."""
    path = tmp_path_factory.mktemp("weights") / "tower.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(1)
        save_file(timm.create_model("test_byobnet", num_classes=0).state_dict(), path)
    return (
        "model={kind='heads', embed_dim=8, hidden_dim=16, image_encoder='timm:test_byobnet', image_size=32, "
        f"image_weights='{path}'}}"
    )


@pytest.mark.parametrize("kind", ["heads", "towers"])
def test_a_run_in_episodes_trains_resumes_and_opens(
    tmp_path: Path,
    settings: list[str],
    heads: str,
    kind: str,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = recipes.load("heads-infonce", [*settings, heads if kind == "heads" else TOWERS, PROTOTYPES, EPISODES])
    result = run.train(recipe, tmp_path / "run", progress=False)
    assert [record["phase"] for record in read_log(tmp_path / "run", "episode")] == ["warmup"] + ["prototypes"] * 3
    last = read_log(tmp_path / "run", "train")[-1]
    assert last["step"] == 8
    assert 0 <= last["1-prototypes/image_finds_cluster"] <= 1
    assert recipes.load(tmp_path / "run" / "recipe.toml") == recipe
    assert Ledger.read(tmp_path / "run" / "ledger.jsonl").counts() == {"corrupt-image": 1}
    expected = {path.name: load_file(path) for path in result.checkpoint.glob("*.safetensors")}
    shutil.rmtree(result.checkpoint)  # as if the run had ended two steps earlier, at the end of an episode
    with caplog.at_level(logging.WARNING, logger="troth"):
        assert run.resume(tmp_path / "run", progress=False).step == 8
    assert not caplog.records, "not bit for bit"
    for name, tensors in expected.items():
        again = load_file(result.checkpoint / name)
        assert again.keys() == tensors.keys()
        assert all(torch.equal(again[key], values) for key, values in tensors.items()), name
    opened = open_run(tmp_path / "run", "last")
    assert not opened.model.training
    assert opened.model.prototype_heads is not None
    capsys.readouterr()
    run.show_dry_run(recipe)
    printed = capsys.readouterr().out
    assert "4 of 16 samples" in printed
    assert "4 a clustering" in printed
    assert "encoding and clustering" in printed


def test_without_prototypes_episodes_are_an_order_of_the_samples(
    tmp_path: Path, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipes.load("heads-infonce", [*settings, TOWERS, EPISODES])
    assert isinstance(build(recipe).stream().plan, EpisodePlan)
    result = run.train(recipe, tmp_path / "run", progress=False)
    assert {record["phase"] for record in read_log(tmp_path / "run", "episode")} == {"pairs"}
    assert not any("prototype" in name for name in load_file(result.checkpoint / "model.safetensors"))
    assert not (result.checkpoint / "state.safetensors").exists() or not load_file(
        result.checkpoint / "state.safetensors"
    )
    run.show_dry_run(recipe)
    printed = capsys.readouterr().out
    assert "4 of 16 samples" in printed
    assert "clustering" not in printed


def test_heads_are_the_prototypes_not_of_the_recipe_without_episodes(settings: list[str]) -> None:
    assert build(recipes.load("heads-infonce", [*settings, TOWERS])).model.prototype_heads is None
