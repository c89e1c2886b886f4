"""The one wrapper around an open_clip model, and the ways of building one without surprises.

open_clip is imported inside the functions: it takes seconds, and a recipe should be readable without it.
"""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from troth.encoders.base import DualEncoder, ImageTransform, Tokenize
from troth.encoders.multi_token import Multi
from troth.errors import UserError

#: Size of open_clip's byte-pair vocabulary.
VOCABULARY = 49408


@contextlib.contextmanager
def quiet_open_clip() -> Iterator[None]:
    """Silence open_clip's chatter about building and weights.

    It logs to the *root* logger, which would otherwise also install a handler there for the whole process.
    """
    root = logging.getLogger()
    handler = logging.NullHandler()
    root.addHandler(handler)
    disabled = root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(disabled)
        root.removeHandler(handler)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw initial weights from ``seed`` and leave the global random state as it was.

    Models are built on the CPU, so that only its generator is seeded: no accelerator is woken up for it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


class OpenClipEncoder(DualEncoder):
    """Both towers of an open_clip model, without its scale and bias.

    Args:
        clip: an ``open_clip.CLIP``, ``CustomTextCLIP`` or ``CoCa`` that carries its ``preprocess_cfg``.
        model_cfg: the open_clip configuration that rebuilds ``clip``; exported with the weights.
        make_tokenizer: makes the tokeniser when it is first needed (some have to be fetched).
        pretrained: whether the weights, and with them the scale and the bias, come from training.
        multi: the class tokens that the towers of ``clip`` were given, if any; ``embed_dim`` of ``model_cfg`` is then
            that of one of them.

    Attributes:
        clip: the open_clip model; its ``logit_scale`` and ``logit_bias`` are None here.
        model_cfg: as above.
        multi: as above.
    """

    def __init__(
        self,
        clip: Any,
        model_cfg: dict[str, Any],
        make_tokenizer: Callable[[], Any],
        *,
        pretrained: bool,
        multi: Multi | None = None,
    ) -> None:
        super().__init__()
        if pretrained:
            self.pretrained_scale = math.exp(float(clip.logit_scale.detach().reshape(())))
            if clip.logit_bias is not None:
                self.pretrained_bias = float(clip.logit_bias.detach().reshape(()))
        # One scale, one bias, in one place: left here they would be parameters that never get a gradient.
        clip.logit_scale = None
        clip.logit_bias = None
        if isinstance(decoder := getattr(clip, "text_decoder", None), nn.Module):
            decoder.requires_grad_(False)  # CoCa's caption decoder takes no part in contrastive training
        self.clip: Any = clip
        self.model_cfg = model_cfg
        self._make_tokenizer = make_tokenizer
        self.embed_dim = int(model_cfg["embed_dim"])
        self.architecture = json.dumps(model_cfg, sort_keys=True, default=str)
        self.multi = multi
        if multi is not None:
            self.num_tokens = multi.num_tokens
            self.embed_dim *= multi.num_tokens
            self.architecture += f" {multi!r}"
        size = self.preprocess_cfg["size"]
        self.image_size = int(size) if isinstance(size, int) else max(int(side) for side in size)
        self.preprocessing = "open_clip " + json.dumps(self.preprocess_cfg, sort_keys=True)
        text_cfg = model_cfg.get("text_cfg", {})
        described = ("context_length", "vocab_size", "hf_tokenizer_name", "tokenizer_kwargs", "tokenizer_mode")
        self.tokenization = "open_clip " + json.dumps(
            {name: text_cfg[name] for name in described if text_cfg.get(name) is not None}, sort_keys=True
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> OpenClipEncoder:
        """Copy everything but the tokeniser, which is large and never changes."""
        if (tokenizer := self.__dict__.get("tokenizer")) is not None:
            memo[id(tokenizer)] = tokenizer
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__dict__.update({name: copy.deepcopy(value, memo) for name, value in self.__dict__.items()})
        return twin

    @property
    def preprocess_cfg(self) -> dict[str, Any]:
        """open_clip's description of the image preprocessing: size, mean, std, interpolation, resize mode."""
        cfg: dict[str, Any] = self.clip.visual.preprocess_cfg
        return cfg

    def encode_image(self, image: Tensor) -> Float[Tensor, "B D"]:
        """Return raw features of ``(B, 3, H, W)`` pictures."""
        features: Tensor = self.clip.encode_image(image, normalize=False)
        return features

    def encode_text(self, text: Tensor) -> Float[Tensor, "B D"]:
        """Return raw features of ``(B, L)`` token ids."""
        features: Tensor = self.clip.encode_text(text, normalize=False)
        return features

    def image_transform(self, train: bool) -> ImageTransform:
        """Return open_clip's transform: a random resized crop of 90-100% in training, resize and crop otherwise."""
        from open_clip.transform import PreprocessCfg, image_transform_v2

        transform: ImageTransform = image_transform_v2(PreprocessCfg(**self.preprocess_cfg), is_train=train)
        return transform

    @cached_property
    def tokenizer(self) -> Any:
        """The open_clip tokeniser object; fetched or built on first use."""
        try:
            with quiet_open_clip():
                return self._make_tokenizer()
        except (OSError, ValueError) as error:
            raise UserError(
                f"the tokeniser of this model cannot be loaded: {first_line(error)}",
                remedy="it is fetched from the Hugging Face hub once; connect, or put it into the hub cache",
            ) from error

    @property
    def tokenize(self) -> Tokenize:
        """The tokeniser: captions to ``(B, L)`` int64 ids."""
        tokenizer: Tokenize = self.tokenizer
        return tokenizer


def first_line(error: BaseException) -> str:
    """An error's text as one line of at most 200 characters, for a one-line message."""
    # The first line of torch's loading errors ends in a colon and says nothing without the second.
    line = " ".join(" ".join((str(error).strip() or type(error).__name__).splitlines()[:2]).split())
    return line if len(line) <= 200 else f"{line[:197]}..."


def assemble(model_cfg: dict[str, Any], *, text_apart: bool = False) -> Any:
    """Build a bare open_clip model from a configuration of its own (one that open_clip has no name for).

    Args:
        model_cfg: ``embed_dim``, ``vision_cfg``, ``text_cfg``.
        text_apart: whether the text tower is to be a module of its own.

    Returns:
        An ``open_clip.CLIP``, or a ``CustomTextCLIP`` with a text tower apart, with OpenAI's image preprocessing.
    """
    import open_clip
    from open_clip.transform import PreprocessCfg

    with quiet_open_clip():
        clip = (open_clip.CustomTextCLIP if text_apart else open_clip.CLIP)(**model_cfg)
    open_clip.set_model_preprocess_cfg(clip, asdict(PreprocessCfg(size=model_cfg["vision_cfg"]["image_size"])))
    return clip


def simple_tokenizer(context_length: int) -> Callable[[], Any]:
    """Return a maker of open_clip's byte-pair tokeniser (49,408 ids, lower case) of that length."""

    def make() -> Any:
        import open_clip

        return open_clip.SimpleTokenizer(context_length=context_length)

    return make
