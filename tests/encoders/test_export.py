"""An exported model is the same model for open_clip."""

from __future__ import annotations

import json

import open_clip
import pytest
import torch
from PIL import Image

from tests.encoders.test_models import TINY, TINY_TIMM
from troth.encoders import ContrastiveModel, Heads, OpenClip, ScaleConfig, Timm, export_open_clip
from troth.encoders.towers import quiet_open_clip
from troth.errors import UserError
from troth.geometry import Sphere

CAPTIONS = ["a red square on white", "Zwei Füße", "x"]


@pytest.mark.parametrize(
    ("config", "with_bias"),
    [(TINY, False), (TINY, True), (TINY_TIMM, False), (OpenClip(name="ViT-S-32-alt"), False)],
    ids=["small", "small with bias", "timm", "stock"],
)
def test_open_clip_loads_the_export_and_encodes_identically(config, with_bias, tmp_path):
    model = ContrastiveModel(config.build(4), Sphere(), ScaleConfig(init=33.0), with_bias=with_bias).eval()
    model.to(memory_format=torch.channels_last)
    folder = export_open_clip(model, tmp_path / "deep" / "export")
    with quiet_open_clip():
        theirs, train_transform, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
        tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    theirs.eval()
    # The layout is no part of an export, and convolutions of two layouts need not agree to the last bit.
    model.to(memory_format=torch.contiguous_format)
    picture = Image.effect_noise((300, 240), 90).convert("RGB")
    images = torch.stack([transform(picture), transform(picture.rotate(90))])
    assert torch.equal(transform(picture), model.encoder.image_transform(train=False)(picture))
    assert train_transform(picture).shape == images.shape[1:]
    tokens = tokenizer(CAPTIONS)
    assert torch.equal(tokens, model.encoder.tokenize(CAPTIONS))
    with torch.no_grad():
        assert torch.equal(theirs.encode_image(images, normalize=True), model.embed_image(images))
        assert torch.equal(theirs.encode_text(tokens, normalize=True), model.embed_text(tokens))
    assert torch.equal(theirs.logit_scale, model.log_scale)
    if with_bias:
        assert torch.equal(theirs.logit_bias, model.bias)
    else:
        assert theirs.logit_bias is None


def test_an_earlier_export_is_replaced_and_anything_else_refused(tmp_path):
    model = ContrastiveModel(TINY.build(0), Sphere())
    folder = tmp_path / "export"
    folder.mkdir()
    export_open_clip(model, folder)
    first = (folder / "open_clip_model.safetensors").read_bytes()
    export_open_clip(ContrastiveModel(TINY.build(1), Sphere()), folder)
    second = (folder / "open_clip_model.safetensors").read_bytes()
    assert first != second
    (folder / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="other things than an earlier export"):
        export_open_clip(model, folder)
    assert (folder / "open_clip_model.safetensors").read_bytes() == second
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export"], "nothing half-written stays"
    with pytest.raises(UserError, match="not a folder"):
        export_open_clip(model, folder / "thesis.txt")


def test_a_failed_export_leaves_nothing_and_keeps_the_old_one(tmp_path, monkeypatch):
    model = ContrastiveModel(TINY.build(0), Sphere())
    folder = export_open_clip(model, tmp_path / "export")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fails(*_, **__):
        raise RuntimeError("no such architecture\nat all")

    monkeypatch.setattr(open_clip, "create_model", fails)
    with pytest.raises(UserError, match="cannot rebuild this model: no such architecture at all"):
        export_open_clip(ContrastiveModel(TINY.build(1), Sphere()), folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_the_configuration_says_where_it_comes_from(tmp_path):
    folder = export_open_clip(ContrastiveModel(TINY.build(0), Sphere()), tmp_path / "export")
    config = json.loads((folder / "open_clip_config.json").read_text())
    assert config["exported_by"] == "troth"
    assert set(config["files"]) == {path.name for path in folder.iterdir()}


def test_what_open_clip_has_no_form_for_is_refused(tmp_path):
    heads = ContrastiveModel(Heads(hidden_dim=16).build(0), Sphere())
    with pytest.raises(UserError, match="models of kind open_clip, timm and small can be exported"):
        export_open_clip(heads, tmp_path / "heads")
    flat = ContrastiveModel(TINY.build(0), Sphere())
    flat.geometry = type("Flat", (), {"kind": "euclidean"})()
    with pytest.raises(UserError, match="lives on 'euclidean'"):
        export_open_clip(flat, tmp_path / "flat")
    resized = Timm(name="test_vit", image_size=32, embed_dim=32, text_width=64, text_layers=1, text_heads=1)
    with pytest.raises(UserError, match="at its own image size"):
        export_open_clip(ContrastiveModel(resized.build(0), Sphere()), tmp_path / "resized")
    assert list(tmp_path.iterdir()) == []
