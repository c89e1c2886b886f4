"""Image towers with several class tokens: what they see, and which towers cannot have them."""

from dataclasses import replace

import open_clip
import pytest
import torch
from torch import nn

from tests.encoders.multi_token.towers import MULTI, SMALL, TIMM_VIT, custom_clip, small, tokens_of
from troth.encoders import Multi, OpenClip
from troth.encoders.multi_token import give_tokens
from troth.errors import UserError

EVA = replace(TIMM_VIT, name="eva02_tiny_patch14_224", image_size=28, multi=MULTI)
CONFIGS = {"small": small(), "timm": replace(TIMM_VIT, multi=MULTI), "eva": EVA}


@pytest.fixture(params=CONFIGS)
def encoder(request: pytest.FixtureRequest) -> nn.Module:
    return CONFIGS[request.param].build(0).eval()


def test_features_are_tokens_side_by_side(encoder: nn.Module) -> None:
    assert (encoder.embed_dim, encoder.num_tokens) == (24, 3)
    size = encoder.image_size
    image = torch.randn(2, 3, size, size)
    features = encoder.encode_image(image)
    assert features.shape == (2, 24)
    found = tokens_of(features)
    assert (found[:, 1:] - found[:, :1]).abs().amax(-1).min() > 1e-2
    assert (found[:, 2] - found[:, 1]).abs().amax(-1).min() > 1e-2
    # The projection is shared: what it does to one coordinate it does for all tokens.
    visual = encoder.clip.visual
    projection = visual.proj if hasattr(visual, "proj") else visual.head.proj.weight.T
    assert projection.shape[1] == 8
    assert float(projection.detach().std()) == pytest.approx(projection.shape[0] ** -0.5, rel=0.15)
    with torch.no_grad():
        projection[:, 5] *= 2
    doubled = tokens_of(encoder.encode_image(image))
    torch.testing.assert_close(doubled[..., 5], 2 * found[..., 5])
    torch.testing.assert_close(doubled[..., :5], found[..., :5])


def test_every_class_token_sees_every_patch(encoder: nn.Module) -> None:
    encoder.double()
    size = encoder.image_size
    patch = {32: 16, 28: 14}[size]
    image = torch.randn(1, 3, size, size, dtype=torch.float64)
    before = tokens_of(encoder.encode_image(image))
    for row in range(0, size, patch):
        for column in range(0, size, patch):
            changed = image.clone()
            changed[..., row : row + patch, column : column + patch] = torch.randn(patch, patch)
            assert ((tokens_of(encoder.encode_image(changed)) - before).abs().amax(-1) > 1e-7).all()


def test_class_tokens_begin_apart() -> None:
    visual = CONFIGS["small"].build(0).clip.visual
    assert visual.class_embedding.shape == (3, 64)
    assert visual.positional_embedding.shape == (4 + 3, 64)
    for values in (visual.class_embedding, visual.positional_embedding):
        assert float(values.detach().std()) == pytest.approx(64**-0.5, rel=0.2)
    trunk = CONFIGS["timm"].build(0).clip.visual.trunk
    assert trunk.reg_token.shape == (1, 2, 64)
    assert trunk.pos_embed.shape == (1, 4 + 3, 64)
    for values in (trunk.cls_token, trunk.reg_token):
        assert float(values.detach().std()) == pytest.approx(64**-0.5, rel=0.3)
    assert (trunk.pos_embed[0, :3].std(-1) > 0.01).all()


def test_the_sequence_is_class_tokens_then_patches() -> None:
    for name in ("small", "timm"):
        encoder = CONFIGS[name].build(0).eval()
        visual = encoder.clip.visual
        block = (visual.trunk.blocks if hasattr(visual, "trunk") else visual.transformer.resblocks)[0]
        seen: list[torch.Tensor] = []
        block.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        image = torch.randn(1, 3, 32, 32)
        encoder.encode_image(image)
        image[..., :16, 16:] += 1  # the second patch
        encoder.encode_image(image)
        moved = (seen[1] - seen[0]).abs().amax(-1)[0]
        assert moved.shape == (3 + 4,)
        assert (moved > 0).tolist() == [False, False, False, False, True, False, False]


def test_patch_dropout_spares_the_class_tokens() -> None:
    cfg = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 64, "patch_size": 16, "width": 64, "layers": 1, "patch_dropout": 0.5},
        "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
    }
    clip = custom_clip(cfg).train()
    give_tokens(clip, MULTI, cfg)
    states = clip.visual._embeds(torch.zeros(2, 3, 64, 64))
    assert states.shape == (2, 3 + 8, 64)
    expected = clip.visual.ln_pre(clip.visual.class_embedding + clip.visual.positional_embedding[:3])
    torch.testing.assert_close(states[:, :3], expected.expand(2, -1, -1))


CFG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 64, "layers": 1},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
}


@pytest.mark.parametrize(
    ("section", "fields", "message"),
    [
        ("vision_cfg", {"pool_type": "avg"}, "its pooling is 'avg'"),
        ("vision_cfg", {"attentional_pool": True}, "it ends in an attention pool"),
        ("vision_cfg", {"layers": (1, 1, 1, 1), "width": 16}, "the image tower is a ModifiedResNet"),
        ("vision_cfg", {"timm_model_name": "test_resnet"}, "timm's test_resnet cannot .* it is a ResNet"),
        ("vision_cfg", {"timm_model_name": "test_vit3", "timm_pool": "map"}, "test_vit3 .* ends in an attention pool"),
        (
            "vision_cfg",
            {"timm_model_name": "deit_tiny_distilled_patch16_224", "timm_pool": "token"},
            "it is a Vis.*led",
        ),
        ("text_cfg", {"embed_cls": True, "output_tokens": True}, r"\(CoCa\)"),
        ("text_cfg", {"pool_type": "last", "no_causal_mask": True}, "its pooling is 'last'"),
    ],
)
def test_towers_that_cannot_have_several_say_why(section: str, fields: dict, message: str) -> None:
    cfg = {**CFG, section: {**CFG[section], **fields}}
    clip = custom_clip(cfg)
    with pytest.raises(UserError, match=message) as caught:
        give_tokens(clip, Multi(sub_dim=8, num_tokens=2), cfg)
    assert str(caught.value).startswith("model.multi")
    assert "\n" not in str(caught.value)


def test_a_published_architecture_with_an_attention_pool_is_refused() -> None:
    with pytest.raises(UserError, match=r"vit_pe_core_tiny_patch16_384 cannot .* it ends in an attention pool"):
        OpenClip(name="PE-Core-T-16-384", multi=Multi(num_tokens=2)).build(0)


def test_open_clips_models_by_name() -> None:
    assert "ViT-S-32-alt" in open_clip.list_models()
    encoder = OpenClip(name="ViT-S-32-alt", multi=Multi(sub_dim=16, num_tokens=4)).build(0)
    assert (encoder.embed_dim, encoder.num_tokens) == (64, 4)
    assert encoder.model_cfg["embed_dim"] == 16
    assert encoder.clip.text.attention == "bidirectional"


def test_one_token_of_the_models_own_width_is_the_default() -> None:
    encoder = replace(SMALL, multi=Multi(num_tokens=1)).build(0)
    assert (encoder.embed_dim, encoder.num_tokens) == (24, 1)
    assert Multi() == Multi(None, 16, "auto")
    assert SMALL.build(0).num_tokens == 1


@pytest.mark.parametrize("part", ["visual", "text"])
def test_features_between_blocks_are_refused_in_a_line(part: str) -> None:
    tower = getattr(small().build(0).clip, part)
    with pytest.raises(UserError, match="several class tokens do not give the features between"):
        tower.forward_intermediates(torch.zeros(1, 3, 32, 32))
