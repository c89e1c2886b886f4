"""Where each kind of tower is looked at.

A transformer is looked at where its last block begins, behind the block's first norm if it begins with one: pooled from
class tokens, a tower gives the *outputs* of its last block at the patches no gradient. A convolutional tower is looked
at where its features last lie on a grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Int64
from torch import Tensor, nn

from troth.errors import UserError
from troth.explain.cut import Site, input_of, output_of, result_of

Grid = tuple[int, int]


@dataclass(frozen=True)
class ImagePlace:
    """A place in an image tower.

    Attributes:
        site: where to cut.
        patch: (height, width) of a token's patch in pixels, or None for feature maps.
        batch_first: whether tokens come as ``(B, L, C)``, not ``(L, B, C)``.
        channels_last: whether a feature map is ``(B, h, w, C)``, not ``(B, C, h, w)``.
        prefix: how many tokens stand before the patches, where ``patch`` is None.
    """

    site: Site
    patch: Grid | None = None
    batch_first: bool = True
    channels_last: bool = False
    prefix: int = 0

    def grid(self, values: Tensor, size: Grid) -> Grid:
        """Return the grid (rows, columns) of the cells in ``values``, of a picture of ``size`` pixels.

        Raises:
            UserError: if the tokens are no grid.
        """
        if values.ndim == 4:
            rows, columns = values.shape[1:3] if self.channels_last else values.shape[2:4]
            return int(rows), int(columns)
        tokens = values.shape[1 if self.batch_first else 0]
        if self.patch is not None:
            rows, columns = size[0] // self.patch[0], size[1] // self.patch[1]
        else:
            rows = columns = math.isqrt(tokens - self.prefix)
        if not (rows * columns == tokens - self.prefix if self.patch is None else 0 < rows * columns <= tokens):
            raise UserError(
                f"the {tokens} tokens of this image tower do not lie on a grid",
                where="model",
                remedy="explain a vision transformer of one grid, or a convolutional tower",
            )
        return rows, columns

    def cells(self, values: Tensor, grid: Grid) -> Float[Tensor, "T C"]:
        """Return the cells of the first picture row by row; class tokens, which stand first, are left out."""
        if values.ndim == 4:
            first = values[0] if self.channels_last else values[0].permute(1, 2, 0)
            return first.flatten(0, 1)
        first = values[0] if self.batch_first else values[:, 0]
        return first[len(first) - grid[0] * grid[1] :]


def image_place(visual: Any) -> ImagePlace:
    """Return the place of an open_clip image tower: a vision transformer, a ResNet, or any timm model.

    Raises:
        UserError: if it is none of these.
    """
    if (trunk := getattr(visual, "trunk", None)) is not None:
        return timm_place(trunk)
    if hasattr(visual, "transformer"):
        place = _first_norm(visual.transformer.resblocks[-1], "ln_1")
        return ImagePlace(place, _pair(visual.patch_size), visual.transformer.batch_first)
    if hasattr(visual, "layer4"):
        return ImagePlace(output_of(visual.layer4))
    raise UserError(
        f"an image tower of kind {type(visual).__name__} has no known place to look at",
        where="model",
        remedy="explain a vision transformer, a ResNet or a timm tower",
    )


def timm_place(trunk: Any) -> ImagePlace:
    """Return the place of a timm model: the last block of a plain transformer, what pooling gets in all others."""
    embedding: Any = getattr(trunk, "patch_embed", None)
    if hasattr(trunk, "num_prefix_tokens") and hasattr(trunk, "blocks") and hasattr(embedding, "patch_size"):
        # A hybrid's patches are of a feature map: patch_size counts its cells, feat_ratio pixels.
        side = embedding.feat_ratio(as_scalar=False) if hasattr(embedding, "feat_ratio") else embedding.patch_size
        last = trunk.blocks[-1]
        return ImagePlace(input_of(last) if _norms_last(last) else _first_norm(last, "norm1"), _pair(side))
    return ImagePlace(
        result_of(trunk, "forward_features"),
        channels_last=str(getattr(trunk, "output_fmt", "NCHW")).endswith("NHWC"),
        prefix=int(getattr(trunk, "num_prefix_tokens", 0)),
    )


def _norms_last(block: nn.Module) -> bool:
    """Whether a block's ``norm1`` stands behind its attention, where a patch no longer reaches the class token."""
    from timm.models.eva import EvaBlockPostNorm
    from timm.models.vision_transformer import ResPostBlock

    return isinstance(block, EvaBlockPostNorm | ResPostBlock)


def frozen_image_place(module: nn.Module) -> ImagePlace:
    """Return the place of a frozen image encoder: EfficientNet-Lite's last convolution, or a timm model's."""
    network = getattr(module, "network", None)
    if isinstance(network, nn.Module) and hasattr(network, "extract_features"):
        return ImagePlace(result_of(network, "extract_features"))
    return timm_place(module)


@dataclass(frozen=True)
class TextPlace:
    """A place in a text tower.

    Attributes:
        site: where to cut.
        batch_first: whether tokens come as ``(B, S, C)``.
        places: from ``(B, L)`` ids to ``(B, S)`` columns of the ids, -1 for added class tokens; None: column by column,
            whatever is added standing last.
    """

    site: Site
    batch_first: bool = True
    places: Callable[[Tensor], Int64[Tensor, "B S"]] | None = None

    def pieces(self, values: Tensor, ids: Int64[Tensor, "1 L"], columns: list[int]) -> Float[Tensor, "T C"]:
        """Return what stands at the given columns of the first caption."""
        first = values[0] if self.batch_first else values[:, 0]
        if self.places is None:
            return first[columns]
        sequence = self.places(ids)[0].tolist()
        return first[[sequence.index(column) for column in columns]]


def text_place(clip: Any) -> TextPlace:
    """Return the place of an open_clip model's text tower, its own or a Hugging Face one."""
    tower = getattr(clip, "text", clip)
    places = getattr(tower, "places", None)
    if hasattr(tower.transformer, "resblocks"):
        site = _first_norm(tower.transformer.resblocks[-1], "ln_1")
        return TextPlace(site, tower.transformer.batch_first, places)
    return TextPlace(input_of(last_layer(tower.transformer)), places=places)


def last_layer(module: nn.Module) -> nn.Module:
    """Return the last layer of a transformers model: the end of its longest list of modules, the outermost if several.

    Raises:
        UserError: if it has no layers.
    """
    lists = [part for part in module.modules() if isinstance(part, nn.ModuleList) and len(part)]
    if not lists:
        raise UserError(
            f"a text tower of kind {type(module).__name__} has no list of layers",
            where="model",
            remedy="explain a transformer",
        )
    return max(lists, key=len)[-1]


def _first_norm(block: nn.Module, name: str) -> Site:
    norm = getattr(block, name, None)
    return output_of(norm) if isinstance(norm, nn.Module) else input_of(block)


def _pair(size: Any) -> Grid:
    return (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))
