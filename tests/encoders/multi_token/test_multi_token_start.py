"""Towers with several class tokens begin with the weights of towers with one: token 0 keeps its function."""

import json
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import MT5Config

from tests.encoders.multi_token.towers import SMALL, TEXTS, TIMM_VIT, custom_clip, hugging_face_cfg, tokens_of
from troth.encoders import ContrastiveModel, Multi, OpenClip, export_open_clip
from troth.encoders.multi_token import give_tokens
from troth.errors import UserError
from troth.geometry import Sphere


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, nn.Module]:
    """A folder of open_clip's with weights, and the encoder they are of."""
    folder = tmp_path_factory.mktemp("exported") / "model"
    encoder = SMALL.build(3).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():  # as if trained
            parameter += 0.01 * torch.randn(parameter.shape)
    export_open_clip(ContrastiveModel(encoder, Sphere()), folder)
    return f"local-dir:{folder}", encoder.double()


def pictures(size: int = 32) -> Tensor:
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_one_token_of_open_clips_towers_is_the_original(exported: tuple[str, nn.Module]) -> None:
    name, single = exported
    encoder = OpenClip(name=name, multi=Multi(num_tokens=1)).build(9).double().eval()
    assert encoder.clip.text.attention == "causal"
    assert encoder.pretrained_scale == pytest.approx(1 / 0.07)
    assert encoder.embed_dim == 24
    ids = single.tokenize(TEXTS)
    for ours, theirs in zip(encoder(pictures(), ids), single(pictures(), ids), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_the_first_of_several_causal_tokens_is_the_original(exported: tuple[str, nn.Module]) -> None:
    name, single = exported
    encoder = OpenClip(name=name, multi=Multi(num_tokens=4)).build(9).double().eval()
    ids = single.tokenize(TEXTS)
    found = tokens_of(encoder.encode_text(ids), 4)
    torch.testing.assert_close(found[:, 0], single.encode_text(ids), rtol=1e-10, atol=1e-10)
    assert (found[:, 1:] - found[:, :1]).abs().amax(-1).min() > 1e-3


@pytest.mark.parametrize("pooling", [{}, {"pool_type": "eos", "eos_id": 49407}])
def test_a_trained_text_tower_that_is_not_causal_is_not_changed_unasked(pooling: dict) -> None:
    cfg = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 64, "layers": 1, "head_width": 64},
        "text_cfg": {"context_length": 12, "width": 64, "heads": 1, "layers": 2, "no_causal_mask": True, **pooling},
    }
    for num_tokens in (1, 3):
        with pytest.raises(UserError, match=r"^model\.multi\.text_attention: .* both directions") as caught:
            give_tokens(custom_clip(cfg), Multi(num_tokens=num_tokens), dict(cfg), "everything")
        assert 'say "bidirectional"' in str(caught.value)
        for asked, trained in (("bidirectional", "everything"), ("auto", "nothing")):
            clip = custom_clip(cfg)
            give_tokens(clip, Multi(num_tokens=num_tokens, text_attention=asked), dict(cfg), trained)
            assert clip.text.attention == "bidirectional"


def test_what_is_kept_and_what_is_drawn(exported: tuple[str, nn.Module]) -> None:
    name, single = exported
    encoder = OpenClip(name=name, multi=Multi(num_tokens=4)).build(9).double()
    visual, text = encoder.clip.visual, encoder.clip.text
    assert torch.equal(visual.class_embedding[0], single.clip.visual.class_embedding)
    kept = visual.added["positional_embedding"].kept(len(visual.positional_embedding))
    assert kept.tolist() == [0, 4, 5, 6, 7]
    assert torch.equal(visual.positional_embedding[kept], single.clip.visual.positional_embedding)
    assert torch.equal(text.positional_embedding[:12], single.clip.positional_embedding)
    assert torch.equal(visual.proj, single.clip.visual.proj)
    assert torch.equal(text.text_projection, single.clip.text_projection)
    again = OpenClip(name=name, multi=Multi(num_tokens=4)).build(9).double()
    other = OpenClip(name=name, multi=Multi(num_tokens=4)).build(10).double()
    assert torch.equal(visual.class_embedding, again.clip.visual.class_embedding)
    assert not torch.equal(visual.class_embedding, other.clip.visual.class_embedding)
    narrow = OpenClip(name=name, multi=Multi(8, 4)).build(9)
    assert narrow.clip.visual.proj.shape == narrow.clip.text.text_projection.shape == (64, 8)
    asked = OpenClip(name=name, multi=Multi(8, 4, "bidirectional")).build(9)
    assert asked.clip.text.attention == "bidirectional"
    assert asked.architecture != narrow.architecture


def test_a_timm_class_token_tower_is_the_original(tmp_path: Path) -> None:
    trunk = timm.create_model("test_vit", num_classes=0)
    with torch.no_grad():
        for parameter in trunk.parameters():
            parameter += 0.02 * torch.randn(parameter.shape)
    path = tmp_path / "tower.safetensors"
    save_file(trunk.state_dict(), path)
    config = replace(TIMM_VIT, image_size=160, pretrained=str(path), multi=Multi(num_tokens=1))
    encoder = config.build(0).double().eval()
    pooled = trunk.double().eval()(pictures(160))
    expected = pooled @ encoder.clip.visual.head.proj.weight.T
    torch.testing.assert_close(encoder.encode_image(pictures(160)), expected, rtol=1e-10, atol=1e-10)
    several = replace(config, multi=Multi(8, 3)).build(0).clip.visual.trunk.double()
    assert torch.equal(several.cls_token, trunk.cls_token)
    assert torch.equal(several.pos_embed[:, [0, *range(3, 103)]], trunk.pos_embed)
    assert float(several.reg_token.detach().std()) == pytest.approx(1 / 8, rel=0.3)


@pytest.mark.parametrize("given", [{}, {"class_token": False, "global_pool": "avg"}, {"global_pool": "avg"}])
def test_timms_trunks_give_what_they_have(given: dict) -> None:
    cfg = {
        "embed_dim": 24,
        "vision_cfg": {"timm_model_name": "test_vit", "timm_pool": "avg", "image_size": 160},
        "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
    }
    clip = custom_clip(cfg)
    single = clip.visual.trunk = timm.create_model("test_vit", num_classes=0, **given)
    give_tokens(clip, Multi(num_tokens=3), cfg, "everything")
    trunk = clip.visual.trunk
    own = 0 if given.get("class_token") is False else 1
    assert torch.equal(trunk.pos_embed[:, 3:], single.pos_embed[:, own:])
    assert torch.equal(trunk.blocks[-1].mlp.fc2.weight, single.blocks[-1].mlp.fc2.weight)
    norm = single.norm if isinstance(single.norm, nn.LayerNorm) else single.fc_norm
    assert torch.equal(trunk.norm.weight, norm.weight)
    assert clip.visual(torch.randn(2, 3, 160, 160)).shape == (2, 72)
    assert set(clip.visual.added) == {"trunk.reg_token", "trunk.pos_embed"} | (
        {"trunk.cls_token"} if not own else set()
    )


@pytest.mark.parametrize(
    ("model", "given"),
    [
        ("test_vit2", {}),
        ("test_vit2", {"class_token": True, "global_pool": "token", "reg_tokens": 2}),
        ("eva02_tiny_patch14_224", {"num_reg_tokens": 2, "global_pool": "token"}),
    ],
    ids=["no class token", "class token", "eva"],
)
def test_registers_of_a_trunks_own_stay_behind_the_class_tokens(model: str, given: dict) -> None:
    size = 28 if model.startswith("eva") else 160
    cfg = {
        "embed_dim": 24,
        "vision_cfg": {"timm_model_name": model, "timm_pool": "token", "timm_proj": None, "image_size": size},
        "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
    }

    def given_tokens(num_tokens: int) -> tuple[nn.Module, nn.Module]:
        own = {**cfg, "vision_cfg": {**cfg["vision_cfg"], "timm_model_name": "test_vit", "image_size": 160}}
        clip = custom_clip(own)
        single = timm.create_model(model, num_classes=24, **given).eval()
        if size == 28:
            single.set_input_size(28)
        with torch.no_grad():
            for parameter in single.parameters():
                parameter += 0.02 * torch.randn(parameter.shape)
        clip.visual.trunk = single
        give_tokens(clip, Multi(num_tokens=num_tokens), own | {"vision_cfg": cfg["vision_cfg"]}, "everything")
        return clip.visual.double().eval(), single.double()

    visual, single = given_tokens(1)
    if single.cls_token is not None:
        torch.testing.assert_close(visual(pictures(size)), single(pictures(size)), rtol=1e-9, atol=1e-9)
    visual, single = given_tokens(3)
    own, registers = int(single.cls_token is not None), single.reg_token.shape[1]
    trunk = visual.trunk
    assert torch.equal(trunk.reg_token[:, 2:], single.reg_token)
    assert float(trunk.reg_token[:, :2].detach().std()) == pytest.approx(trunk.embed_dim**-0.5, rel=0.3)
    kept = visual.added["trunk.pos_embed"].kept(trunk.pos_embed.shape[1])
    assert torch.equal(trunk.pos_embed[:, kept], single.pos_embed)
    assert visual.added["trunk.reg_token"].kept(2 + registers).tolist() == list(range(2, 2 + registers))
    assert kept.tolist() == [*range(own), *range(3, trunk.pos_embed.shape[1])]
    # The features are those of the class tokens: a register of its own is seen by them and is not read.
    assert visual(pictures(size)).shape == (3, 72)
    states = trunk.forward_features(pictures(size))
    expected = torch.cat([trunk.head(trunk.fc_norm(states[:, k])) for k in range(3)], dim=1)
    torch.testing.assert_close(visual(pictures(size)), expected)


@pytest.mark.parametrize(("model", "size"), [("eva02_tiny_patch14_224", 28), ("test_vit", 32)])
def test_a_trunk_that_projects_itself_goes_on_doing_so(model: str, size: int) -> None:
    cfg = {
        "embed_dim": 24,
        "vision_cfg": {"timm_model_name": model, "timm_pool": "token", "timm_proj": None, "image_size": size},
        "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
    }
    clip = custom_clip(cfg)
    clip.visual.set_input_size(size)
    with torch.no_grad():
        clip.visual.trunk.cls_token.normal_()
    expected = clip.double().visual(pictures(size))
    give_tokens(clip, Multi(num_tokens=1), cfg, "everything")
    torch.testing.assert_close(clip.double().eval().visual(pictures(size)), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("pooler", ["cls_pooler", "cls_last_hidden_state_pooler"])
def test_berts_class_token_is_the_original(tmp_path: Path, kind: str, pooler: str) -> None:
    cfg = hugging_face_cfg(tmp_path, kind, hf_pooler_type=pooler)
    clip = custom_clip(cfg).double()
    pad = clip.text.config.pad_token_id
    ids = torch.tensor([[2, 10, 11, 12, 3, pad, pad], [2, 20, 3, pad, pad, pad, pad]])
    expected = clip.text(ids)
    assert expected.shape == (2, 24)
    give_tokens(clip, Multi(num_tokens=1), cfg, "everything")
    torch.testing.assert_close(clip.text(ids), expected, rtol=1e-10, atol=1e-10)


def test_hugging_faces_towers_from_a_file_of_weights(tmp_path: Path) -> None:
    cfg = hugging_face_cfg(tmp_path / "bert")
    clip = custom_clip(cfg, seed=5)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": cfg, "preprocess_cfg": {"size": 32}}))
    save_file(clip.state_dict(), folder / "open_clip_model.safetensors")
    encoder = OpenClip(name=f"local-dir:{folder}", multi=Multi(num_tokens=1)).build(0).eval()
    ids = torch.tensor([[2, 10, 11, 12, 3, 0, 0]])
    torch.testing.assert_close(encoder.encode_text(ids), clip.encode_text(ids))
    several = OpenClip(name=f"local-dir:{folder}", multi=Multi(num_tokens=3)).build(0)
    table = several.clip.text.transformer.embeddings.position_embeddings
    assert torch.equal(table.weight[:14], clip.text.transformer.embeddings.position_embeddings.weight)
    with pytest.raises(UserError, match=r"model\.multi\.text_attention: a Hugging Face"):
        OpenClip(name=f"local-dir:{folder}", multi=Multi(text_attention="causal")).build(0)


def test_towers_without_absolute_positions_are_refused(tmp_path: Path) -> None:
    sizes = {"vocab_size": 50, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    MT5Config(**sizes).save_pretrained(tmp_path)
    cfg = hugging_face_cfg(tmp_path / "bert", hf_pooler_type="mean_pooler")
    cfg["text_cfg"]["hf_model_name"] = str(tmp_path)
    clip = custom_clip(cfg)
    with pytest.raises(UserError, match="mt5 has no table of absolute positions"):
        give_tokens(clip, Multi(num_tokens=2), cfg)


def test_timm_weights_and_open_clips_towers_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    first, again = (replace(TIMM_VIT, multi=Multi(8, 3)).build(4) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    for one, other in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    assert isinstance(first.clip, open_clip.CustomTextCLIP)
