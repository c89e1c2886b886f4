"""Noise settings by name."""

from pathlib import Path

import pytest

from troth.bench.settings import SETTINGS, Place, Setting
from troth.errors import UserError


def test_a_name_is_read_and_written() -> None:
    setting = Setting.parse("same-category-40")
    assert (setting.kind, setting.percent, setting.rate) == ("same-category", 40, 0.4)
    assert setting.name == "same-category-40"
    assert [Setting.parse(each.name) for each in SETTINGS] == list(SETTINGS)
    assert Setting.parse("clean") == Setting.parse("uniform-0")


def test_all_kinds_of_noise_are_run_at_twenty_and_forty_percent() -> None:
    found = {(setting.kind, setting.percent) for setting in SETTINGS}
    assert {(kind, percent) for kind in ("uniform", "same-category", "foreign") for percent in (20, 40)} < found
    assert {("uniform", 0), ("uniform", 60), ("foreign", 0)} < found


@pytest.mark.parametrize(
    ("noisy", "clean"),
    [("uniform-60", "uniform-0"), ("same-category-40", "uniform-0"), ("foreign-40", "foreign-0")],
)
def test_each_is_compared_with_the_same_pairs_without_noise(noisy: str, clean: str) -> None:
    assert Setting.parse(noisy).clean == Setting.parse(clean)
    assert Setting.parse(clean) in SETTINGS


@pytest.mark.parametrize("name", ["uniform", "uniform-100", "uniform-4.5", "Uniform-40", "batch-20", ""])
def test_another_name_is_one_line(name: str) -> None:
    with pytest.raises(UserError, match=r"no such noise .*such as uniform-40"):
        Setting.parse(name)


def test_a_rate_that_cannot_be_is_one_line() -> None:
    with pytest.raises(UserError, match=r"at most .*use foreign-40 or less"):
        Setting.parse("foreign-42")
    with pytest.raises(UserError, match="use uniform-0"):
        Setting.parse("same-category-0")


def test_answers_and_right_pairs_lie_apart_from_the_pairs(tmp_path: Path) -> None:
    place = Place(tmp_path, Setting.parse("uniform-40"), 0)
    assert place.pairs == tmp_path / "data" / "uniform-40-seed0" / "pairs.tar"
    assert place.answers == tmp_path / "answers" / "uniform-40-seed0.npz"
    assert not place.right.is_relative_to(tmp_path / "data")
