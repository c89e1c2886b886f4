"""The yardstick from order to table, on a few hundred pictures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.bench import small
from troth import recipe as recipes
from troth.bench import Order, run_robustness, runs
from troth.bench.data import prepare
from troth.bench.methods import METHODS, REGIMES, Method, base_recipe, method_named, run_recipe
from troth.bench.results import read_results
from troth.bench.runs import Job, score_job, sees_stages, takes_features, train_job
from troth.bench.scores import SCORE_NAME, Score, score_run
from troth.bench.settings import Place, Setting
from troth.data import CaptionAssignment
from troth.errors import UserError
from troth.objectives import DeCL
from troth.recipe import to_dict
from troth.run import resume
from troth.run.opened import find_checkpoint
from troth.train import JUDGEMENT_NAME


@pytest.mark.usefixtures("small_yardstick")
def test_runs_are_trained_scored_kept_and_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    order = Order(tmp_path, regimes=("heads",), noise=("uniform-40",), seeds=1)
    scores = run_robustness(order)
    assert [(score.method, score.noise) for score in scores] == [
        ("InfoNCE", "uniform-0"),
        ("GCE", "uniform-0"),
        ("InfoNCE", "uniform-40"),
        ("GCE", "uniform-40"),
        ("oracle: InfoNCE on the right pairs", "uniform-40"),
    ]
    assert {score.steps for score in scores} == {12}, "the oracle makes as many steps on fewer pairs"
    assert all(0 <= score.zero_shot <= 100 and (score.seconds or 0) > 0 for score in scores)
    assert [score.auroc is None for score in scores] == [True, True, False, False, False]
    assert scores[2].true_rate == pytest.approx(0.4, abs=0.003)
    assert read_results(tmp_path / "results.parquet") == scores
    assert "uniform-40: 40.1% wrong, 12 steps" in capsys.readouterr().out
    oracle = recipes.load(tmp_path / "runs/heads-oracle-infonce-on-the-right-pairs/uniform-40-0/recipe.toml")
    assert oracle.data.source.urls.endswith("right.tar")
    assert oracle.train.max_steps == 12

    weights = "runs/*/*/checkpoints/*/*"
    assert not list(tmp_path.glob(weights)), "the weights of a full table would fill a disk"
    leftover = tmp_path / "runs/heads-gce/uniform-40-0/checkpoints"
    (leftover / "step-00000012").mkdir()
    (leftover / "step-00000012" / "model.safetensors").touch()
    assert len(list(tmp_path.glob("runs/*/*/log.jsonl"))) == 5
    monkeypatch.setattr(runs.Workers, "submit", lambda *_: pytest.fail("run again"))
    assert run_robustness(order) == scores
    assert not list(tmp_path.glob(weights)), "of a process that was killed before it had removed them"
    _refuse_another_recipe(order, monkeypatch)


@pytest.mark.usefixtures("small_yardstick")
def test_a_methods_own_judgement_is_what_is_scored_if_it_leaves_one(tmp_path: Path) -> None:
    place = Place(tmp_path, Setting.parse("uniform-40"), 0)
    prepare(place)
    job = Job("heads", small.METHODS[1], place)
    train_job(job)
    folder = job.folder
    of_model = score_run("heads", "GCE", place, folder, 1.0)
    assert of_model.judged_by == "model"
    mismatched = CaptionAssignment.load(place.answers).mismatched
    table = pa.table({"id": np.arange(192), "score": 1.0 - mismatched, "p_mismatch": mismatched * 1.0})
    pq.write_table(table.replace_schema_metadata({b"noise_rate": b"0.375"}), folder / JUDGEMENT_NAME)
    score = score_run("heads", "GCE", place, folder, 1.0)
    assert (score.auroc, score.average_precision, score.estimated_rate) == (1.0, 1.0, 0.375)
    assert score.judged_by == "judgement"
    (folder / JUDGEMENT_NAME).unlink()
    assert score_job(job, 1.0) == of_model == Score.read(folder / SCORE_NAME)
    for unusable in (lambda: resume(folder, progress=False), lambda: find_checkpoint(folder)):
        with pytest.raises(UserError, match=r"weights were removed when the run had been scored.*troth train"):
            unusable()
    log = (folder / "log.jsonl").read_text()
    assert log.count("\n") > 1, "what is left is left as it was"
    seconds = train_job(job)
    assert seconds is not None, "without its weights it is begun anew"
    assert replace(score_job(job, 1.0), seconds=1.0) == of_model


def _refuse_another_recipe(order: Order, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = Method("GCE", "heads-generalized-ce", settings=("train.batch_size=32", "objective.q=0.9"))
    monkeypatch.setattr(runs, "METHODS", (small.METHODS[0], changed))
    with pytest.raises(UserError, match=r"another recipe than is asked for now.*remove it"):
        run_robustness(order)


@pytest.mark.usefixtures("small_yardstick")
def test_a_run_that_diverges_ends_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wild = Method("GCE", "heads-infonce", settings=("train.batch_size=32", "train.optimizer.learning_rate=1e30"))
    monkeypatch.setattr(runs, "METHODS", (wild, small.METHODS[0]))
    with pytest.raises(UserError, match="1 runs failed: heads: GCE, uniform-0-seed0"):
        run_robustness(Order(tmp_path, regimes=("heads",), noise=("clean",), seeds=1))
    assert [score.method for score in read_results(tmp_path / "results.parquet")] == ["InfoNCE"]


def test_a_row_of_one_setting_is_not_run_on_another(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--only: nothing to run.*uniform-40 and same-category-40"):
        run_robustness(Order(tmp_path, only=("robust, no words",), noise=("uniform-20",)))


def test_every_row_has_a_recipe_in_its_regimes_and_equal_steps(tmp_path: Path) -> None:
    """Recipes are built of the settings alone: nothing is trained."""
    assert len({method.slug for method in METHODS}) == len(METHODS)
    for setting in ("uniform-40", "same-category-40", "foreign-40"):
        place = Place(tmp_path, Setting.parse(setting), 3)
        prepare(place)
        for regime, batches in (("heads", 1024), ("small", 256)):
            rows = [method for method in METHODS if method.recipe_name(regime) is not None]
            rows = [method for method in rows if method.runs_on(place.setting)]
            found = [run_recipe(method, regime, place) for method in rows]
            assert len(found) >= 14
            ablation = {method.name for method in rows if method.noise}
            taken_apart = setting in {"uniform-40", "same-category-40"}
            assert bool(ablation) == taken_apart
            assert ("robust, no map" in ablation) == (taken_apart and regime == "heads")
            assert ("robust, no drawing" in ablation) == (taken_apart and regime == "small")
            assert len({json.dumps(to_dict(recipe)) for recipe in found}) == len(found), "two rows train the same"
            assert {recipe.train.batch_size for recipe in found} == {batches}
            assert len({recipe.train.max_steps for recipe in found}) == 1
            assert {recipe.seed for recipe in found} == {3}
            assert not any(recipe.evaluation.tasks for recipe in found)


def test_settings_for_small_towers_are_not_those_of_heads() -> None:
    objectives = [base_recipe(method_named("DeCL"), regime, 0).objective for regime in REGIMES]
    assert objectives == [DeCL(), DeCL(keep=0.2)]


def test_orders_that_cannot_be_are_one_line(tmp_path: Path) -> None:
    for order, message in (
        (Order(tmp_path, only=("GEC",)), "GEC: no such method"),
        (Order(tmp_path, noise=("uniform",)), "no such noise"),
        (Order(tmp_path, seeds=0), "--seeds: must be at least 1"),
        (Order(tmp_path, jobs=0), "--jobs: must be at least 1"),
    ):
        with pytest.raises(UserError, match=message):
            run_robustness(order)
    assert not list(tmp_path.iterdir())
    assert method_named("gce").name == "GCE"


def test_the_first_seed_of_everything_comes_first_and_clean_pairs_before_noisy_ones(tmp_path: Path) -> None:
    order = Order(tmp_path, noise=("uniform-40", "foreign-40"), seeds=2)
    jobs = [job for some in order.jobs_in_order() for job in some]
    seeds = [job.place.seed for job in jobs]
    assert seeds == sorted(seeds)
    heads = [job.place.setting.name for job in jobs if job.regime == "heads" and job.place.seed == 0]
    assert list(dict.fromkeys(heads)) == ["uniform-0", "foreign-0", "uniform-40", "foreign-40"]
    assert not [job for job in jobs if job.method.data == "right" and not job.place.setting.percent]


def test_frozen_features_are_made_for_heads_judges_and_cached_teachers_and_stages_for_judges_that_see_them() -> None:
    def needs(name: str, *settings: str) -> tuple[bool, bool]:
        recipe = recipes.load(name, settings)
        return takes_features(recipe), sees_stages(recipe)

    assert needs("heads-infonce") == (True, False)
    assert needs("small-infonce") == (False, False)
    assert needs("robust") == (True, True)
    assert needs("robust-small") == (True, True)
    assert needs("robust-small", "judge.stages=false") == (True, False)
    assert needs("small-saco-mimic", "teacher.kind=cached") == (True, False)
    assert needs("small-saco-mimic", "teacher.kind=online") == (False, False)
