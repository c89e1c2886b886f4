"""What pairs count where the judge's errors are told apart, and the recipes that take it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from benchmarks.judge_errors import KINDS, recipe_of, weights_file, write_weights
from benchmarks.judge_limits import weights
from benchmarks.seeds import Job

from troth.bench.data import pairs_source, prepare
from troth.bench.methods import method_named, run_recipe
from troth.bench.runs import Job as YardstickJob
from troth.bench.settings import Place, Setting
from troth.data import CaptionAssignment
from troth.errors import UserError
from troth.objectives import GivenWeights, Reweighted, Sum
from troth.train import MismatchEstimates
from troth.train.mismatch_estimates import JUDGEMENT_NAME

ROW = "uniform-40: wrong out"


def test_each_kind_mends_the_judges_errors_or_leaves_them() -> None:
    wrong, p_mismatch = np.array([True, False]), np.array([0.75, 0.25])
    found = {kind: weights(kind, np.zeros(2), p_mismatch, wrong).tolist() for kind in KINDS if "," not in kind}
    assert found == {
        "judged": [0.25, 0.75],
        "wrong out": [0, 0.75],
        "right whole": [0.25, 1],
        "answers": [0, 1],
    }


def test_the_kept_judgement_is_weighed_pair_by_pair_and_read_by_robust(tmp_path: Path) -> None:
    place = Place(tmp_path, Setting.parse("uniform-40"), 1)
    prepare(place)
    number = len(pairs_source(place.pairs).open())
    index = np.arange(number)[::-1].copy()
    probability = np.linspace(0.0, 1.0, number)
    kept = YardstickJob("heads", method_named("robust"), place).folder
    kept.mkdir(parents=True)
    MismatchEstimates(index, -probability, 0.4, probability).write(kept / JUDGEMENT_NAME)
    write_weights(ROW, 1, tmp_path, tmp_path / "runs")
    table = pq.read_table(weights_file(tmp_path / "runs", ROW, 1))
    wrong = CaptionAssignment.load(place.answers).mismatched
    assert 0 < wrong.sum() < number
    expected = np.where(wrong[index], 0.0, 1 - probability)
    np.testing.assert_allclose(table["weight"].to_numpy(), expected)
    np.testing.assert_array_equal(table["id"].to_numpy(), index)

    write_weights(ROW, 1, tmp_path, tmp_path / "runs")  # the same again may stay
    MismatchEstimates(index, -probability, 0.4, probability**2).write(kept / JUDGEMENT_NAME)
    with pytest.raises(UserError, match=r"another judgement .*--runs"):
        write_weights(ROW, 1, tmp_path, tmp_path / "runs")

    recipe = recipe_of(Job("heads", ROW, 1, False, tmp_path / "run"), yardstick=tmp_path, runs=tmp_path / "runs")
    assert isinstance(recipe.objective, Sum)
    contrastive = recipe.objective.terms[0][1]
    assert isinstance(contrastive, Reweighted)
    assert contrastive.by == GivenWeights(file=str(weights_file(tmp_path / "runs", ROW, 1)))
    robust = run_recipe(method_named("robust"), "heads", place)
    assert (recipe.train, recipe.judge, recipe.data) == (robust.train, robust.judge, robust.data)


@pytest.mark.parametrize(("kind", "draw_wrong"), [("answers, map too", 1.0), ("answers, map and draw", 0.0)])
def test_the_answers_reach_the_map_and_the_draw_as_a_judgement(tmp_path: Path, kind: str, draw_wrong: float) -> None:
    place = Place(tmp_path, Setting.parse("uniform-40"), 0)
    prepare(place)
    wrong = CaptionAssignment.load(place.answers).mismatched
    kept = YardstickJob("heads", method_named("robust"), place).folder
    kept.mkdir(parents=True)
    half = np.full(len(wrong), 0.5)
    MismatchEstimates(np.arange(len(wrong)), half, 0.4, half).write(kept / JUDGEMENT_NAME)
    row, runs = f"uniform-40: {kind}", tmp_path / "runs"
    write_weights(row, 0, tmp_path, runs)
    recipe = recipe_of(Job("heads", row, 0, False, tmp_path / "run"), yardstick=tmp_path, runs=runs)
    robust = run_recipe(method_named("robust"), "heads", place)
    assert recipe.judge is not None
    assert robust.judge is not None
    assert recipe.judge.file is not None
    given = MismatchEstimates.read(Path(recipe.judge.file), len(wrong), remedy="")
    np.testing.assert_array_equal(given.p_mismatch, wrong)
    assert replace(recipe, judge=replace(recipe.judge, file=None, draw_wrong=1.0)) == robust
    assert recipe.judge.draw_wrong == draw_wrong


def test_without_a_kept_judgement_one_line_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="troth bench robustness --only robust"):
        write_weights(ROW, 1, tmp_path, tmp_path / "runs")
    assert not list(tmp_path.iterdir())
