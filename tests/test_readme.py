"""What the README says is so: its code runs, its commands parse, its figures are the committed ones."""

import itertools
import json
import re
import shlex
from pathlib import Path
from typing import get_args

import pytest
import torch

from troth import recipe as recipes
from troth.errors import UserError
from troth.geometry import GeometryConfig
from troth.objectives import ObjectiveConfig
from troth.recipe import Recipe


@pytest.fixture
def readme(repository: Path) -> str:
    return (repository / "README.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def test_the_python_example_runs(readme: str) -> None:
    (code,) = blocks(readme, "python")
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    losses, image_features = names["losses"], names["image_features"]
    assert isinstance(losses, torch.Tensor)
    assert losses.shape == (4096,)
    assert isinstance(image_features, torch.Tensor)


def test_the_training_commands_are_valid_recipes(readme: str) -> None:
    commands = "\n".join(blocks(readme, "console")).replace("\\\n", " ").splitlines()
    checked: list[Recipe] = []
    for command in commands:
        words = shlex.split(command.removeprefix("$ "), comments=True)
        if words[:2] == ["troth", "train"] and "--resume" not in words:
            settings = [after for word, after in itertools.pairwise(words) if word == "--set"]
            if "train.epoch=3" in settings:
                continue
            checked.append(recipes.load(words[2], settings))
    assert checked


def test_the_shown_mistake_is_the_real_one(readme: str) -> None:
    with pytest.raises(UserError) as caught:
        recipes.load("heads-infonce", ["train.epoch=3"])
    assert f"troth: {caught.value}\n" in readme


def test_the_shipped_recipes_and_objectives_are_named(readme: str) -> None:
    for cls in (*get_args(get_args(ObjectiveConfig)[0]), *get_args(get_args(GeometryConfig)[0])):
        assert f"`{cls.kind}`" in readme
    for name in recipes.shipped():
        assert f"`{name}`" in readme
    for name in re.findall(r"`((?:heads|small|spiked|digits|continue|open)-[a-z-]+)`", readme):
        assert name in recipes.shipped()


def test_the_figures_are_the_committed_ones(readme: str, repository: Path) -> None:
    """Each row of the table is `| case | metric | ours | peer | ratio |`, copied from a committed result."""
    committed: dict[tuple[str, str], list[dict]] = {}
    for path in (repository / "benchmarks" / "results").glob("*.json"):
        for record in json.loads(path.read_text())["records"]:
            committed.setdefault((record["case"], record["metric"]), []).append(record)
    rows = re.findall(
        r"^\| ([^|]+) \| (seconds|peak_mib|per_second) \| ([^|]+) \| ([^|]*) \| ([^|]*) \|$", readme, re.M
    )
    assert len(rows) >= 6
    for case, metric, ours, peer, ratio in rows:
        shown = [float(cell.replace(",", "")) for cell in (ours, peer) if cell.strip()]
        records = [
            record
            for record in committed[case, metric]
            if shown == pytest.approx([record["ours"], record["peer"]][: len(shown)], rel=0.006)
        ]
        assert records, f"{case}, {metric}: {shown} is in no committed result"
        if len(shown) == 2:
            assert float(ratio) == pytest.approx(records[0]["ratio"], abs=0.006)
