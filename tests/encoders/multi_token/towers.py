"""Small towers with several class tokens, and texts whose padding can be told from their words."""

from dataclasses import replace
from pathlib import Path

import open_clip
import torch
from torch import Tensor
from transformers import BertConfig, PretrainedConfig, RobertaConfig

from troth.encoders import Multi, Small, Timm
from troth.encoders.towers import quiet_open_clip

SMALL = Small(
    image_size=32,
    patch_size=16,
    embed_dim=24,
    vision_width=64,
    vision_layers=2,
    text_width=64,
    text_layers=2,
    context_length=12,
)
TIMM_VIT = Timm(
    name="test_vit", image_size=32, embed_dim=24, text_width=64, text_layers=1, text_heads=1, context_length=12
)
MULTI = Multi(sub_dim=8, num_tokens=3)

TEXTS = ("a red square", "nothing", "three more words")


def small(attention: str = "bidirectional", **fields: int) -> Small:
    return replace(SMALL, multi=replace(MULTI, text_attention=attention, **fields))


def tokens_of(features: Tensor, num_tokens: int = 3) -> Tensor:
    """Features as ``(B, m, n)``."""
    return features.unflatten(-1, (num_tokens, -1))


def bert(folder: Path, kind: str = "bert") -> str:
    """Write the configuration of a tiny model of that kind, and return where."""
    sizes = {
        "vocab_size": 50,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 14,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    config: PretrainedConfig = BertConfig(**sizes) if kind == "bert" else RobertaConfig(**sizes)
    config.save_pretrained(folder)
    return str(folder)


def hugging_face_cfg(folder: Path, kind: str = "bert", **text_cfg: object) -> dict:
    """open_clip's configuration of a small vision transformer beside a tiny BERT."""
    model = bert(folder, kind)
    return {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 64, "layers": 1, "head_width": 64},
        "text_cfg": {
            "hf_model_name": model,
            "hf_tokenizer_name": model,
            "hf_proj_type": "linear",
            "hf_pooler_type": "cls_pooler",
            "hf_model_pretrained": False,
            **text_cfg,
        },
    }


def custom_clip(cfg: dict, seed: int = 0) -> open_clip.CustomTextCLIP:
    """open_clip's model of a configuration, in evaluation mode."""
    with quiet_open_clip(), torch.random.fork_rng():
        torch.manual_seed(seed)
        return open_clip.CustomTextCLIP(**cfg).eval()
