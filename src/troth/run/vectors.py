"""What a recipe on vectors needs: dimensions from the data, and nothing that asks for pictures or words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from troth.data import Source, SpikedSource, VectorsSource, carries_vectors
from troth.encoders import Heads, Plain
from troth.errors import UserError
from troth.recipe import Recipe
from troth.train import FileTeacher, ImageTeacher, InputTeacher, MomentumTeacher


def fitted(recipe: Recipe, source: Source) -> Recipe:
    """Return the recipe with the dimensions of its vectors filled in; one on pictures as it is.

    Args:
        recipe: as validated.
        source: its training pairs.

    Raises:
        UserError: if the model does not take what the source carries, or a teacher or task wants pictures or words
            where there are vectors.
    """
    model = recipe.model
    if not carries_vectors(source):
        if isinstance(model, Plain):
            raise UserError(
                f"a plain encoder takes vectors, and {source.name} carries pictures",
                where="model.kind",
                remedy='use a source of kind "vectors", or a model of kind "heads"',
            )
        _check_picture_tasks(recipe)
        return recipe
    if not isinstance(model, Plain | Heads):
        raise UserError(
            f"{source.name} carries vectors, and a model of kind {model.kind!r} takes pictures",
            where="model.kind",
            remedy='use "plain" or "heads"',
        )
    _check_vector_teachers(recipe, source)
    _check_vector_tasks(recipe)
    image_dim, text_dim = _dimensions(source)
    fields = ("image_dim", "text_dim") if isinstance(model, Plain) else ("image_feature_dim", "text_feature_dim")
    for field, found in zip(fields, (image_dim, text_dim), strict=True):
        said = getattr(model, field)
        if said not in (None, found):
            raise UserError(
                f"the vectors of {source.name} have {found} dimensions, not {said}",
                where=f"model.{field}",
                remedy='leave it out, or set it to "none"',
            )
    if isinstance(model, Plain):
        return replace(recipe, model=replace(model, image_dim=image_dim, text_dim=text_dim))
    return replace(recipe, model=replace(model, image_feature_dim=image_dim, text_feature_dim=text_dim))


def check_alike(found: Source, source: Source, sides: Sequence[str] = ("image", "text")) -> None:
    """Raise a UserError unless a source beside the training pairs carries what they do, as one model takes both.

    Args:
        found: the other source.
        source: the training pairs.
        sides: whose dimensions count, if both carry vectors: what is taken of ``found``.
    """
    theirs, ours = ("vectors" if carries_vectors(each) else "pictures" for each in (found, source))
    if theirs != ours:
        raise UserError(
            f"{found.name} carries {theirs}, and the training pairs of {source.name} {ours}",
            remedy=f"use a source of {ours}",
        )
    if ours == "pictures":
        return
    for side, has, wanted in zip(("image", "text"), _dimensions(found), _dimensions(source), strict=True):
        if side in sides and has != wanted:
            raise UserError(
                f"the {side} vectors of {found.name} have {has} dimensions, those of {source.name} {wanted}",
                remedy="use vectors of the same encoders",
            )


def _dimensions(source: Source) -> tuple[int, int]:
    image, text = (getattr(source, f"{side}_vectors") for side in ("image", "text"))
    return int(image.shape[1]), int(text.shape[1])


def _check_vector_teachers(recipe: Recipe, source: Source) -> None:
    if recipe.teacher is not None and not isinstance(recipe.teacher, InputTeacher | MomentumTeacher):
        raise UserError(
            "there is no picture that a teacher could see", where="teacher.kind", remedy='use "input" or "momentum"'
        )
    external = None if recipe.episodes is None else recipe.episodes.external
    if external is not None and not isinstance(external, FileTeacher):
        wants = "sees pictures" if isinstance(external, ImageTeacher) else "reads captions"
        raise UserError(
            f"a teacher of kind {external.kind!r} {wants}, and {source.name} carries vectors",
            where="episodes.external",
            remedy='use features of your own, external = { kind = "file", path = "features.npz" }',
        )


def _check_vector_tasks(recipe: Recipe) -> None:
    for number, task in enumerate(recipe.evaluation.tasks):
        where = f"evaluation.tasks.{number}"
        if hasattr(task, "templates"):
            raise UserError(
                f"a {task.kind} task asks in words, and the model takes vectors",
                where=f"{where}.kind",
                remedy='use "matching", "class-matching" or "retrieval" on a source of vectors',
            )
        # A file that is not there is found with the others' by the task's own check.
        if not isinstance(task.source, VectorsSource) and not carries_vectors(task.source.open()):
            raise UserError(
                "the model takes vectors, and this source carries pictures",
                where=f"{where}.source",
                remedy='use a source of kind "vectors"',
            )


def _check_picture_tasks(recipe: Recipe) -> None:
    for number, task in enumerate(recipe.evaluation.tasks):
        if isinstance(task.source, VectorsSource | SpikedSource) and not isinstance(recipe.model, Heads):
            raise UserError(
                f"a model of kind {recipe.model.kind!r} takes pictures, and this source carries vectors",
                where=f"evaluation.tasks.{number}.source",
                remedy="use a source of pictures",
            )
