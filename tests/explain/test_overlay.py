"""Explanations as pictures and as arrays."""

from pathlib import Path

import numpy as np

from troth.explain import Explanation, Importance, draw, heat_over
from troth.explain.overlay import MARGIN, PANEL, WORDS


def importance(words: int, hot: tuple[int, int] = (0, 0)) -> Importance:
    image = np.zeros((40, 40))
    image[hot[0] : hot[0] + 10, hot[1] : hot[1] + 10] = 1.0
    weights = np.linspace(1, 0, words)
    return Importance(0.25, image, weights, image[::10, ::10], weights)


def explanation(words: int = 3, spheres: tuple[int, ...] = ()) -> Explanation:
    picture = np.full((40, 40, 3), 255, dtype=np.uint8)
    parts = {number: importance(words, (20, 20)) for number in spheres}
    return Explanation(picture, tuple(f"word{number}" for number in range(words)), importance(words), parts)


def test_heat_darkens_with_its_strength_and_leaves_the_rest() -> None:
    picture = np.full((1, 3, 3), 255, dtype=np.uint8)
    red, green, blue = heat_over(picture, np.array([[0.0, 0.5, 1.0]]))[0].T.astype(int)
    assert (red[0], green[0], blue[0]) == (255, 255, 255)
    assert green[0] > green[1] > green[2]
    assert red[2] > green[2] + 80
    assert red[2] > blue[2] + 60


def test_a_picture_of_its_own_colours_is_not_taken_for_heat() -> None:
    red = np.zeros((1, 1, 3), dtype=np.uint8)
    red[..., 0] = 255
    shown = heat_over(red, np.zeros((1, 1)))[0, 0].astype(int)
    assert shown.max() - shown.min() < 60


def test_there_is_a_row_for_each_score() -> None:
    for spheres in ((), (4,), (4, 7)):
        page = draw(explanation(spheres=spheres))
        assert page.size == (2 * PANEL + WORDS + 4 * MARGIN, (1 + len(spheres)) * (PANEL + MARGIN) + MARGIN)
    pixels = np.asarray(page).astype(int)
    for row, place in enumerate((0.1, 0.6, 0.6)):  # where the heat of each row is, as a share of its panel
        top, left = MARGIN + row * (PANEL + MARGIN), 2 * MARGIN + PANEL
        hot = pixels[top + int(place * PANEL), left + int(place * PANEL)]
        cold = pixels[top + int(0.9 * PANEL), left + int(0.9 * PANEL)]
        assert hot[0] > hot[1] + 80
        assert (cold > 250).all()


def test_many_words_stay_beside_their_row() -> None:
    page = np.asarray(draw(explanation(words=200, spheres=(1,))))
    gap = page[MARGIN + PANEL + 2 : 2 * MARGIN + PANEL - 2, 2 * PANEL + 3 * MARGIN :]
    assert (gap == 255).all()
    assert (page[:, -MARGIN // 2 :] == 255).all()


def test_arrays_hold_every_score_in_one_order(tmp_path: Path) -> None:
    shown = explanation(spheres=(4, 7))
    shown.save(tmp_path / "new" / "arrays.npz")
    with np.load(tmp_path / "new" / "arrays.npz", allow_pickle=False) as found:
        assert found["sphere"].tolist() == [-1, 4, 7]
        assert found["words"].tolist() == ["word0", "word1", "word2"]
        assert found["picture"].shape == (40, 40, 3)
        assert found["image"].shape == (3, 40, 40)
        assert found["cell_strength"].shape == (3, 4, 4)
        assert found["word_weight"].shape == found["word_strength"].shape == (3, 3)
        assert found["score"].tolist() == [0.25] * 3
        np.testing.assert_array_equal(found["image"][2], shown.spheres[7].image.astype(np.float32))
