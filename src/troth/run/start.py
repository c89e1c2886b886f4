"""Beginning with the weights of another run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from troth.encoders import ContrastiveModel, OpenClip, OpenClipEncoder
from troth.encoders.lora import ADAPTED, ADAPTER
from troth.encoders.multi_token.single import SingleToken
from troth.errors import UserError
from troth.recipe import Recipe
from troth.run.opened import find_checkpoint, read_recipe, weights_name
from troth.train import read_position

#: Projections of runs that learn prototypes: they come along where both runs have them.
_HEADS = "prototype_heads."
_WHERE = "start_from"


class Beginning(NamedTuple):
    """Weights to begin with.

    Attributes:
        folder: the run they come from.
        step: of its checkpoint.
        file: where they are.
        prefix: of their names in the file.
    """

    folder: Path
    step: int
    file: Path
    prefix: str


def start(recipe: Recipe, model: ContrastiveModel) -> Recipe:
    """Put the weights that ``recipe`` starts from, if any, into its freshly built ``model``.

    The learned scale and bias come along, unless the recipe gives their first values itself. New adapters keep theirs.
    The weights of towers with one class token begin as token 0 of towers with several, which draw the rest.

    Returns:
        The recipe, with the step of the weights written down: another best one later must not change what it says.

    Raises:
        UserError: if there is no such run or checkpoint, or its weights do not fit.
    """
    if recipe.start_from is None:
        return recipe
    found = _find(recipe.start_from)
    _put(found, recipe, model)
    return replace(recipe, start_from=f"{found.folder}@{found.step}")


def _find(text: str) -> Beginning:
    name, _, which = text.rpartition("@")
    if not name or not (which.isdigit() or which in ("best", "last")):
        name, which = text, "best"
    folder = Path(name).expanduser().resolve()
    try:
        if not (folder / "checkpoints").is_dir():
            raise UserError(
                "not a run", where=str(folder), remedy="name a run's folder; model.pretrained takes open_clip's weights"
            )
        path = find_checkpoint(folder, which)
        file = weights_name(path, None)
    except UserError as error:
        raise UserError(error.message, where=f"{_WHERE}: {error.where}", remedy=error.remedy) from None
    prefix = "" if file == "model" else "module."
    return Beginning(folder, read_position(path).step, path / f"{file}.safetensors", prefix)


@torch.no_grad()
def _put(found: Beginning, recipe: Recipe, model: ContrastiveModel) -> None:
    own, single = model.state_dict(), SingleToken(model.encoder)
    with safe_open(found.file, framework="pt") as file:
        shapes = {
            name.removeprefix(found.prefix): tuple(file.get_slice(name).get_shape())
            for name in file.keys()  # noqa: SIM118
            if name != "n_averaged"
        }
        wanted = _wanted(own, set(shapes), recipe, single)
        _check(wanted, own, shapes, found, single)
        _check_attention(recipe, model, found.folder)
        for name, source in wanted.items():
            if source in shapes:
                single.put(name, own[name], file.get_tensor(found.prefix + source))
    model.clamp_scale()


def _wanted(own: dict[str, Tensor], theirs: set[str], recipe: Recipe, single: SingleToken) -> dict[str, str]:
    """Return the names of what is taken, and what each is called where it comes from."""
    adapted = any(ADAPTER in name for name in theirs)
    kept = {name for name in own if ADAPTER in name and not adapted}
    if recipe.scale.init is not None:
        kept.add("log_scale")
    if recipe.scale.bias_init is not None or "bias" not in theirs:  # the run had another objective
        kept.add("bias")
    if not any(name.startswith(_HEADS) for name in theirs):  # nor did it learn prototypes
        kept.update(name for name in own if name.startswith(_HEADS))
    sources = single.names(own, theirs)
    # What belongs to added class tokens alone is drawn where the run had one.
    kept.update(name for name, values in own.items() if sources[name] not in theirs and single.is_added(name, values))
    if not adapted:
        sources = {name: source.replace(ADAPTED, "") for name, source in sources.items()}
    return {name: source for name, source in sources.items() if name not in kept}


def _check_attention(recipe: Recipe, model: ContrastiveModel, folder: Path) -> None:
    """Raise a UserError if a text tower would attend otherwise than it did, and nobody said that it is to."""
    from troth.encoders.multi_token.text import MultiTokenText  # open_clip takes seconds to import

    multi, encoder = getattr(recipe.model, "multi", None), model.encoder
    if multi is None or multi.text_attention != "auto" or not isinstance(encoder, OpenClipEncoder):
        return
    if not isinstance(encoder.clip.text, MultiTokenText):  # Hugging Face's have one way
        return
    ours, theirs = encoder.clip.text.attention, _attention(folder)
    if ours != theirs:
        keeping = "causal" if theirs is None else theirs
        raise UserError(
            "nothing says how the text tower of the weights attends"
            if theirs is None
            else f"the weights are of a {theirs} text tower, and this one would be {ours}",
            where="model.multi.text_attention",
            remedy=f'say "{keeping}", so that token 0 keeps its function, or "{_OTHER[keeping]}", to learn anew',
        )


_OTHER = {"causal": "bidirectional", "bidirectional": "causal"}


def _attention(folder: Path) -> Literal["causal", "bidirectional"] | None:
    """Return how the text tower of a run attends, if it is open_clip's; None if the run cannot say."""
    try:
        config = read_recipe(folder).model
    except UserError:
        return None
    multi = getattr(config, "multi", None)
    if multi is None:  # whatever it sees, it ends in its end-of-text token, as causal class tokens do
        return "causal"
    if multi.text_attention != "auto":
        return "causal" if multi.text_attention == "causal" else "bidirectional"
    trained = isinstance(config, OpenClip) and (config.pretrained is not None or ":" in config.name)
    return "causal" if trained else "bidirectional"


def _check(
    wanted: dict[str, str],
    own: dict[str, Tensor],
    shapes: dict[str, tuple[int, ...]],
    found: Beginning,
    single: SingleToken,
) -> None:
    """Raise a UserError that names the first parameter that does not fit."""
    if any(ADAPTER in name for name in shapes) and not any(ADAPTER in name for name in own):
        raise UserError(
            f"{found.folder} has adapters, which this model has no places for",
            where=_WHERE,
            remedy='export it, and set model = { kind = "open_clip", name = "local-dir:..." }',
        )
    mismatch = _mismatch(wanted, own, shapes, found, single)
    if mismatch is not None:
        raise UserError(
            f"the weights do not fit: {mismatch}", where=_WHERE, remedy="use the model section of that run's recipe"
        )


def _mismatch(
    wanted: dict[str, str],
    own: dict[str, Tensor],
    shapes: dict[str, tuple[int, ...]],
    found: Beginning,
    single: SingleToken,
) -> str | None:
    saved = {own[name].data_ptr() for name, source in wanted.items() if source in shapes}
    for name, source in wanted.items():
        if source not in shapes:
            if own[name].data_ptr() not in saved:  # tied weights are saved once
                return f"{found.folder} has no {source}"
        elif shapes[source] not in single.shapes(name, own[name]):
            return f"{source} is {list(shapes[source])} in {found.folder} and {list(own[name].shape)} here"
    unused = {name for name in shapes if name.startswith(_HEADS)} | {"bias", "log_scale"}
    more = sorted(shapes.keys() - set(wanted.values()) - unused)
    return f"{found.folder} has {more[0]}, which is nothing here" if more else None
