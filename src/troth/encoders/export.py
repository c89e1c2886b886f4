"""Writing a trained model as a folder that open_clip loads: ``local-dir:FOLDER``."""

from __future__ import annotations

import copy
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from troth.encoders.contrastive import ContrastiveModel
from troth.encoders.features import FeatureEncoder
from troth.encoders.heads import HeadsEncoder
from troth.encoders.lora import without_adapters
from troth.encoders.towers import OpenClipEncoder, first_line, quiet_open_clip
from troth.errors import UserError

#: The names open_clip 3.3 looks for in a ``local-dir:`` folder.
CONFIG_FILE = "open_clip_config.json"
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
    _refuse_foreign(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        state = _state(model, encoder)
        save_file(state, staged / WEIGHTS_FILE, metadata={"format": "pt"})
        if encoder.model_cfg["text_cfg"].get("hf_tokenizer_name"):
            # open_clip takes such a tokeniser from the folder itself
            encoder.tokenizer.save_pretrained(str(staged))
        files = sorted([CONFIG_FILE, *(path.name for path in staged.iterdir())])
        config = {
            "model_cfg": _model_cfg(model, encoder),
            "preprocess_cfg": encoder.preprocess_cfg,
            "exported_by": "troth",
            "files": files,
        }
        (staged / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        _prove(staged, state)
        # mkdtemp makes folders private; an export is to be shared like any other file of the user
        staged.chmod(0o777 & ~_umask())
        _put_in_place(staged, folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return folder


def _exportable(model: ContrastiveModel) -> OpenClipEncoder:
    if model.geometry.kind != "sphere":
        raise UserError(
            f"open_clip compares on the sphere only; this model lives on {model.geometry.kind!r}",
            where="geometry.kind",
            remedy="keep Troth's own checkpoint, or train with kind = 'sphere'",
        )
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
    if model.encoder.multi is not None:
        raise UserError(
            "towers with several class tokens cannot be an open_clip model: open_clip has no form for them",
            where="model.multi",
            remedy="use the model through the run's own checkpoint and `troth embed`",
        )
    return model.encoder


def _state(model: ContrastiveModel, encoder: OpenClipEncoder) -> dict[str, Tensor]:
    # Cloned: safetensors refuses tensors that share memory, and channels-last weights are not contiguous.
    state = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in without_adapters(encoder.clip).state_dict().items()
    }
    state["logit_scale"] = model.log_scale.detach().cpu().clone()
    if model.bias is not None:
        state["logit_bias"] = model.bias.detach().cpu().clone()
    return state


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


def _owned(folder: Path) -> bool:
    """Whether ``folder`` holds an earlier export and nothing else."""
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        known = set(config["files"]) if config["exported_by"] == "troth" else set()
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return {path.name for path in folder.iterdir()} <= known


def _refuse_foreign(folder: Path) -> None:
    if folder.is_dir():
        if any(folder.iterdir()) and not _owned(folder):
            raise UserError(
                "the folder holds other things than an earlier export",
                where=str(folder),
                remedy="export to a new or empty folder",
            )
    elif folder.exists() or folder.is_symlink():
        raise UserError("not a folder", where=str(folder), remedy="export to a new or empty folder")


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _put_in_place(staged: Path, folder: Path) -> None:
    if folder.is_dir() and any(folder.iterdir()):
        # A folder with files cannot be replaced in one step: the old export moves aside first, and back on failure.
        aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.old."))
        folder.replace(aside)
        try:
            staged.replace(folder)
        except OSError:
            aside.replace(folder)
            raise
        shutil.rmtree(aside)
    else:
        staged.replace(folder)
