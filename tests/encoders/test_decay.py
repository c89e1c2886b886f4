"""Which parameters get no weight decay."""

from __future__ import annotations

import torch
from torch import nn

from tests.encoders.test_models import TINY, TINY_TIMM
from troth.encoders import ContrastiveModel, Heads, no_decay
from troth.geometry import Sphere


def test_clip_towers_spare_norms_biases_positions_and_the_scale():
    model = ContrastiveModel(TINY.build(0), Sphere(), with_bias=True)
    spared = no_decay(model)
    names = dict(model.named_parameters())
    assert spared <= set(names)
    for name in (
        "log_scale",
        "bias",
        "encoder.clip.positional_embedding",
        "encoder.clip.visual.positional_embedding",
        "encoder.clip.visual.class_embedding",
        "encoder.clip.ln_final.weight",
        "encoder.clip.transformer.resblocks.0.mlp.c_fc.bias",
    ):
        assert name in spared, name
    for name in (
        "encoder.clip.visual.conv1.weight",
        "encoder.clip.visual.proj",
        "encoder.clip.text_projection",
        "encoder.clip.token_embedding.weight",
        "encoder.clip.transformer.resblocks.0.mlp.c_fc.weight",
        "encoder.clip.transformer.resblocks.0.attn.in_proj_weight",
    ):
        assert name in names, name
        assert name not in spared, name


def test_it_spares_everything_that_open_clip_spares():
    for config in (TINY, TINY_TIMM, Heads(hidden_dim=16)):
        model = ContrastiveModel(config.build(0), Sphere())
        theirs = {
            name
            for name, parameter in model.named_parameters()
            if parameter.ndim < 2 or "bn" in name or "ln" in name or "bias" in name or "log_scale" in name
        }
        assert theirs <= no_decay(model)


def test_names_are_compared_by_component():
    class Helnet(nn.Module):
        def __init__(self):
            super().__init__()
            self.helnet = nn.Linear(2, 2)
            self.ln_pre = nn.Linear(2, 2, bias=False)
            self.wide_norm = nn.LayerNorm((2, 2))
            self.tokens = nn.Parameter(torch.zeros(2, 2))

        def no_weight_decay(self):
            return {"tokens"}

    assert no_decay(nn.Sequential(Helnet())) == {
        "0.helnet.bias",
        "0.ln_pre.weight",
        "0.wide_norm.weight",
        "0.wide_norm.bias",
        "0.tokens",
    }
