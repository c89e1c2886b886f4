"""Writing a trained model as a folder that open_clip loads: ``local-dir:FOLDER``."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from troth.encoders.contrastive import ContrastiveModel
from troth.encoders.features import FeatureEncoder
from troth.encoders.heads import HeadsEncoder
from troth.encoders.lora import without_adapters
from troth.encoders.staging import OPEN_CLIP_RECORD, staged_export
from troth.encoders.towers import OpenClipEncoder, first_line, quiet_open_clip
from troth.errors import UserError

#: The name open_clip 3.3 looks for in a ``local-dir:`` folder.
WEIGHTS_FILE = "open_clip_model.safetensors"


def export_open_clip(model: ContrastiveModel, folder: str | Path) -> Path:
    """Write ``model`` as an open_clip ``local-dir:`` folder and prove that open_clip loads it.

    ``open_clip.create_model_and_transforms("local-dir:FOLDER")`` and ``open_clip.get_tokenizer("local-dir:FOLDER")``
    then give the same towers, scale, bias, preprocessing and tokeniser. Adapters are merged into the weights.

    Args:
        model: a trained model on the sphere with open_clip towers.
        folder: where to write; made, or replaced if an earlier export is there.

    Returns:
        The folder.

    Raises:
        UserError: heads on frozen features, plain encoders or another geometry, which open_clip has no form for; a
            folder with other things in it; towers with several class tokens; a tower that open_clip cannot rebuild from
            its configuration.
    """
    encoder = _exportable(model)
    folder = Path(folder)
    with staged_export(folder) as staged:
        state = _state(model, encoder)
        save_file(state, staged / WEIGHTS_FILE, metadata={"format": "pt"})
        if encoder.model_cfg["text_cfg"].get("hf_tokenizer_name"):
            # open_clip takes such a tokeniser from the folder itself
            encoder.tokenizer.save_pretrained(str(staged))
        files = sorted([OPEN_CLIP_RECORD, *(path.name for path in staged.iterdir())])
        config = {
            "model_cfg": _model_cfg(model, encoder),
            "preprocess_cfg": encoder.preprocess_cfg,
            "exported_by": "troth",
            "files": files,
        }
        (staged / OPEN_CLIP_RECORD).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        _prove(staged, state)
    return folder


def _exportable(model: ContrastiveModel) -> OpenClipEncoder:
    if model.geometry.kind != "sphere":
        raise UserError(
            f"open_clip compares on the sphere only; this model lives on {model.geometry.kind!r}",
            where="geometry.kind",
            remedy="export_flat writes oblique inner products as flat models, and so does `troth export`",
        )
    encoder = open_clip_towers(model)
    if encoder.multi is not None:
        raise UserError(
            "towers with several class tokens cannot be an open_clip model: open_clip has no form for them",
            where="model.multi",
            remedy="export_flat and `troth export` write them as a flat model",
        )
    return encoder


def open_clip_towers(model: ContrastiveModel) -> OpenClipEncoder:
    """Return the towers of ``model`` that open_clip's interface fits.

    Raises:
        UserError: for heads on frozen features and encoders of vectors.
    """
    if isinstance(model.encoder, HeadsEncoder):
        raise UserError(
            "heads on frozen features cannot be an open_clip model: open_clip has no form for them",
            where="model.kind",
            remedy="use the heads through the run's own checkpoint and `troth embed`; models of kind"
            " open_clip, timm and small can be exported",
        )
    if isinstance(model.encoder, FeatureEncoder):
        raise UserError(
            "an encoder of vectors cannot be an open_clip model: open_clip has no form for it",
            where="model.kind",
            remedy="use it through the run's own checkpoint and `troth embed`",
        )
    assert isinstance(model.encoder, OpenClipEncoder), type(model.encoder)
    return model.encoder


def saveable(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies that safetensors takes.

    It refuses tensors that share memory, and channels-last weights are not contiguous.
    """
    return {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in state.items()}


def _state(model: ContrastiveModel, encoder: OpenClipEncoder) -> dict[str, Tensor]:
    state = dict(without_adapters(encoder.clip).state_dict())
    state["logit_scale"] = model.log_scale
    if model.bias is not None:
        state["logit_bias"] = model.bias
    return saveable(state)


def _model_cfg(model: ContrastiveModel, encoder: OpenClipEncoder) -> dict[str, Any]:
    cfg = copy.deepcopy(encoder.model_cfg)
    cfg.pop("nonscalar_logit_scale", None)
    cfg.pop("init_logit_bias", None)
    if model.bias is not None:
        cfg["init_logit_bias"] = float(model.bias.detach())
    return cfg


def _prove(staged: Path, state: dict[str, Tensor]) -> None:
    """Load the staged folder as open_clip would, and compare every weight."""
    import open_clip

    try:
        with torch.random.fork_rng(devices=[]), quiet_open_clip():
            loaded = open_clip.create_model(f"local-dir:{staged}", pretrained_text=False).state_dict()
    except Exception as error:  # whatever open_clip, timm or transformers raise while building
        raise UserError(
            f"open_clip cannot rebuild this model: {first_line(error)}",
            where="model",
            remedy="a timm transformer tower must be trained at its own image size to be exported",
        ) from error
    assert loaded.keys() == state.keys(), sorted(loaded.keys() ^ state.keys())
    assert all(torch.equal(loaded[name].cpu(), state[name]) for name in state)
