"""The pointing game's rules."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from benchmarks import pointing, table
from PIL import Image


def test_the_largest_value_decides_and_ties_are_shared() -> None:
    weights = np.zeros((4, 6))
    assert pointing.game(weights, 2) == (0.25, 0.25), "an empty map says nothing"
    weights[3, 1] = 2.0
    weights[0, 5] = 1.0
    assert pointing.game(weights, 2) == (1.0, pytest.approx(2 / 3))
    assert pointing.game(weights, 1) == (0.0, pytest.approx(1 / 3))
    assert pointing.game(weights, 0) == (0.0, 0.0)
    weights[0, 5] = 2.0
    assert [pointing.game(weights, place)[0] for place in range(4)] == [0.0, 0.5, 0.5, 0.0]


COLOURS = ["red", "green", "blue", "yellow", "black", "red cars", "purple"]
DRAWINGS = [(Image.new("RGB", (8, 8), word.split()[0]), f"a {word}") for word in COLOURS]


def corners(image: Image.Image) -> list[tuple[int, ...]]:
    return [image.getpixel((x, y)) for y in (4, 12) for x in (4, 12)]  # type: ignore[misc]


@pytest.mark.parametrize("seed", range(8))
def test_a_canvas_shows_the_drawing_and_other_things(seed: int) -> None:
    blank = pointing.canvas(DRAWINGS, 0, 16, "blank", seed)
    full = pointing.canvas(DRAWINGS, 0, 16, "distractors", seed)
    assert (blank.quadrant, blank.caption, blank.other) == (full.quadrant, full.caption, full.other)
    assert blank.caption == "a red"
    assert [place for place, colour in enumerate(corners(blank.image)) if colour == (255, 0, 0)] == [full.quadrant]
    assert corners(blank.image).count((255, 255, 255)) == 3
    # "red cars" shares a word with the caption: never on the canvas, which its red would make ambiguous.
    assert corners(full.image).count((255, 0, 0)) == 1
    assert len(set(corners(full.image))) == 4
    assert "red" not in full.other
    shown = {Image.new("RGB", (1, 1), word.split()[0]).getpixel((0, 0)) for word in [full.other.removeprefix("a ")]}
    assert not shown & set(corners(full.image)), "the other caption's drawing is not there"


def test_every_quadrant_is_played() -> None:
    assert {pointing.canvas(DRAWINGS, 0, 16, "blank", seed).quadrant for seed in range(20)} == {0, 1, 2, 3}


def test_drawings_are_spread_over_a_split() -> None:
    assert pointing.spread(10, 5) == [0, 2, 4, 6, 8]
    assert pointing.spread(3, 5) == [0, 1, 2]


def test_saving_one_recipe_keeps_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "RESULTS", tmp_path)
    results = {"blank": [[(1.0, 0.5), (0.0, 0.5)]]}
    monkeypatch.setattr(pointing, "played", lambda *_: results)

    def saved(*only: str) -> dict:
        monkeypatch.setattr("sys.argv", ["pointing", "--seeds", "1", "--save", "a machine", *only])
        pointing.main()
        return json.loads((tmp_path / "pointing.json").read_text())

    first = saved()
    assert first["command"] == "python -m benchmarks.pointing --seeds 1"
    results["blank"] = [[(1.0, 0.5), (1.0, 0.5)]]
    second = saved("--only", "heads-oblique")
    assert second["command"].endswith(" --seeds 1 --only heads-infonce heads-oblique small-infonce")
    assert second["records"][: len(first["records"])] == first["records"]
    hits = {each["case"]: each["ours"] for each in second["records"] if each["metric"] == "hit_percent"}
    assert hits == {"heads-infonce: blank": 50.0, "small-infonce: blank": 50.0, "heads-oblique: blank": 100.0}
    third = saved("--only", "small-infonce")
    assert third["command"] == second["command"]
    assert len(third["records"]) == len(second["records"])


def test_a_run_that_stopped_is_taken_up_and_quick_ones_are_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders: list[Path] = []
    monkeypatch.setattr(pointing, "trained", lambda _, folder: folders.append(folder))
    monkeypatch.setattr("troth.run.open_run", lambda *_: SimpleNamespace(model=None))
    monkeypatch.setattr("troth.explain.Explainer", lambda model: model)
    (tmp_path / "full" / "small-infonce-0").mkdir(parents=True)
    for quick in (False, True):
        pointing.opened("small-infonce", 0, quick, tmp_path)
    assert folders == [tmp_path / kind / "small-infonce-0" for kind in ("full", "quick")]


def test_errors_are_of_drawings_and_of_seeds() -> None:
    seeds = [[(1.0, 0.5), (0.0, 0.5)], [(1.0, 0.5), (1.0, 0.5)]]
    found = {record.metric: record.ours for record in pointing.summary("case", seeds)}
    assert found["hit_percent"] == 75.0
    assert found["hit_percent standard_error"] == pytest.approx(25.0)  # of 100 and 50
    assert found["hit_percent seeds_standard_error"] == pytest.approx(25.0)
    assert found["share_percent"] == 50.0
    assert found["share_percent standard_error"] == 0.0
