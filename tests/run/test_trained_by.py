"""Whether a folder holds a run of a recipe."""

from dataclasses import replace
from pathlib import Path

import pytest

from troth.errors import UserError
from troth.recipe import Recipe, load, to_toml
from troth.run.opened import check_trained_by

VECTORS = "data.source={kind='spiked', num_samples=80}"


def keep(recipe: Recipe, folder: Path) -> None:
    """Write what is left of a run that was trained by a recipe."""
    (folder / "recipe.toml").write_text(to_toml(recipe))


def test_a_folder_without_a_run_may_be_begun_in(tmp_path: Path) -> None:
    check_trained_by(tmp_path, load("heads-infonce"))


@pytest.mark.parametrize(
    ("model", "filled"),
    [
        ("model={kind='heads', embed_dim=8}", {"image_feature_dim": 12, "text_feature_dim": 10}),
        ("model={kind='plain', embed_dim=8}", {"image_dim": 12, "text_dim": 10}),
    ],
)
def test_dimensions_that_training_filled_in_are_no_difference(
    tmp_path: Path, model: str, filled: dict[str, int]
) -> None:
    recipe = load("heads-infonce", [VECTORS, model])
    keep(replace(recipe, model=replace(recipe.model, **filled)), tmp_path)
    check_trained_by(tmp_path, recipe)
    asked = replace(recipe, model=replace(recipe.model, **dict.fromkeys(filled, 99)))
    with pytest.raises(UserError, match="another recipe"):
        check_trained_by(tmp_path, asked)
    other = replace(recipe, model=replace(recipe.model, embed_dim=16))
    with pytest.raises(UserError, match=r"another recipe than is asked for now \(remove it, or choose another folder"):
        check_trained_by(tmp_path, other)


def test_a_model_of_another_kind_is_a_difference(tmp_path: Path) -> None:
    keep(load("heads-infonce", [VECTORS, "model={kind='heads', embed_dim=8}"]), tmp_path)
    with pytest.raises(UserError, match="another recipe"):
        check_trained_by(tmp_path, load("heads-infonce", [VECTORS, "model={kind='plain', embed_dim=8}"]))


def test_other_data_are_a_difference_unless_any_will_do(tmp_path: Path) -> None:
    keep(load("heads-infonce", [VECTORS]), tmp_path)
    moved = load("heads-infonce", ["data.source={kind='spiked', num_samples=90}"])
    check_trained_by(tmp_path, moved, on_any_data=True)
    with pytest.raises(UserError, match="another recipe"):
        check_trained_by(tmp_path, moved)
    with pytest.raises(UserError, match="another recipe"):
        check_trained_by(tmp_path, replace(moved, seed=1), on_any_data=True)
