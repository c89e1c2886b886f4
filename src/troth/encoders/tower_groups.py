"""Which parameters are the image tower's and the text tower's, in groups from the input to the output."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from troth.encoders.base import DualEncoder
from troth.encoders.heads import HeadsEncoder, ResidualHead, SpectralHead
from troth.encoders.tower_training import TowerSide
from troth.encoders.towers import OpenClipEncoder
from troth.errors import UserError

#: Where the parts of a text tower are in open_clip's plain CLIP, which has no module for it.
_TEXT_PARTS = ("token_embedding", "positional_embedding", "cls_emb", "transformer", "ln_final", "text_projection")
#: ``transformer.resblocks.3.``, ``encoder.layer.3.``, ``layer3.``: the number of a block.
_BLOCK = re.compile(r"\.(?:resblocks|blocks?|layers?|h)\.?(\d+)\.")
#: What comes behind the last block: it counts with that block, as in open_clip's ``lock``.
_LAST_NORM = re.compile(r"\.(?:ln_post|ln_final|final_layer_norm|final_norm)\.")
_PROJECTION = re.compile(r"\.(?:proj|text_projection|head|attnpool|attn_pool\w*|pooler)(?:\.|$)")

_Place = tuple[int, int]


def tower_groups(encoder: DualEncoder, side: TowerSide) -> list[list[str]]:
    """Return the names (of ``encoder.named_parameters()``) of one tower's parameters, in groups from input to output.

    Transformers have their embeddings, each block (the last with the norm behind it), and the projection, as in
    open_clip's ``lock``; its ResNets have the stem, four stages, and the attention pool. timm's trunks have the groups
    of their own ``group_matcher``, then open_clip's projection. Residual heads have the first linear map, each block,
    the last linear map; other encoders one group for each module of what is called ``image...`` or ``text...``.

    Raises:
        UserError: if the encoder has no such tower.
    """
    names = _names(encoder, side)
    if not names:
        raise UserError(f"this encoder has no {side} tower of its own", remedy="leave its settings out")
    place = _place_of(encoder, side, names)
    groups: dict[_Place, list[str]] = {}
    for name in names:
        groups.setdefault(place(name), []).append(name)
    return [groups[key] for key in sorted(groups)]


def _names(encoder: DualEncoder, side: TowerSide) -> list[str]:
    names = [name for name, _ in encoder.named_parameters()]
    if not isinstance(encoder, OpenClipEncoder):
        return [name for name in names if name.startswith(side)]
    if side == "image":
        parts: tuple[str, ...] = ("visual",)
    else:
        parts = ("text",) if hasattr(encoder.clip, "text") else _TEXT_PARTS
    return [name for name in names if name.split(".")[1] in parts]


def _place_of(encoder: DualEncoder, side: TowerSide, names: Sequence[str]) -> Callable[[str], _Place]:
    if isinstance(encoder, HeadsEncoder):
        return lambda name: _place_in_head(getattr(encoder, f"{side}_head"), name)
    if side == "image" and isinstance(encoder, OpenClipEncoder) and hasattr(encoder.clip.visual, "trunk"):
        return _place_in_timm(encoder)
    blocks = [int(found[1]) for name in names if (found := _BLOCK.search(name))]
    if blocks:
        return lambda name: _place_in_transformer(name, max(blocks))
    children = _distinct(_child(name) for name in names)
    return lambda name: (children.index(_child(name)), 0)


def _place_in_head(head: ResidualHead | SpectralHead, name: str) -> _Place:
    if isinstance(head, SpectralHead):  # nothing beside the head it wraps is trained
        return _place_in_head(head.head, name.replace("_head.head.", "_head.", 1))
    # Layer norm and linear map, the blocks, layer norm, linear map.
    part, last = name.split(".")[1], len(head) - 1
    number, depth = int(part) if part.isdigit() else 0, last - 3  # a class embedding goes with the first map
    return (depth + 1 if number == last else min(max(number - 1, 0), depth), 0)


def _place_in_timm(encoder: OpenClipEncoder) -> Callable[[str], _Place]:
    from timm.models import group_parameters

    trunk, prefix = encoder.clip.visual.trunk, "clip.visual.trunk."
    if not hasattr(trunk, "group_matcher"):
        children = _distinct(_child(name) for name, _ in trunk.named_parameters())
        group_of = {name: children.index(_child(name)) for name, _ in trunk.named_parameters()}
    else:
        group_of = group_parameters(trunk, trunk.group_matcher(coarse=False), reverse=True)
    return lambda name: (0, group_of[name.removeprefix(prefix)]) if name.startswith(prefix) else (1, 0)


def _place_in_transformer(name: str, last_block: int) -> _Place:
    if found := _BLOCK.search(name):
        return 1, int(found[1])
    if _PROJECTION.search(name):
        return 2, 0
    return (1, last_block) if _LAST_NORM.search(name) else (0, 0)


def _child(name: str) -> str:
    module = name.rpartition(".")[0]
    return ".".join(module.split(".")[:2])


def _distinct(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
