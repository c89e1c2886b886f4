"""Building towers: shapes, seeds, the global random state, and what a user can name wrongly."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import save_file

from troth.encoders import (
    ContrastiveModel,
    Heads,
    ModelConfig,
    OpenClip,
    ScaleConfig,
    Small,
    Timm,
    export_open_clip,
    hash_module,
)
from troth.errors import UserError
from troth.geometry import Sphere

TINY = Small(image_size=32, patch_size=16, embed_dim=32, vision_width=64, vision_layers=1, text_width=64, text_layers=1)
TINY_TIMM = Timm(
    name="test_resnet", image_size=32, embed_dim=32, text_width=64, text_layers=1, text_heads=1, context_length=16
)


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        TINY_TIMM,
        # a tower with a hidden layer behind its pooling, which open_clip's own projection does not fit
        Timm(name="mobilenetv3_small_050", image_size=32, embed_dim=32, text_width=64, text_layers=1, text_heads=1),
        Timm(name="test_vit", image_size=32, embed_dim=32, text_width=64, text_layers=1, text_heads=1),
    ],
    ids=lambda config: getattr(config, "name", config.kind),
)
def test_towers_encode_pictures_and_captions(config):
    encoder = config.build(0).eval()
    image = encoder.image_transform(train=False)(Image.new("RGB", (50, 40), "red"))
    assert image.shape == (3, 32, 32)
    augmented = encoder.image_transform(train=True)(Image.new("RGB", (50, 40), "red"))
    assert augmented.shape == (3, 32, 32)
    tokens = encoder.tokenize(["a red square", "nothing"])
    assert tokens.dtype == torch.int64
    assert tokens.shape == (2, config.context_length)
    image_features, text_features = encoder(torch.stack([image, augmented]), tokens)
    assert image_features.shape == text_features.shape == (2, encoder.embed_dim) == (2, 32)
    assert not torch.allclose(text_features[0], text_features[1])
    norms = image_features.norm(dim=-1)
    assert not torch.allclose(norms, torch.ones_like(norms)), "features must be raw"
    assert not any("logit_scale" in name for name, _ in encoder.named_parameters())


@pytest.mark.parametrize("config", [TINY, TINY_TIMM, Heads(hidden_dim=16)], ids=lambda config: config.kind)
def test_weights_come_from_the_seed_and_leave_the_global_generator_alone(config):
    before = torch.get_rng_state()
    first, again, other = config.build(1), config.build(1), config.build(2)
    assert torch.equal(before, torch.get_rng_state())
    assert hash_module(first) == hash_module(again)
    assert hash_module(first) != hash_module(other)


def test_heads_take_features_and_say_so():
    heads = Heads(embed_dim=8, hidden_dim=16, depth=2, image_feature_dim=5, text_feature_dim=7).build(0)
    image, text = heads(torch.randn(3, 5), torch.randn(3, 7))
    assert image.shape == text.shape == (3, 8)
    with pytest.raises(UserError, match="not pictures"):
        heads.image_transform(train=False)
    with pytest.raises(UserError, match="not tokens"):
        _ = heads.tokenize
    default = Heads().build(0)
    assert (default.image_feature_dim, default.text_feature_dim) == (1280, 384)


def test_a_timm_encoder_tells_heads_its_dimension():
    assert Heads(image_encoder="timm:test_resnet").build(0).image_feature_dim == 96


def test_open_clip_by_name_takes_a_file_of_weights_and_its_scale(tmp_path):
    folder = tmp_path / "export"
    model = ContrastiveModel(TINY.build(3), Sphere(), ScaleConfig(init=42.0))
    export_open_clip(model, folder)
    again = OpenClip(name=f"local-dir:{folder}").build(9)
    assert hash_module(again) == hash_module(model.encoder)
    assert again.pretrained_scale == pytest.approx(42.0)
    assert float(ContrastiveModel(again, Sphere()).scale.detach()) == pytest.approx(42.0)
    assert float(ContrastiveModel(again, Sphere(), ScaleConfig(init=7.0)).scale.detach()) == pytest.approx(7.0)


def test_timm_weights_from_a_file(tmp_path):
    donor = TINY_TIMM.build(5)
    path = tmp_path / "tower.safetensors"
    save_file(dict(donor.clip.visual.trunk.state_dict()), path)
    config = Timm(**{**TINY_TIMM.__dict__, "pretrained": str(path)})
    taken = config.build(6)
    assert hash_module(taken.clip.visual.trunk) == hash_module(donor.clip.visual.trunk)
    assert hash_module(taken) != hash_module(donor)
    save_file({"other": torch.zeros(2)}, path)
    with pytest.raises(UserError, match="does not hold this tower's weights"):
        config.build(0)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match="cannot read weights"):
        config.build(0)


MISTAKES = [
    (OpenClip(name="ViT-B-31"), "model.name: open_clip has no model 'ViT-B-31' (did you mean ViT-B-32"),
    (OpenClip(name="ViT-B-32", pretrained="openia"), "did you mean openai?"),
    (OpenClip(name="ViT-B-32", pretrained="openai"), "use ViT-B-32-quickgelu"),
    (OpenClip(name="ViT-B-32", pretrained="no/such/file.pt"), "model.pretrained: there is no weights file"),
    (OpenClip(name="local-dir:no/such/folder"), "local-dir: takes a folder with open_clip_config.json"),
    (OpenClip(name="local-dir:x", pretrained="openai"), "open_clip_config.json"),
    (Timm(name="resnet81"), "model.name: timm has no model 'resnet81' (did you mean resnet18"),
    (Timm(name="test_resnet", pretrained="r160_in1K_"), "did you mean r160_in1k"),
    (Timm(name="resnet18", pretrained="missing.pth"), "there is no weights file 'missing.pth'"),
    (Heads(image_encoder="efficientnet-lite7"), "there is no frozen image encoder 'efficientnet-lite7'"),
    (Heads(text_encoder="no/such"), "there is no frozen text encoder 'no/such'"),
]


@pytest.mark.parametrize(("config", "message"), MISTAKES, ids=[message for _, message in MISTAKES])
def test_a_wrong_name_is_one_line_with_its_remedy(config, message):
    with pytest.raises(UserError) as caught:
        config.build(0)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_of_another_model_are_refused(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save({"visual.conv1.weight": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="of ViT-S-32-alt cannot be loaded"):
        OpenClip(name="ViT-S-32-alt", pretrained=str(path)).build(0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "small", "image_size": 60}, "multiple of patch_size"),
        ({"kind": "small", "text_width": 100}, "text_width must be a multiple of 64"),
        ({"kind": "small", "widht": 64}, "widht"),
        ({"kind": "timm", "text_width": 100}, "multiple of text_heads"),
        ({"kind": "heads", "dropout": 1.0}, "less than 1"),
        ({"kind": "heads", "depth": -1}, "greater than or equal to 0"),
        ({"kind": "vit"}, "'open_clip', 'timm', 'small', 'heads'"),
    ],
)
def test_a_wrong_field_is_refused_when_the_recipe_is_read(fields, message):
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(ModelConfig).validate_python(fields)
    assert message in str(caught.value)


def test_a_copy_has_weights_of_its_own_and_shares_the_tokeniser():
    encoder = TINY.build(0)
    _ = encoder.tokenizer
    twin = copy.deepcopy(encoder)
    assert twin.tokenizer is encoder.tokenizer
    assert hash_module(twin) == hash_module(encoder)
    with torch.no_grad():
        twin.clip.text_projection.add_(1.0)
    assert hash_module(twin) != hash_module(encoder)
    assert twin.tokenize(["a"]).shape == (1, 32)


def test_building_leaves_logging_alone(tmp_path, monkeypatch):
    # open_clip logs through the root logger, which would install a handler there for the whole process
    root = logging.getLogger()
    folder = export_open_clip(ContrastiveModel(TINY.build(0), Sphere()), tmp_path / "export")
    monkeypatch.setattr(root, "handlers", [])
    OpenClip(name=f"local-dir:{folder}").build(0)
    assert root.handlers == []
    assert root.isEnabledFor(logging.WARNING)
