"""Settings chosen on noisy pairs, with neither answers nor tests."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from troth.bench import methods, run_select
from troth.bench.candidates import CANDIDATE_NAME, Candidate
from troth.bench.data import prepare
from troth.bench.guard import forbidden
from troth.bench.runs import train_kept
from troth.bench.select import SELECTION_NAME, combined, run_name, selection_recipe, show, split_values
from troth.bench.settings import Place, Setting
from troth.errors import UserError


def test_a_grid_is_every_combination() -> None:
    assert combined(["a.b=1,2", "c=x,y"]) == [("a.b=1", "c=x"), ("a.b=1", "c=y"), ("a.b=2", "c=x"), ("a.b=2", "c=y")]
    assert combined([]) == [()]
    for grid in ("a", "a=", "=1", "a=1,,2"):
        with pytest.raises(UserError, match="not a grid"):
            combined([grid])


def test_values_may_hold_commas_in_brackets_and_quotes() -> None:
    assert split_values('[1, 2],{a="x,]", b=2},"c,d",none') == ["[1, 2]", '{a="x,]", b=2}', '"c,d"', "none"]


@pytest.mark.usefixtures("small_yardstick")
def test_it_selects_with_the_answers_deleted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = Place(tmp_path, Setting.parse("uniform-40"), 100)
    prepare(place)
    shutil.rmtree(tmp_path / "answers")
    shutil.rmtree(tmp_path / "oracle")
    found = run_select("GCE", ["objective.q=0.1,1.0"], out=tmp_path, jobs=1)
    assert {each.settings for each in found} == {("objective.q=0.1",), ("objective.q=1.0",)}
    assert found[0].mean_recall >= found[1].mean_recall > 0
    assert not (tmp_path / "answers").exists()
    saved = json.loads((tmp_path / "selections/heads-gce/uniform-40-seed100" / SELECTION_NAME).read_text())
    assert saved["winner"] == list(found[0].settings)
    assert [each["mean_recall"] for each in saved["candidates"]] == [each.mean_recall for each in found]
    assert f"winner: {found[0].settings[0]}" in capsys.readouterr().out


@pytest.mark.usefixtures("small_yardstick")
def test_earlier_candidates_stay_and_are_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run_select("GCE", ["objective.q=0.1"], out=tmp_path, jobs=1)
    both = run_select("GCE", ["objective.q=0.9"], out=tmp_path, jobs=1)
    assert {each.settings for each in both} == {("objective.q=0.1",), ("objective.q=0.9",)}
    assert first[0] in both
    saved = json.loads((tmp_path / "selections/heads-gce/uniform-40-seed100" / SELECTION_NAME).read_text())
    assert len(saved["candidates"]) == 2
    assert run_select("GCE", ["objective.q=0.1,0.9"], out=tmp_path, jobs=1) == both, "its seconds too: nothing was run"
    other = replace(methods.method_named("GCE"), settings=(*methods.method_named("GCE").settings, "scale.init=5.0"))
    monkeypatch.setattr(methods, "METHODS", tuple(other if each.name == "GCE" else each for each in methods.METHODS))
    assert [each.settings for each in run_select("GCE", ["objective.q=0.5"], out=tmp_path, jobs=1)] == [
        ("objective.q=0.5",)
    ], "what another recipe reached is no candidate"


@pytest.mark.usefixtures("small_yardstick")
def test_candidates_of_other_pairs_do_not_count(tmp_path: Path) -> None:
    (found,) = run_select("GCE", ["objective.q=0.1"], out=tmp_path, jobs=1)
    home = tmp_path / "selections/heads-gce/uniform-40-seed100"
    (path,) = home.glob(f"*/{CANDIDATE_NAME}")
    replace(found, pairs="others").write(path)
    assert [each.settings for each in run_select("GCE", ["objective.q=0.9"], out=tmp_path, jobs=1)] == [
        ("objective.q=0.9",)
    ]
    again = run_select("GCE", ["objective.q=0.1"], out=tmp_path, jobs=1)
    (anew,) = (each for each in again if each.settings == found.settings)
    assert replace(anew, seconds=None) == replace(found, seconds=None)
    assert anew.seconds is not None, "of other pairs nothing was taken up"
    assert not list(home.glob("*/checkpoints/*/*"))


@pytest.mark.usefixtures("small_yardstick")
def test_a_run_that_was_taken_up_has_no_seconds_and_the_same_settings_are_run_once(tmp_path: Path) -> None:
    place = Place(tmp_path, Setting.parse("uniform-40"), 100)
    prepare(place)
    settings = ("objective.q=0.5",)
    recipe = selection_recipe(methods.method_named("GCE"), "heads", place, settings)
    train_kept(recipe, tmp_path / "selections/heads-gce/uniform-40-seed100" / run_name(recipe))
    (found,) = run_select("GCE", ["objective.q=0.5,0.50"], out=tmp_path, jobs=2)
    assert found.settings == settings
    assert found.seconds is None


def test_a_kept_candidate_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / CANDIDATE_NAME
    for text in ("{", "[]", '{"settings": []}', '{"settings": [], "nothing": 1}'):
        path.write_text(text)
        with pytest.raises(UserError, match=r"not a kept candidate.*remove its folder"):
            Candidate.read(path)


def test_the_table_shows_settings_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = "objective.terms=[" + ",".join(['[1.0,{kind="distillation"}]'] * 8) + "]"
    place = Place(tmp_path, Setting.parse("uniform-40"), 100)
    found = [Candidate((long, "a.b=[x]"), 26.5, 30.0, "pairs"), Candidate((), 26.0, None, "pairs")]
    show("robust", place, found, tmp_path / SELECTION_NAME)
    table = capsys.readouterr().out.partition("winner")[0]
    cells = "".join(line.split("│")[1].strip() for line in table.splitlines() if line.startswith("│"))
    assert cells == f"{long}a.b=[x]as shipped", "brackets are no markup"


@pytest.mark.usefixtures("small_yardstick")
def test_it_trains_and_scores_on_parts_of_the_noisy_pairs_that_do_not_meet(tmp_path: Path) -> None:
    place = Place(tmp_path, Setting.parse("uniform-40"), 100)
    prepare(place)
    recipe = selection_recipe(methods.METHODS[1], "heads", place, ("objective.q=0.3",))
    trained, scored = recipe.data.source.open(), recipe.evaluation.tasks[0].source.open()
    keys = {trained.key(row) for row in range(len(trained))}, {scored.key(row) for row in range(len(scored))}
    assert not keys[0] & keys[1]
    assert len(keys[0]) + len(keys[1]) == 192
    assert recipe.objective.q == 0.3
    assert recipe.data.noise.fraction == 0


def test_the_tests_are_out_of_its_reach(tmp_path: Path) -> None:
    kept = forbidden(tmp_path)
    assert [path for path in kept if "style-shift" in path]
    assert [path for path in kept if "retrieval" in path]


def test_what_cannot_select_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="an oracle knows"):
        run_select("oracle: InfoNCE on the right pairs", [], out=tmp_path)
    with pytest.raises(UserError, match=r"objective\.p: unknown key"):
        run_select("GCE", ["objective.p=1"], out=tmp_path)
    with pytest.raises(UserError, match="no such method"):
        run_select("nothing", [], out=tmp_path)
    assert not list(tmp_path.iterdir())
