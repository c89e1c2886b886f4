"""What no single section of a recipe can know to be wrong: sections that do not fit each other or the model."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterator
from dataclasses import fields

from troth.data import Augmentation
from troth.embed.pictures import picture_transform
from troth.encoders import ContrastiveModel, DualEncoder, Heads, OpenClipEncoder, Plain
from troth.errors import UserError
from troth.geometry import FILIP, Geometry, Oblique
from troth.objectives import asks_for_weights
from troth.recipe import Recipe
from troth.train import MomentumTeacher

_SECTIONS = {item.name for item in fields(Recipe)}


@contextlib.contextmanager
def at(place: str) -> Iterator[None]:
    """Complete the place of a UserError: a source knows its field, only the recipe knows whose field that is."""
    try:
        yield
    except UserError as error:
        inner = error.where or ""
        parent, _, last = place.rpartition(".")
        if inner.startswith(f"{last}.") and parent:
            inner = inner.removeprefix(f"{last}.")
        if inner == place or inner.partition(".")[0] in _SECTIONS:
            raise
        where = f"{place}.{inner}" if inner.replace("_", "").replace(".", "").isalnum() else f"{place}: {inner}"
        raise UserError(error.message, where=where if inner else place, remedy=error.remedy) from None


def check_tokens(geometry: Geometry, encoder: DualEncoder) -> None:
    """Raise a UserError unless each of several class tokens is one sphere of an oblique manifold, or FILIP's token."""
    tokens, dims = encoder.num_tokens, encoder.embed_dim // encoder.num_tokens
    if isinstance(geometry, Oblique) and tokens > 1 and (geometry.num_spheres, geometry.sub_dim) != (tokens, dims):
        raise UserError(
            f"the towers give {tokens} class tokens of {dims} dimensions, and the spheres are {geometry.num_spheres} of"
            f" {geometry.sub_dim}: a sphere is a token",
            where="num_spheres",
            remedy=f"set geometry.num_spheres = {tokens} and geometry.sub_dim = {dims}",
        )
    if isinstance(geometry, FILIP) and tokens > 1 and geometry.sub_dim != dims:
        raise UserError(
            f"the towers give {tokens} class tokens of {dims} dimensions, and FILIP's tokens have {geometry.sub_dim}",
            where="sub_dim",
            remedy=f"set geometry.sub_dim = {dims}",
        )


def check(recipe: Recipe, model: ContrastiveModel) -> None:
    """Raise a UserError where the recipe's sections do not fit each other, or its model."""
    _check_augmentation(recipe, model)
    _check_teacher(recipe, model)
    _check_judge(recipe)
    _check_episodes(recipe)
    _check_unpaired(recipe)


def _check_augmentation(recipe: Recipe, model: ContrastiveModel) -> None:
    """Raise a UserError unless the pictures can be changed as the recipe says."""
    if isinstance(model.encoder, OpenClipEncoder):
        picture_transform(model.encoder, train=True, augmentation=recipe.data.augmentation)
    elif recipe.data.augmentation != Augmentation():
        raise UserError(
            "the model takes features that were computed before: there are no pictures to augment",
            where="data.augmentation",
            remedy='set it to "none", or train towers',
        )


def _check_teacher(recipe: Recipe, model: ContrastiveModel) -> None:
    """Raise a UserError unless there is a teacher exactly where an objective needs one, and one for this model."""
    if recipe.teacher is not None:
        if not recipe.objective.needs_teacher:
            raise UserError(
                "no part of the objective copies a teacher", where="teacher", remedy='leave it out, or set it to "none"'
            )
        recipe.teacher.check(model.encoder)
        if isinstance(recipe.teacher, MomentumTeacher) and recipe.train.average is None:
            raise UserError(
                "there is no average of the weights to teach",
                where="teacher.kind",
                remedy="set train.average = { decay = 0.999 }",
            )
    elif recipe.objective.needs_teacher:
        kind = "input" if isinstance(recipe.model, Heads | Plain) else "online"
        raise UserError(
            "the objective copies a teacher, and the recipe names none",
            where="teacher",
            remedy=f'such as teacher = {{ kind = "{kind}" }}',
        )


def _check_judge(recipe: Recipe) -> None:
    """Raise a UserError unless there is a judge exactly where something goes by one."""
    spectral = isinstance(recipe.model, Heads) and recipe.model.skip == "spectral"
    if recipe.judge is None:
        if recipe.objective.needs_judge or spectral:
            raise UserError(
                "the objective learns from a judge's points, and the recipe has no judge"
                if recipe.objective.needs_judge
                else "model.skip puts a judge's map beside the heads, and the recipe has no judge",
                where="judge",
                remedy="add a [judge] section; it may be empty",
            )
        return
    draws = recipe.judge.draw_wrong < 1
    if draws and recipe.episodes is not None:
        raise UserError(
            "episodes have an order of their own, and the judge's draw is another",
            where="judge.draw_wrong",
            remedy='use 1, or set episodes to "none"',
        )
    if 0 < recipe.judge.draw_wrong < 1 and not asks_for_weights(recipe.objective):
        raise UserError(
            f"a draw by {recipe.judge.draw_wrong:g} leaves a rest of the judge's weights, and no objective takes it",
            where="judge.draw_wrong",
            remedy='use 0 or 1, or weigh the pairs with objective.by.kind = "given"',
        )
    if not (recipe.objective.needs_judge or spectral or draws or asks_for_weights(recipe.objective)):
        raise UserError(
            "nothing in the recipe goes by a judge",
            where="judge",
            remedy='weigh the pairs with objective.by.kind = "given", draw them so with draw_wrong = 0, add a'
            ' "distillation" term, or set it to "none"',
        )
    if recipe.unpaired is not None:
        raise UserError(
            "a judge knows pairs only, and the run learns from unpaired data too",
            where="judge",
            remedy='set one of the two sections to "none"',
        )


def _check_episodes(recipe: Recipe) -> None:
    """Raise a UserError where the objective learns from clusters that no episode makes.

    Episodes without such an objective are an order of the samples, and welcome.
    """
    if recipe.episodes is None and recipe.objective.needs_prototypes:
        raise UserError(
            "the objective learns from the clusters of episodes, and the recipe has none",
            where="episodes",
            remedy="add an [episodes] section with a size",
        )
    external = None if recipe.episodes is None else recipe.episodes.external
    if recipe.objective.needs_external and external is None:
        raise UserError(
            "the objective learns from an external teacher's clusters, and the episodes have none",
            where="episodes.external",
            remedy='name one, such as external = { kind = "text" }',
        )
    if external is not None and not recipe.objective.needs_external:
        raise UserError(
            "no part of the objective learns from an external teacher",
            where="episodes.external",
            remedy='add a term { kind = "external_prototypes" }, or set it to "none"',
        )


def _check_unpaired(recipe: Recipe) -> None:
    """Refuse a metric that no task has, two orders of training at once, and locks between stages of two lengths."""
    if recipe.unpaired is not None and recipe.episodes is not None:
        raise UserError(
            "episodes and unpaired data are two ways to order a run's training",
            where="unpaired",
            remedy='set one of the two sections to "none"',
        )
    if recipe.unpaired is not None and recipe.train.max_steps is not None:
        raise UserError(
            "a run with unpaired data has two stages, each as long as its epochs",
            where="train.max_steps",
            remedy='set it to "none"',
        )
    for side, training in recipe.towers.sides():
        if recipe.unpaired is not None and training.lock_after_epochs is not None:
            raise UserError(
                "epochs are of two lengths in a run with unpaired data: no tower can be locked after some of them",
                where=f"towers.{side}.lock_after_epochs",
                remedy=f"leave it out, or lock the tower from the start: towers.{side}.locked = true",
            )
    name = None if recipe.unpaired is None else recipe.unpaired.refresh_metric
    known = [f"{task.name}/{metric}" for task in recipe.evaluation.tasks for metric in task.metric_names()]
    if name is not None and name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        raise UserError(
            f"the tasks have no metric {name!r}",
            where="unpaired.refresh_metric",
            remedy=f"did you mean {close[0]!r}?" if close else f"one of: {', '.join(known) or 'there are no tasks'}",
        )


def check_weights(recipe: Recipe) -> None:
    """Refuse weights that the pairs would have to carry where nobody gives them any."""
    if recipe.judge is None and asks_for_weights(recipe.objective):
        raise UserError(
            "the data carry no weights",
            where="objective.by.file",
            remedy='a table of weights by sample id, such as an audit\'s (file = "audit.parquet"), or add a [judge]',
        )
