"""What the benchmarks over seeds do with their runs' numbers."""

import math

import pytest
from benchmarks.seeds import Job, cut_recipe, summary
from benchmarks.topology import SMALLEST


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
