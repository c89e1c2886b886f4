"""What the benchmarks over seeds do with their runs' numbers."""

import argparse
import math
from pathlib import Path

import pytest
import torch
from benchmarks.seeds import Job, cut_recipe, summary, table, trained
from benchmarks.topology import SMALLEST
from benchmarks.training_systems import FULL_WEIGHT, SYSTEMS, recipe_of

from troth.errors import UserError
from troth.objectives import Affinity, InfoNCE, Sum
from troth.recipe import Recipe, load, to_toml


def test_a_mean_comes_with_its_standard_error() -> None:
    records = {each.metric: each.ours for each in summary("heads", "CLIP", [{"x": 1.0}, {"x": 2.0}, {"x": 6.0}])}
    assert records["x"] == pytest.approx(3.0)
    assert records["x standard error"] == pytest.approx(math.sqrt(7 / 3))


def test_what_a_run_lacks_is_left_out() -> None:
    assert [each.metric for each in summary("heads", "CLIP", [{"x": 1.0, "y": 2.0}, {"x": 1.0}])] == [
        "x",
        "x standard error",
    ]


def test_one_run_has_no_standard_error() -> None:
    assert [each.case for each in summary("small", "CLIP", [{"x": 1.0}])] == ["small: CLIP"]


def test_a_small_run_is_cut_and_scored_by_the_benchmark_alone(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp() / "never-made"
    tree = cut_recipe(Job("small", "CLIP", 2, False, folder), "infonce", ["train.batch_size=64"])
    assert (tree["seed"], tree["model"]["vision_layers"], tree["train"]["batch_size"]) == (2, 4, 64)
    assert tree["evaluation"]["tasks"] == []


def test_a_benchmark_may_cut_small_runs_further_and_never_cuts_heads(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp() / "never-made"
    small, heads = (
        cut_recipe(Job(regime, "sphere", 0, False, folder), "infonce", ["train.batch_size=32"], SMALLEST)
        for regime in ("small", "heads")
    )
    assert (small["model"]["vision_layers"], small["train"]["batch_size"]) == (1, 64)
    assert (heads["train"]["batch_size"], heads["train"]["epochs"]) == (32, 20)


def test_a_kept_run_of_another_recipe_is_not_taken_for_the_rows(tmp_path: Path) -> None:
    settings = [
        "data.source={kind='spiked', num_samples=80}",
        "model={kind='heads', embed_dim=8, hidden_dim=8}",
        "train={epochs=1, batch_size=40, device='cpu', tensorboard=false}",
        "evaluation.tasks=[]",
    ]
    first = load("heads-infonce", settings)
    threads = torch.get_num_threads()
    try:
        assert trained(first, tmp_path / "run").recipe.seed == trained(first, tmp_path / "run").recipe.seed
        with pytest.raises(UserError, match="run: the run was trained by another recipe than is asked for now"):
            trained(load("heads-infonce", [*settings, "seed=1"]), tmp_path / "run")
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("regime", "name"), [(regime, name) for name, system in SYSTEMS.items() for regime in system.regimes]
)
def test_every_training_system_has_a_recipe(tmp_path: Path, regime: str, name: str) -> None:
    recipe = recipe_of(Job(regime, name, 4, False, tmp_path))
    assert recipe.seed == 4
    if name == FULL_WEIGHT:
        assert recipe.objective == Sum(((1.0, InfoNCE()), (2.5, Affinity())))


def test_a_table_with_a_changed_row_ends_with_one_line_before_it_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "full" / "heads-changed-0"
    kept.mkdir(parents=True)
    (kept / "recipe.toml").write_text(to_toml(load("heads-infonce")))
    options = argparse.Namespace(quick=False, save=None, regime="heads", only=None, runs=tmp_path, jobs=1)
    monkeypatch.setattr("benchmarks.seeds.ProcessPoolExecutor", lambda *_, **__: pytest.fail("it trained"))

    def recipe_of(job: Job) -> Recipe:
        return load("heads-infonce", ["seed=3"] if job.name == "changed" else [])

    with pytest.raises(SystemExit, match=rf"{kept}: the run was trained by another recipe.*\(remove it"):
        table("any", "Any", [("heads", "new"), ("heads", "changed")], recipe_of, lambda *_: {}, options, seeds=(0,))
