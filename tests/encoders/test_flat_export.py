"""A folder of a flat model gives the same model again, from nothing but its files."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.encoders.test_models import TINY, TINY_TIMM
from tests.encoders.test_tower_groups import hugging_face
from troth.encoders import (
    ContrastiveModel,
    FlatClip,
    Heads,
    LoRA,
    OpenClip,
    ScaleConfig,
    Timm,
    Towers,
    TowerTraining,
    apply_towers,
    export_flat,
    export_open_clip,
    has_open_clip_form,
    load_export,
)
from troth.encoders.towers import quiet_open_clip
from troth.errors import UserError
from troth.geometry import Oblique, Sphere

FOUR = Oblique(sub_dim=8, num_spheres=4)
RESIZED = Timm(name="test_vit", image_size=32, embed_dim=32, text_width=64, text_layers=1, text_heads=1)
STOCK = OpenClip(name="ViT-S-32-alt", image_size=64, context_length=20)
CAPTIONS = ["a red square on white", "Zwei Füße", "x"]
RECORD, WEIGHTS = "troth_export.json", "model.safetensors"


def trained(config, geometry=FOUR, **settings) -> ContrastiveModel:
    return ContrastiveModel(config.build(4), geometry, ScaleConfig(init=3.0), **settings).eval()


@torch.no_grad()
def assert_same_scores(model: ContrastiveModel, folder: Path) -> None:
    """The loaded model scores pictures and captions, from the pixel and the letter on, as the trained one does."""
    loaded, preprocess, tokenizer = load_export(folder)
    picture = Image.effect_noise((90, 70), 90).convert("RGB")
    transform, tokens = model.encoder.image_transform(train=False), tokenizer(CAPTIONS)
    assert torch.equal(preprocess(picture), transform(picture))
    assert torch.equal(tokens, model.encoder.tokenize(CAPTIONS))
    images = torch.stack([transform(picture), transform(picture.rotate(90))])
    flat = FlatClip.of(model)
    assert torch.equal(loaded.encode_image(images), flat.encode_image(images))
    assert torch.equal(loaded.encode_text(tokens), flat.encode_text(tokens))
    logits = model.scale * model.geometry.similarity(model.embed_image(images), model.embed_text(tokens))
    if model.bias is not None:
        logits += model.bias
    torch.testing.assert_close(loaded.get_logits(images, tokens)[0], logits, rtol=1e-5, atol=1e-5)
    assert not loaded.training


@pytest.mark.parametrize(
    ("config", "geometry", "with_bias"),
    [
        (TINY, FOUR, False),
        (TINY, Oblique(sub_dim=16, num_spheres=2), True),
        (TINY, Sphere(), False),
        (TINY_TIMM, FOUR, False),
        (RESIZED, FOUR, False),
        (STOCK, Oblique(sub_dim=64, num_spheres=4), False),
    ],
    ids=["small", "small with bias", "sphere", "timm", "timm at another size", "stock"],
)
def test_the_scores_are_the_same_after_a_round_trip(config, geometry, with_bias, tmp_path):
    model = trained(config, geometry, with_bias=with_bias)
    model.to(memory_format=torch.channels_last)
    modes = [part.training for part in model.modules()]
    folder = export_flat(model, config, tmp_path / "deep" / "export")
    assert [part.training for part in model.modules()] == modes
    assert {path.name for path in folder.iterdir()} == {RECORD, WEIGHTS}
    # The layout is no part of an export, and convolutions of two layouts need not agree to the last bit.
    model.to(memory_format=torch.contiguous_format)
    assert_same_scores(model, folder)


def test_the_inner_product_of_spheres_comes_back_to_the_last_bit(tmp_path):
    model = trained(TINY)
    loaded = load_export(export_flat(model, TINY, tmp_path / "export")).model
    with torch.no_grad():
        images, tokens = torch.randn(3, 3, 32, 32), model.encoder.tokenize(CAPTIONS)
        ours = model.geometry.similarity(model.embed_image(images), model.embed_text(tokens))
        # the root of four spheres and their number are powers of two, which round nothing
        assert torch.equal(4 * loaded.encode_image(images) @ loaded.encode_text(tokens).T, ours)


def test_weights_that_training_began_with_are_not_asked_for_again(tmp_path):
    torch.save(TINY_TIMM.build(1).clip.visual.trunk.state_dict(), tmp_path / "timm.pt")
    config = replace(TINY_TIMM, pretrained=str(tmp_path / "timm.pt"))
    model = trained(config)
    model.encoder.preprocess_cfg["mean"] = (0.1, 0.2, 0.3)  # as published weights may bring
    folder = export_flat(model, config, tmp_path / "export")
    (tmp_path / "timm.pt").unlink()
    assert json.loads((folder / RECORD).read_text())["model"]["pretrained"] is None
    assert_same_scores(model, folder)


def test_a_folder_that_training_began_with_is_not_asked_for_again(tmp_path):
    begun = ContrastiveModel(TINY.build(1), Sphere(), with_bias=True)
    export_open_clip(begun, tmp_path / "begun")
    config = OpenClip(name=f"local-dir:{tmp_path / 'begun'}", context_length=16)
    model = trained(config)
    folder = export_flat(model, config, tmp_path / "export")
    shutil.rmtree(tmp_path / "begun")
    assert_same_scores(model, folder)


def test_a_hugging_face_text_tower_brings_its_configuration_and_tokeniser(tmp_path):
    begun = ContrastiveModel(hugging_face(tmp_path), Sphere())
    _ = begun.encoder.tokenizer
    export_open_clip(begun, tmp_path / "begun")
    config = OpenClip(name=f"local-dir:{tmp_path / 'begun'}", context_length=12)
    model = trained(config)
    folder = export_flat(model, config, tmp_path / "export")
    for name in ("begun", "bert"):
        shutil.rmtree(tmp_path / name)
    assert_same_scores(model, folder)


def test_adapters_are_merged(tmp_path):
    model = trained(RESIZED)
    apply_towers(model, Towers(image=TowerTraining(lora=LoRA(rank=2))), 0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B" in name:
                parameter.normal_(std=0.1)
    folder = export_flat(model.eval(), RESIZED, tmp_path / "export")
    assert not any("lora" in name for name in load_file(folder / WEIGHTS))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        ours, theirs = FlatClip.of(model).encode_image(images), load_export(folder).model.encode_image(images)
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)
    assert any(".lora_A" in name for name, _ in model.named_parameters()), "the trained model keeps its adapters"


def test_either_form_replaces_the_other_and_nothing_else_is_touched(tmp_path):
    oblique, sphere = trained(TINY), trained(TINY, Sphere())
    assert not has_open_clip_form(oblique)
    assert has_open_clip_form(sphere)
    folder = export_open_clip(sphere, tmp_path / "export")
    export_flat(oblique, TINY, folder)
    assert {path.name for path in folder.iterdir()} == {RECORD, WEIGHTS}
    before = (folder / WEIGHTS).read_bytes()
    (folder / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="other things than an earlier export"):
        export_flat(oblique, TINY, folder)
    assert (folder / WEIGHTS).read_bytes() == before
    (folder / "thesis.txt").unlink()
    with pytest.raises(UserError, match=r"the model cannot be built again: .*Missing key"):
        export_flat(oblique, replace(TINY, vision_layers=2), folder)
    assert (folder / WEIGHTS).read_bytes() == before
    export_open_clip(sphere, folder)
    with quiet_open_clip():
        open_clip.create_model(f"local-dir:{folder}")
    assert [path.name for path in tmp_path.iterdir()] == ["export"], "nothing half-written stays"


def test_a_model_that_comes_back_as_another_is_not_written(tmp_path):
    model = trained(TINY)
    model.encoder.clip.visual.ln_post = torch.nn.Sequential()  # passes on what comes; its weights are the old ones
    model.encoder.clip.visual.ln_post.weight = torch.nn.Parameter(torch.ones(64))
    model.encoder.clip.visual.ln_post.bias = torch.nn.Parameter(torch.zeros(64))
    with pytest.raises(UserError, match="the folder gives another model again: vectors differ by"):
        export_flat(model, TINY, tmp_path / "export")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_flat_is_refused(tmp_path):
    heads = Heads(hidden_dim=16, embed_dim=32)
    with pytest.raises(UserError, match="heads on frozen features"):
        export_flat(ContrastiveModel(heads.build(0), FOUR), heads, tmp_path / "heads")
    with pytest.raises(UserError, match="is none"):
        export_flat(trained(TINY, Oblique(8, 4, "geodesic")), TINY, tmp_path / "geodesic")
    assert list(tmp_path.iterdir()) == []


def test_damaged_and_foreign_folders_are_refused_in_one_line(tmp_path):
    folder = export_flat(trained(TINY), TINY, tmp_path / "export")
    record, weights = (folder / RECORD).read_text(), (folder / WEIGHTS).read_bytes()
    state = load_file(folder / WEIGHTS)

    def refused() -> str:
        with pytest.raises(UserError) as refusal:
            load_export(folder)
        assert "\n" not in str(refusal.value)
        assert str(refusal.value).startswith(str(folder))
        return str(refusal.value)

    def changed(**values: object) -> str:
        (folder / RECORD).write_text(json.dumps({**json.loads(record), **values}))
        return refused()

    (folder / WEIGHTS).write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    assert "model.safetensors is not as it was written" in refused()
    (folder / WEIGHTS).unlink()
    assert "model.safetensors is missing" in refused()
    (folder / WEIGHTS).write_bytes(weights)
    assert "form 2" in changed(form=2)
    assert "'../export/model.safetensors' is no file of the folder's own" in changed(
        files=["../export/model.safetensors"]
    )
    assert "ValidationError" in changed(geometry={"kind": "obliq"})
    assert "ValidationError" in changed(model={"kind": "small", "imagesize": 3})
    assert "Missing key" in changed(model=json.loads(record)["model"] | {"text_layers": 2})
    assert "cannot be built" in changed(preprocess_cfg=None)
    assert "the similarity of this model" in changed(geometry={"kind": "euclidean"})
    assert "need features of 36 dimensions" in changed(geometry={"kind": "oblique", "sub_dim": 9, "num_spheres": 4})
    (folder / RECORD).write_text(record[:-5])
    assert "troth_export.json is damaged" in refused()
    (folder / RECORD).write_text("[]")
    assert "troth_export.json is damaged" in refused()
    (folder / RECORD).unlink()
    assert "no troth_export.json here" in refused()
    save_file(state, folder / WEIGHTS)
    shutil.rmtree(folder)
    assert "name a folder that `troth export` wrote" in refused()
    export_open_clip(trained(TINY, Sphere()), folder)
    assert f"local-dir:{folder}" in refused()
