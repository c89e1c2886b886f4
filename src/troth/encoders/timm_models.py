"""timm image towers: beside a text transformer, and their weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from troth.encoders.multi_token import Multi, give_tokens
from troth.encoders.names import closest, existing_file
from troth.encoders.towers import VOCABULARY, OpenClipEncoder, assemble, first_line, seeded, simple_tokenizer
from troth.errors import UserError
from troth.types import STRICT

Count = Annotated[int, Field(gt=0)]


@dataclass(frozen=True, config=STRICT)
class Timm:
    """Any timm image tower beside a text transformer of CLIP's kind.

    Attributes:
        name: timm's name of the image tower.
        image_size: side of the pictures in pixels.
        embed_dim: dimension of the embeddings.
        text_width: width of the text transformer, a multiple of ``text_heads``.
        text_layers: its layers.
        text_heads: its attention heads.
        context_length: tokens of a caption.
        pretrained: None for random weights, a timm tag (``a1_in1k``), or a file with the image tower's weights. The
            text tower always starts at random.
        multi: several class tokens in each tower, for timm's vision transformers; None for one vector a picture.
    """

    kind: Literal["timm"] = "timm"
    name: str = "resnet18"
    image_size: Count = 224
    embed_dim: Count = 512
    text_width: Count = 512
    text_layers: Count = 12
    text_heads: Count = 8
    context_length: Annotated[int, Field(gt=2)] = 77
    pretrained: str | None = None
    multi: Multi | None = None

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Timm:
        if self.text_width % self.text_heads:
            raise ValueError(f"text_width ({self.text_width}) must be a multiple of text_heads ({self.text_heads})")
        return self

    def build(self, seed: int = 0) -> OpenClipEncoder:
        """Build the towers, random weights drawn from ``seed``; the global random state is left as it was."""
        check_timm_name(self.name, "model.name")
        weights = None if self.pretrained is None else existing_file(self.pretrained, "model.pretrained")
        with seeded(seed):
            model_cfg = self._model_cfg(_needs_own_classifier(self.name))
            try:
                clip = assemble(model_cfg, text_apart=self.multi is not None)
            except (RuntimeError, AssertionError, TypeError, ValueError) as error:
                raise UserError(
                    f"timm's {self.name} does not serve as an image tower: {first_line(error)}", where="model.name"
                ) from error
            trunk = clip.visual.trunk
            if weights is not None:
                load_timm_weights(trunk, weights, "model.pretrained")
            elif self.pretrained is not None:
                trunk.load_state_dict(fetch_timm_weights(self.name, self.pretrained), strict=False)
            if must_resize(trunk, self.name, self.image_size):
                clip.visual.set_input_size(self.image_size)
            multi = give_tokens(clip, self.multi, model_cfg, "nothing" if self.pretrained is None else "image trunk")
        if self.pretrained is not None:
            data = timm_data_config(trunk)
            clip.visual.preprocess_cfg.update(mean=tuple(data["mean"]), std=tuple(data["std"]))
        tokenizer = simple_tokenizer(self.context_length)
        return OpenClipEncoder(clip, model_cfg, tokenizer, pretrained=False, multi=multi)

    def _model_cfg(self, own_classifier: bool) -> dict[str, Any]:
        return {
            "embed_dim": self.embed_dim if self.multi is None else self.multi.token_dim(self.embed_dim),
            "vision_cfg": {
                "timm_model_name": self.name,
                "timm_model_pretrained": False,
                "timm_pool": "avg",
                "timm_proj": "" if own_classifier else "linear",
                "image_size": self.image_size,
            },
            "text_cfg": {
                "context_length": self.context_length,
                "vocab_size": VOCABULARY,
                "width": self.text_width,
                "heads": self.text_heads,
                "layers": self.text_layers,
            },
        }


def check_timm_name(name: str, where: str) -> None:
    """Raise a UserError with the closest names if timm has no model ``name``."""
    import timm

    if not timm.is_model(name):
        remedy = closest(name, timm.list_models(), "timm.list_models() has them all")
        raise UserError(f"timm has no model {name!r}", where=where, remedy=remedy)


def timm_probe(name: str) -> Any:
    """Return the timm model without its classifier, for its dimensions; without memory where timm can do that."""
    import timm

    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                return timm.create_model(name, num_classes=0)
        except (RuntimeError, NotImplementedError):  # some towers compute with values while they are built
            return timm.create_model(name, num_classes=0)


def timm_data_config(trunk: Any) -> dict[str, Any]:
    """Return timm's preprocessing of a model: ``mean``, ``std``, ``interpolation`` and more."""
    from timm.data.config import resolve_data_config

    resolve: Any = resolve_data_config
    config: dict[str, Any] = resolve({}, model=trunk)
    return config


def must_resize(trunk: Any, name: str, image_size: int) -> bool:
    """Whether ``trunk.set_input_size`` has to be called for ``image_size``; UserError if it takes one size only."""
    native = int(trunk.default_cfg["input_size"][-1])
    if image_size == native:
        return False
    if hasattr(trunk, "set_input_size"):
        return True
    if trunk.default_cfg.get("fixed_input_size"):
        raise UserError(
            f"timm's {name} takes pictures of {native} pixels only",
            where="model.image_size",
            remedy=f"set image_size = {native}",
        )
    return False


def _needs_own_classifier(name: str) -> bool:
    # Towers with a hidden layer behind the pooling (MobileNetV3, V4) report the width before it as num_features,
    # which is what open_clip's linear projection then expects; their own classifier does the projection instead.
    probe = timm_probe(name)
    return int(getattr(probe, "head_hidden_size", None) or probe.num_features) != int(probe.num_features)


def load_timm_weights(trunk: Any, weights: Path, where: str) -> None:
    """Load a file of image tower weights into a timm model; its classifier may be missing or of another shape."""
    from open_clip.factory import load_state_dict

    try:
        loaded = load_state_dict(str(weights))
    except Exception as error:  # unpickling and safetensors raise a dozen types
        raise UserError(f"cannot read weights from {weights}: {first_line(error)}", where=where) from error
    own = trunk.state_dict()
    usable = {name: value for name, value in loaded.items() if name in own and own[name].shape == value.shape}
    head = trunk.default_cfg.get("classifier") or ()
    heads = (head,) if isinstance(head, str) else tuple(head)
    missing = sorted(name for name in own if name not in usable and not name.startswith(heads))
    if missing:
        raise UserError(
            f"{weights} does not hold this tower's weights: {missing[0]} and {len(missing) - 1} more are missing",
            where=where,
            remedy="save the state dict of the same timm model",
        )
    trunk.load_state_dict(usable, strict=False)


def fetch_timm_weights(name: str, tag: str) -> dict[str, Any]:
    """Return the published weights ``tag`` of a timm model without its classifier, from timm's cache or the network."""
    import timm

    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{name}.*")]
    if tag not in tags:
        remedy = closest(tag, tags, f"it has {', '.join(tags) or 'none'}; or give a file of weights")
        raise UserError(f"timm has no weights {tag!r} for {name}", where="model.pretrained", remedy=remedy)
    try:
        donor = timm.create_model(f"{name}.{tag}", pretrained=True, num_classes=0)
    except Exception as error:  # the hub client raises its own family of errors
        raise UserError(
            f"the weights {tag!r} of {name} cannot be fetched: {first_line(error)}",
            where="model.pretrained",
            remedy="published weights need the network once; or give a file of weights",
        ) from error
    state: dict[str, Any] = donor.state_dict()
    return state
