"""A finished (or unfinished) run, opened to be looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from troth import recipe as recipes
from troth.encoders import ContrastiveModel, Heads, ModelConfig, Plain
from troth.errors import UserError
from troth.recipe import Recipe
from troth.run.build import build_model
from troth.train import Checkpoints, has_average, load_average, load_model, read_position
from troth.train.average import AVERAGE_NAME
from troth.train.checkpoint import find_damage
from troth.train.hardware import resolve_device

RECIPE_NAME = "recipe.toml"


@dataclass(frozen=True)
class OpenedRun:
    """A trained run, ready to be scored.

    Attributes:
        recipe: as it was trained.
        model: with the weights of the checkpoint, in evaluation mode.
        checkpoint: where they came from.
        step: of the checkpoint.
        weights: which of the checkpoint's weights, ``trained`` or ``average``.
    """

    recipe: Recipe
    model: ContrastiveModel
    checkpoint: Path
    step: int
    weights: str = "trained"


def open_run(folder: Path, which: str = "best", settings: Sequence[str] = (), weights: str | None = None) -> OpenedRun:
    """Load a run's recipe and the weights of one of its checkpoints.

    Args:
        folder: the run.
        which: ``best`` (the last one if the run chose none), ``last``, or a step.
        settings: ``field=value`` overrides of the recipe, such as other tasks.
        weights: ``trained`` or ``average``; None: the average if the run keeps one.

    Raises:
        UserError: if there is no such run or checkpoint, or it has no such weights.
    """
    recipe = read_recipe(folder, settings)
    path = find_checkpoint(folder, which)
    name = weights_name(path, weights)
    model = build_model(recipe)
    if name == AVERAGE_NAME:
        load_average(path, model)
    else:
        load_model(path, model)
    model.to(resolve_device(recipe.train.device))
    step = read_position(path).step
    return OpenedRun(recipe, model.eval(), path, step, "average" if name == AVERAGE_NAME else "trained")


def find_checkpoint(folder: Path, which: str = "best") -> Path:
    """Return a whole checkpoint of a run: ``best`` (the last one if the run chose none), ``last``, or a step's.

    Raises:
        UserError: if there is none.
    """
    checkpoints = Checkpoints(folder / "checkpoints")
    check_not_discarded(checkpoints)
    latest = checkpoints.latest()
    if latest is None:
        raise UserError("the run has no checkpoint yet", where=str(folder), remedy="let it train further")
    path = latest
    if which not in ("best", "last"):
        if not which.isdigit() or int(which) not in checkpoints.steps():
            known = ", ".join(map(str, checkpoints.steps()))
            raise UserError(f"no checkpoint {which!r}", where=str(folder), remedy=f"best, last, or one of: {known}")
        path = checkpoints.path(int(which))
    elif which == "best":
        path = checkpoints.best() or latest
    damage = find_damage(path)
    if damage is not None:
        raise UserError(f"the checkpoint is damaged: {damage}", where=str(path), remedy="choose another --checkpoint")
    return path


def check_not_discarded(checkpoints: Checkpoints) -> None:
    """Raise a UserError if the weights of a run were removed after it was scored."""
    if checkpoints.are_discarded:
        run = checkpoints.folder.parent
        raise UserError(
            "the weights were removed when the run had been scored",
            where=str(run),
            remedy=f"train them again: troth train {run / RECIPE_NAME}",
        )


def weights_name(path: Path, weights: str | None) -> str:
    """Return the name, among a checkpoint's files, of its ``trained`` or ``average`` weights (None: as it has them).

    Raises:
        UserError: if it has no such weights.
    """
    if weights not in (None, "trained", "average"):
        raise UserError(f"no weights {weights!r}", where="--weights", remedy="trained or average")
    if weights == "average" and not has_average(path):
        raise UserError("the run kept no average", where=str(path), remedy="use --weights trained")
    return AVERAGE_NAME if weights != "trained" and has_average(path) else "model"


def read_recipe(folder: Path, settings: Sequence[str] = ()) -> Recipe:
    """Read the resolved recipe of a run.

    Raises:
        UserError: if the folder is not a run.
    """
    path = folder / RECIPE_NAME
    if not path.is_file():
        raise UserError("not a run", where=str(folder), remedy=f"a run's folder holds {RECIPE_NAME} and checkpoints")
    return recipes.load(path, settings)


def check_trained_by(folder: Path, recipe: Recipe, *, on_any_data: bool = False) -> None:
    """Make sure that a folder, if it holds a run, holds one of this recipe, so that it may be taken up for it.

    The dimensions of vectors, which training fills in where the recipe leaves them open, do not count. The step that
    it writes into ``start_from`` does: ask with a step.

    Args:
        folder: of the run.
        recipe: what it should have been trained by.
        on_any_data: whether it may name other data, such as the same ones in another place.

    Raises:
        UserError: if it was trained by another recipe.
    """
    if not (folder / RECIPE_NAME).is_file():
        return
    then = read_recipe(folder)
    model = _as_open(then, recipe)
    data = recipe.data if on_any_data else then.data
    if replace(then, model=model, data=data) != recipe:
        raise UserError(
            "the run was trained by another recipe than is asked for now",
            where=str(folder),
            remedy="remove it, or choose another folder",
        )


def _as_open(then: Recipe, recipe: Recipe) -> ModelConfig:
    """Return a run's model without the dimensions of vectors that ``recipe`` leaves open."""
    model, asked = then.model, recipe.model
    if isinstance(model, Heads) and isinstance(asked, Heads):
        image = asked.image_feature_dim and model.image_feature_dim
        return replace(
            model, image_feature_dim=image, text_feature_dim=asked.text_feature_dim and model.text_feature_dim
        )
    if isinstance(model, Plain) and isinstance(asked, Plain):
        return replace(model, image_dim=asked.image_dim and model.image_dim, text_dim=asked.text_dim and model.text_dim)
    return model
