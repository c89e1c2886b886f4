"""Flat models as folders: written by :func:`export_flat`, read by :func:`load_export` from nothing but the folder.

open_clip's own ``local-dir:`` folders hold its own architectures, compared on one sphere. A model on an oblique
manifold, or with several tokens a tower, has a form of its own:

========================  ==============================================================================
file                      what
========================  ==============================================================================
``troth_export.json``     the model section of the recipe, open_clip's configuration of its towers, the
                          geometry, the preprocessing, versions, the digest of the weights
``model.safetensors``     the weights of :class:`~troth.encoders.flat.FlatClip`
others                    configuration and tokeniser of a Hugging Face text tower
========================  ==============================================================================
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import shutil
import tempfile
from dataclasses import fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from pydantic import Field, TypeAdapter
from pydantic.dataclasses import dataclass
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from troth.encoders.base import ImageTransform
from troth.encoders.contrastive import ContrastiveModel
from troth.encoders.evaluating import evaluating
from troth.encoders.export import open_clip_towers, saveable
from troth.encoders.flat import FlatClip
from troth.encoders.heads import Heads
from troth.encoders.lora import without_adapters
from troth.encoders.open_clip_models import OpenClip, Small
from troth.encoders.plain import Plain
from troth.encoders.staging import FLAT_RECORD, OPEN_CLIP_RECORD, staged_export
from troth.encoders.timm_models import Timm
from troth.encoders.towers import OpenClipEncoder, first_line
from troth.errors import UserError
from troth.geometry import GeometryConfig, Sphere
from troth.types import STRICT

WEIGHTS_FILE = "model.safetensors"
#: Of the folder's form; a reader refuses another one.
FORM = 1

#: The kinds of models whose towers have open_clip's interface.
TowersConfig = OpenClip | Timm | Small
_TOWERS: TypeAdapter[TowersConfig] = TypeAdapter(Annotated[TowersConfig, Field(discriminator="kind")])
_GEOMETRY: TypeAdapter[Any] = TypeAdapter(GeometryConfig)

_VERSIONS = ("troth", "torch", "open_clip_torch", "timm", "transformers")
_REMEDY = "export the run again, with `troth export RUN FOLDER`"
_REBUILT = f"install the versions that its {FLAT_RECORD} names, or export the run again"


class LoadedExport(NamedTuple):
    """What open_clip's factories and CLIP_benchmark's loaders return, in the latter's order.

    Attributes:
        model: in evaluation mode.
        preprocess: from an RGB picture to a ``(3, H, W)`` tensor, for evaluation.
        tokenizer: from captions to ``(B, L)`` int64 ids.
    """

    model: FlatClip
    preprocess: ImageTransform
    tokenizer: Any


@dataclass(frozen=True, config=STRICT)
class _Architecture(OpenClip):
    """An open_clip model's architecture at a ``local-dir:``, whose weights come from elsewhere."""

    with_weights: ClassVar[bool] = False


def has_open_clip_form(model: ContrastiveModel) -> bool:
    """Say whether open_clip has a form for the vectors of ``model``: one token a tower, on the sphere."""
    return isinstance(model.geometry, Sphere) and model.encoder.num_tokens == 1


def export_flat(model: ContrastiveModel, config: TowersConfig | Heads | Plain, folder: str | Path) -> Path:
    """Write ``model`` as a folder that :func:`load_export` makes a flat model of, and prove that it does.

    Adapters are merged into the weights. Nothing that ``config`` took its first weights from is needed any more.

    Args:
        model: a trained model on the sphere or the oblique inner product, with towers of open_clip's interface.
        config: the model section it was built from.
        folder: where to write; made, or replaced if an earlier export is there.

    Returns:
        The folder.

    Raises:
        UserError: for heads on frozen features, encoders of vectors and other geometries; a folder with other things in
            it; a model that the folder does not give again.
    """
    encoder = open_clip_towers(model)
    assert isinstance(config, OpenClip | Timm | Small), "towers come from these sections only"
    folder = Path(folder)
    exported = FlatClip.of(model)  # refuses what is not flat
    exported.clip = without_adapters(encoder.clip)
    with staged_export(folder) as staged:
        save_file(saveable(exported.state_dict()), staged / WEIGHTS_FILE, metadata={"format": "pt"})
        text_cfg = encoder.model_cfg["text_cfg"]
        if text_cfg.get("hf_tokenizer_name"):
            encoder.tokenizer.save_pretrained(str(staged))
        if text_cfg.get("hf_model_name"):
            encoder.clip.text.config.save_pretrained(str(staged))
        record = {
            "exported_by": "troth",
            "form": FORM,
            "files": sorted([FLAT_RECORD, *(path.name for path in staged.iterdir())]),
            "model": _TOWERS.dump_python(_settled(config, encoder), mode="json"),
            "architecture": _architecture(config),
            "geometry": _GEOMETRY.dump_python(model.geometry, mode="json"),
            "scale": float(model.scale.detach()),
            "bias": None if model.bias is None else float(model.bias.detach()),
            "preprocess_cfg": encoder.preprocess_cfg,
            "versions": _versions(),
            "sha256": _digest(staged / WEIGHTS_FILE),
        }
        (staged / FLAT_RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        _prove(staged, exported, encoder)
    return folder


def _settled(config: TowersConfig, encoder: OpenClipEncoder) -> TowersConfig:
    """Return the section without first weights, and with what they decided about the class tokens."""
    config = replace(config, multi=encoder.multi)
    return config if isinstance(config, Small) else replace(config, pretrained=None)


def _architecture(config: TowersConfig) -> dict[str, Any] | None:
    """Return open_clip's configuration behind a name: what the name means, or where it points, may be another later."""
    if not isinstance(config, OpenClip):
        return None
    import open_clip

    name = config.name if ":" in config.name else config.name.replace("/", "-")
    architecture: dict[str, Any] = open_clip.get_model_config(name)
    return architecture


def _versions() -> dict[str, str]:
    found = {}
    for name in _VERSIONS:
        with contextlib.suppress(ImportError):  # transformers is there for some models only
            found[name] = version(name)
    return found


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_export(folder: str | Path, device: torch.device | str = "cpu") -> LoadedExport:
    """Load a folder written by :func:`export_flat`, from nothing but its files.

    ``model, preprocess, tokenizer = load_export(folder)`` are what open_clip's and CLIP_benchmark's functions take.

    Args:
        folder: written by ``troth export``.
        device: where the model goes.

    Raises:
        UserError: if it is no such folder, or not as it was written.
    """
    folder = Path(folder)
    record = _read_record(folder)
    try:
        encoder, state = _rebuild(record, folder), load_file(folder / WEIGHTS_FILE)
        encoder.clip.visual.preprocess_cfg = {
            name: tuple(value) if isinstance(value, list) else value for name, value in record["preprocess_cfg"].items()
        }
        transform = encoder.image_transform(train=False)
        geometry = _GEOMETRY.validate_python(record["geometry"])
        geometry.project(torch.zeros(1, encoder.embed_dim))  # refuses another number of dimensions
        zero = torch.zeros(())
        model = FlatClip(encoder.clip, geometry, zero, zero if "logit_bias" in state else None)
        model.load_state_dict(state)
    except UserError as error:
        raise UserError(f"cannot be built: {error.message}", where=str(folder), remedy=_REBUILT) from error
    except (LookupError, TypeError, ValueError, AttributeError, OSError, RuntimeError, SafetensorError) as error:
        what = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"cannot be built: {what}", where=str(folder), remedy=_REBUILT) from error
    return LoadedExport(model.to(device).eval(), transform, encoder.tokenizer)


def _read_record(folder: Path) -> dict[str, Any]:
    """Return what ``troth_export.json`` says, having checked that the folder is whole."""
    if not (folder / FLAT_RECORD).is_file():
        if (folder / OPEN_CLIP_RECORD).is_file():
            remedy = f'open_clip loads it: open_clip.create_model_and_transforms("local-dir:{folder}")'
        else:
            remedy = "name a folder that `troth export` wrote"
        raise UserError(f"no {FLAT_RECORD} here, so no flat model", where=str(folder), remedy=remedy)
    try:
        record: dict[str, Any] = json.loads((folder / FLAT_RECORD).read_text(encoding="utf-8"))
        form, digest = record["form"], record["sha256"]
        if strange := [name for name in record["files"] if Path(name).name != name]:
            raise ValueError(f"{strange[0]!r} is no file of the folder's own")
        missing = sorted(name for name in record["files"] if not (folder / name).is_file())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{FLAT_RECORD} is damaged: {first_line(error)}", where=str(folder), remedy=_REMEDY) from error
    if form != FORM:
        raise UserError(
            f"an export of form {form}, and this Troth reads form {FORM}", where=str(folder), remedy=_REMEDY
        )
    if missing:
        raise UserError(f"damaged: {missing[0]} is missing", where=str(folder), remedy=_REMEDY)
    if _digest(folder / WEIGHTS_FILE) != digest:
        raise UserError(f"damaged: {WEIGHTS_FILE} is not as it was written", where=str(folder), remedy=_REMEDY)
    return record


def _rebuild(record: dict[str, Any], folder: Path) -> OpenClipEncoder:
    """Build the towers, with their tokeniser; the weights are still random."""
    config = _TOWERS.validate_python(record["model"])
    if not isinstance(config, OpenClip):
        encoder = config.build()
        assert encoder.tokenizer is not None
        return encoder
    # open_clip finds an architecture in a folder, and a Hugging Face tower's configuration by an absolute name.
    with tempfile.TemporaryDirectory(prefix="troth-export-") as place:
        for name in set(record["files"]) - {FLAT_RECORD, WEIGHTS_FILE}:
            shutil.copy(folder / name, place)
        architecture = copy.deepcopy(record["architecture"])
        if architecture["text_cfg"].get("hf_model_name"):
            architecture["text_cfg"]["hf_model_name"] = place
        described = {"model_cfg": architecture, "preprocess_cfg": record["preprocess_cfg"]}
        (Path(place) / OPEN_CLIP_RECORD).write_text(json.dumps(described), encoding="utf-8")
        settings = {item.name: getattr(config, item.name) for item in fields(config)}
        encoder = _Architecture(**settings | {"name": f"local-dir:{place}"}).build()
        assert encoder.tokenizer is not None  # read while its files are there
    return encoder


@torch.no_grad()
def _prove(staged: Path, exported: FlatClip, encoder: OpenClipEncoder) -> None:
    """Load the staged folder; compare every weight, and the vectors of a picture and a caption."""
    try:
        loaded = load_export(staged)
    except UserError as error:
        raise UserError(
            f"the model cannot be built again: {error.message}",
            where="model",
            remedy="give the model section that its towers were built from",
        ) from error
    state, own = loaded.model.state_dict(), exported.state_dict()
    assert state.keys() == own.keys(), sorted(state.keys() ^ own.keys())
    assert all(torch.equal(state[name], own[name].cpu()) for name in state)
    device = exported.logit_scale.device
    model = loaded.model.to(device)
    tokens = loaded.tokenizer(["a proof"])
    assert torch.equal(tokens, encoder.tokenize(["a proof"]))
    size = encoder.image_size
    picture = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    tokens = tokens.to(device)
    with evaluating(exported):
        for given, again in (
            (exported.encode_image(picture), model.encode_image(picture)),
            (exported.encode_text(tokens), model.encode_text(tokens)),
        ):
            if not torch.allclose(given, again, atol=1e-4):
                raise UserError(
                    f"the folder gives another model again: vectors differ by {float((given - again).abs().max()):.2g}",
                    where="model",
                    remedy="keep Troth's own checkpoint",
                )
