"""What a recipe on vectors needs: dimensions from the data, and nothing that asks for pictures or words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

from troth.data import Source, carries_vectors
from troth.encoders import DualEncoder, FeatureEncoder, Heads, Plain
from troth.errors import UserError
from troth.evaluate.task_data import opened
from troth.evaluate.tasks import TaskConfig
from troth.recipe import Recipe
from troth.train import FileTeacher, ImageTeacher, InputTeacher, MomentumTeacher


def fitted(recipe: Recipe, source: Source) -> Recipe:
    """Return the recipe with the dimensions of its vectors filled in; one on pictures as it is.

    Args:
        recipe: as validated.
        source: its training pairs.

    Raises:
        UserError: if the model does not take what the source carries, or a teacher wants pictures or words
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
        return recipe
    if not isinstance(model, Plain | Heads):
        raise UserError(
            f"{source.name} carries vectors, and a model of kind {model.kind!r} takes pictures",
            where="model.kind",
            remedy='use "plain" or "heads"',
        )
    _check_vector_teachers(recipe, source)
    image_dim, text_dim = _dimensions(source)
    names = ("image_dim", "text_dim") if isinstance(model, Plain) else ("image_feature_dim", "text_feature_dim")
    for field, found in zip(names, (image_dim, text_dim), strict=True):
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


def check_task_sources(task: TaskConfig, encoder: DualEncoder, source: Source) -> None:
    """Open every source of a task. Raise a UserError for what the model cannot take; its place is the task's field.

    Args:
        task: one of the recipe's.
        encoder: the model's.
        source: the training pairs. Heads that learn from vectors have no frozen encoders to see pictures with.
    """
    if carries_vectors(source) and hasattr(task, "templates"):
        raise UserError(
            f"a {task.kind} task asks in words, and the model takes vectors",
            where="kind",
            remedy='use "matching", "class-matching" or "retrieval" on a source of vectors',
        )
    for field in [item.name for item in fields(task) if item.name == "source" or item.name.endswith("_source")]:
        found = opened(getattr(task, field), field)
        if not carries_vectors(found):
            if carries_vectors(source):
                raise UserError(
                    f"the model takes vectors, and {found.name} carries pictures",
                    where=field,
                    remedy='use a source of kind "vectors"',
                )
            continue
        if not isinstance(encoder, FeatureEncoder):
            raise UserError(
                f"the model takes pictures, and {found.name} carries vectors",
                where=field,
                remedy="use a source of pictures",
            )
        taken = encoder.image_feature_dim, encoder.text_feature_dim
        for side, has, wanted in zip(("image", "text"), _dimensions(found), taken, strict=True):
            if has != wanted:
                raise UserError(
                    f"the {side} vectors of {found.name} have {has} dimensions, the model takes {wanted}",
                    where=field,
                    remedy="use vectors of the encoders that the training pairs' are of",
                )
