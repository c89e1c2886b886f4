"""The pointing game's rules."""

import numpy as np
import pytest
from benchmarks import pointing
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


def test_errors_are_of_drawings_and_of_seeds() -> None:
    seeds = [[(1.0, 0.5), (0.0, 0.5)], [(1.0, 0.5), (1.0, 0.5)]]
    found = {record.metric: record.ours for record in pointing.summary("case", seeds)}
    assert found["hit_percent"] == 75.0
    assert found["hit_percent standard_error"] == pytest.approx(25.0)  # of 100 and 50
    assert found["hit_percent seeds_standard_error"] == pytest.approx(25.0)
    assert found["share_percent"] == 50.0
    assert found["share_percent standard_error"] == 0.0
