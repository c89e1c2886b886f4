"""Giving the towers of a built model several class tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from open_clip.hf_model import HFTextEncoder
from open_clip.timm_model import TimmModel
from open_clip.transformer import TextTransformer, VisionTransformer
from torch import nn

from troth.encoders.multi_token.config import Multi, Trained
from troth.encoders.multi_token.hugging_face import MultiTokenHFText
from troth.encoders.multi_token.text import MultiTokenText
from troth.encoders.multi_token.vision import MultiTokenTimm, MultiTokenVision
from troth.errors import UserError


def replace_towers(clip: Any, multi: Multi, model_cfg: dict[str, Any], trained: Trained) -> Multi:
    """Do what :func:`troth.encoders.multi_token.give_tokens` says."""
    sub_dim = multi.token_dim(int(model_cfg["embed_dim"]))
    clip.visual = _image_tower(clip.visual, multi.num_tokens, sub_dim, model_cfg, trained)
    clip.text = _text_tower(getattr(clip, "text", None), multi, sub_dim, trained)
    model_cfg["embed_dim"] = sub_dim
    return replace(multi, sub_dim=sub_dim, text_attention=clip.text.attention)


def _image_tower(
    tower: nn.Module, num_tokens: int, sub_dim: int, model_cfg: dict[str, Any], trained: Trained
) -> nn.Module:
    if type(tower) is VisionTransformer:
        return MultiTokenVision(tower, num_tokens, sub_dim)
    if type(tower) is TimmModel:
        return MultiTokenTimm(tower, model_cfg["vision_cfg"], num_tokens, sub_dim, trained)
    raise _refusal("image", tower)


def _text_tower(tower: Any, multi: Multi, sub_dim: int, trained: Trained) -> nn.Module:
    if type(tower) is HFTextEncoder:
        if multi.text_attention == "causal":
            raise UserError(
                "a Hugging Face text tower attends in both directions",
                where="model.multi.text_attention",
                remedy='use "bidirectional", or leave it out',
            )
        return MultiTokenHFText(tower, multi.num_tokens, sub_dim)
    if type(tower) is TextTransformer:
        return MultiTokenText(tower, multi.num_tokens, sub_dim, _attention(tower, multi, trained))
    raise _refusal("text", tower)


def _attention(tower: TextTransformer, multi: Multi, trained: Trained) -> Literal["bidirectional", "causal"]:
    if multi.text_attention != "auto":
        return multi.text_attention
    if trained != "everything":
        return "bidirectional"
    if tower.attn_mask is None:
        # Its end-of-text token sees padding, too, and class tokens are seen by all words: nothing keeps what it is.
        raise UserError(
            "the text tower was trained to attend in both directions and to end in its end-of-text token, which several"
            " class tokens do not keep",
            where="model.multi.text_attention",
            remedy='say "bidirectional", so that it learns anew to end in its first token, or take a causal text tower',
        )
    return "causal"


def _refusal(side: str, tower: object) -> UserError:
    return UserError(
        f"the {side} tower is a {type(tower).__name__}, which cannot have several class tokens",
        where="model.multi",
        remedy="take a model of transformers that end in a class token or an end-of-text token, such as ViT-B-16",
    )
