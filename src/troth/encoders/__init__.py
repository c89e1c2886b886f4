"""Encoders: towers from open_clip and timm, small ones for a CPU, and heads on frozen features."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from troth.encoders.base import DualEncoder, ImageTransform, Tokenize
from troth.encoders.contrastive import ContrastiveModel, Features, ScaleConfig
from troth.encoders.decay import no_decay
from troth.encoders.export import export_open_clip
from troth.encoders.features import FeatureEncoder
from troth.encoders.flat import FlatClip
from troth.encoders.flat_export import LoadedExport, export_flat, has_open_clip_form, load_export
from troth.encoders.frozen import FrozenImageEncoder, FrozenTextEncoder
from troth.encoders.hashing import hash_module, hash_tensors
from troth.encoders.heads import Heads, HeadsEncoder, SpectralHead
from troth.encoders.locking import apply_towers
from troth.encoders.multi_token import Multi
from troth.encoders.open_clip_models import OpenClip, Small
from troth.encoders.plain import Plain, PlainEncoder
from troth.encoders.timm_models import Timm
from troth.encoders.tower_training import LoRA, Towers, TowerTraining
from troth.encoders.towers import OpenClipEncoder

#: What a recipe may put under ``[model]``, told apart by ``kind``.
ModelConfig = Annotated[OpenClip | Timm | Small | Heads | Plain, Field(discriminator="kind")]

__all__ = [
    "ContrastiveModel",
    "DualEncoder",
    "FeatureEncoder",
    "Features",
    "FlatClip",
    "FrozenImageEncoder",
    "FrozenTextEncoder",
    "Heads",
    "HeadsEncoder",
    "ImageTransform",
    "LoRA",
    "LoadedExport",
    "ModelConfig",
    "Multi",
    "OpenClip",
    "OpenClipEncoder",
    "Plain",
    "PlainEncoder",
    "ScaleConfig",
    "Small",
    "SpectralHead",
    "Timm",
    "Tokenize",
    "TowerTraining",
    "Towers",
    "apply_towers",
    "export_flat",
    "export_open_clip",
    "has_open_clip_form",
    "hash_module",
    "hash_tensors",
    "load_export",
    "no_decay",
]
