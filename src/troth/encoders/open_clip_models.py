"""Towers built through open_clip's model interface: by name, or small enough for a CPU.

Each class is its own configuration, a member of the union that ``kind`` tells apart in a recipe's ``[model]``.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from troth.encoders.multi_token import Multi, give_tokens
from troth.encoders.names import closest, existing_file
from troth.encoders.patches import PatchEmbedding
from troth.encoders.towers import (
    VOCABULARY,
    OpenClipEncoder,
    assemble,
    first_line,
    quiet_open_clip,
    seeded,
    simple_tokenizer,
)
from troth.errors import UserError
from troth.types import STRICT

Count = Annotated[int, Field(gt=0)]


@dataclass(frozen=True, config=STRICT)
class OpenClip:
    """Any model that open_clip knows: ``ViT-B-32``, ``hf-hub:org/model``, ``local-dir:folder`` of an export.

    Attributes:
        name: open_clip's name of the architecture, or a ``local-dir:`` / ``hf-hub:`` place with its weights.
        pretrained: None for random weights, a tag of published weights, or a file of weights.
        image_size: side of the pictures in pixels; None for the architecture's own.
        context_length: tokens of a caption; None for the architecture's own.
        multi: several class tokens in each tower; None for the architecture's one.

    ``build`` raises :class:`~troth.errors.UserError` for a name, tag or file that does not exist or does not fit.
    """

    kind: Literal["open_clip"] = "open_clip"
    name: str = "ViT-B-32"
    pretrained: str | None = None
    image_size: Count | None = None
    context_length: Count | None = None
    multi: Multi | None = None

    #: Whether a ``local-dir:`` or ``hf-hub:`` place has to have weights, which are then loaded.
    with_weights: ClassVar[bool] = True

    def build(self, seed: int = 0) -> OpenClipEncoder:
        """Build the towers, random weights drawn from ``seed``; the global random state is left as it was."""
        import open_clip

        model_cfg = self._model_cfg()
        pretrained = self._weights(model_cfg)
        has_schema = self.with_weights and self.name.startswith(("local-dir:", "hf-hub:"))
        with seeded(seed), quiet_open_clip():
            try:
                clip = open_clip.create_model(
                    self.name,
                    pretrained,
                    load_weights=self.with_weights,
                    # open_clip would fetch a Hugging Face text tower's own weights unasked
                    pretrained_text=False,
                    require_pretrained=pretrained is not None or has_schema,
                    force_image_size=self.image_size,
                    force_context_length=self.context_length,
                    force_custom_text=self.multi is not None,
                )
            except Exception as error:  # whatever the readers of configurations, weights or the hub raise
                what = f"pretrained {self.pretrained!r}" if self.pretrained else "model"
                raise UserError(
                    f"{what} of {self.name} cannot be loaded: {first_line(error)}",
                    where="model.pretrained" if self.pretrained else "model.name",
                    remedy="the weights must be this architecture's, and published ones need the network once",
                ) from error
            trained = pretrained is not None or has_schema
            multi = give_tokens(clip, self.multi, model_cfg, "everything" if trained else "nothing")

        def make_tokenizer() -> Any:
            return open_clip.get_tokenizer(self.name, context_length=self.context_length)

        return OpenClipEncoder(clip, model_cfg, make_tokenizer, pretrained=trained, multi=multi)

    def _model_cfg(self) -> dict[str, Any]:
        import open_clip

        name = self.name.replace("/", "-") if ":" not in self.name else self.name
        try:
            model_cfg: dict[str, Any] | None = open_clip.get_model_config(name)
        except Exception as error:  # a folder without a configuration, a hub name without a network
            raise UserError(
                f"no open_clip configuration at {self.name!r}: {first_line(error)}",
                where="model.name",
                remedy="local-dir: takes a folder with open_clip_config.json; hf-hub: takes org/name and the network",
            ) from error
        if model_cfg is None:
            remedy = closest(name, open_clip.list_models(), "open_clip.list_models() has them all")
            raise UserError(f"open_clip has no model {self.name!r}", where="model.name", remedy=remedy)
        if self.image_size is not None:
            model_cfg["vision_cfg"]["image_size"] = self.image_size
        if self.context_length is not None:
            model_cfg["text_cfg"]["context_length"] = self.context_length
        return model_cfg

    def _weights(self, model_cfg: dict[str, Any]) -> str | None:
        import open_clip

        if self.pretrained is None:
            return None
        if ":" in self.name:
            raise UserError(
                f"{self.name} brings its own weights", where="model.pretrained", remedy="leave pretrained out"
            )
        name = self.name.replace("/", "-")
        tag_cfg = open_clip.get_pretrained_cfg(name, self.pretrained)
        if not tag_cfg:
            if path := existing_file(self.pretrained, "model.pretrained"):
                return str(path)
            tags = open_clip.list_pretrained_tags_by_model(name)
            remedy = closest(self.pretrained, tags, f"it has {', '.join(tags) or 'none'}; or give a file of weights")
            raise UserError(
                f"open_clip has no weights {self.pretrained!r} for {self.name}", where="model.pretrained", remedy=remedy
            )
        if bool(tag_cfg.get("quick_gelu")) != bool(model_cfg.get("quick_gelu")):
            # open_clip only warns, and then computes with another activation than the weights were trained with
            other = name.removesuffix("-quickgelu") if model_cfg.get("quick_gelu") else f"{name}-quickgelu"
            raise UserError(
                f"the weights {self.pretrained!r} were trained with another activation than {self.name} has",
                where="model.name",
                remedy=f"use {other}",
            )
        return self.pretrained


@dataclass(frozen=True, config=STRICT)
class Small:
    """A small CLIP that learns from tens of thousands of small pictures in minutes on a CPU.

    A vision transformer over large patches and a short text transformer, in open_clip's own classes, so that an
    export is a normal open_clip model.

    Attributes:
        image_size: side of the pictures in pixels, a multiple of ``patch_size``.
        patch_size: side of a patch; halving it quadruples the image tower's time.
        embed_dim: dimension of the embeddings.
        vision_width: width of the image tower, a multiple of 64 (the width of a head).
        vision_layers: its layers.
        text_width: width of the text tower, a multiple of 64.
        text_layers: its layers.
        context_length: tokens of a caption, start and end included.
        multi: several class tokens in each tower; None for one.
    """

    kind: Literal["small"] = "small"
    image_size: Count = 64
    patch_size: Count = 16
    embed_dim: Count = 256
    vision_width: Count = 192
    vision_layers: Count = 6
    text_width: Count = 192
    text_layers: Count = 4
    context_length: Annotated[int, Field(gt=2)] = 32
    multi: Multi | None = None

    @model_validator(mode="after")
    def _sizes_fit(self) -> Small:
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size ({self.image_size}) must be a multiple of patch_size ({self.patch_size})")
        for field in ("vision_width", "text_width"):
            if getattr(self, field) % 64:
                raise ValueError(f"{field} must be a multiple of 64, not {getattr(self, field)}")
        return self

    def build(self, seed: int = 0) -> OpenClipEncoder:
        """Build the towers, weights drawn from ``seed``; the global random state is left as it was."""
        model_cfg = {
            "embed_dim": self.embed_dim if self.multi is None else self.multi.token_dim(self.embed_dim),
            "vision_cfg": {
                "image_size": self.image_size,
                "patch_size": self.patch_size,
                "width": self.vision_width,
                "layers": self.vision_layers,
                "head_width": 64,
            },
            "text_cfg": {
                "context_length": self.context_length,
                "vocab_size": VOCABULARY,
                "width": self.text_width,
                "heads": self.text_width // 64,
                "layers": self.text_layers,
            },
        }
        with seeded(seed):
            clip = assemble(model_cfg, text_apart=self.multi is not None)
            clip.visual.conv1 = PatchEmbedding(clip.visual.conv1)
            multi = give_tokens(clip, self.multi, model_cfg)
        tokenizer = simple_tokenizer(self.context_length)
        return OpenClipEncoder(clip, model_cfg, tokenizer, pretrained=False, multi=multi)
