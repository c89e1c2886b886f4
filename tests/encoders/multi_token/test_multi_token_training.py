"""Towers with several class tokens learn as other towers do: groups, locks, adapters, decay, copies."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.encoders.multi_token.towers import MULTI, TIMM_VIT, custom_clip, hugging_face_cfg, small
from troth.encoders import (
    ContrastiveModel,
    LoRA,
    OpenClipEncoder,
    Towers,
    TowerTraining,
    apply_towers,
    hash_module,
    no_decay,
)
from troth.encoders.multi_token import give_tokens
from troth.encoders.tower_groups import tower_groups
from troth.geometry import Oblique

TIMM = replace(TIMM_VIT, multi=MULTI)


def hugging_face(folder: Path) -> OpenClipEncoder:
    cfg = hugging_face_cfg(folder, hf_pooler_type="mean_pooler")
    clip = custom_clip(cfg)
    clip.visual.preprocess_cfg = {"size": 32, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    multi = give_tokens(clip, MULTI, cfg)
    return OpenClipEncoder(clip, cfg, lambda: None, pretrained=False, multi=multi)


def learning(module: nn.Module) -> set[str]:
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


def test_groups_are_those_of_the_tower_with_one_token() -> None:
    encoder, single = small().build(0), replace(small(), multi=None).build(0)
    assert tower_groups(encoder, "image") == tower_groups(single, "image")
    text = [[name.replace("clip.text.", "clip.") for name in group] for group in tower_groups(encoder, "text")]
    assert [sorted(group) for group in text] == [sorted(group) for group in tower_groups(single, "text")]
    first = tower_groups(encoder, "image")[0]
    assert {"clip.visual.class_embedding", "clip.visual.positional_embedding"} <= set(first)
    assert "clip.text.positional_embedding" in tower_groups(encoder, "text")[0]


def test_timms_added_tokens_belong_to_its_stem() -> None:
    groups = tower_groups(TIMM.build(0), "image")
    single = tower_groups(replace(TIMM, multi=None).build(0), "image")
    assert set(groups[0]) == {*single[0], "clip.visual.trunk.reg_token"}
    assert groups[1:] == single[1:]


def test_hugging_faces_added_positions_belong_to_its_embeddings(tmp_path: Path) -> None:
    groups = tower_groups(hugging_face(tmp_path), "text")
    assert "clip.text.transformer.embeddings.position_embeddings.weight" in groups[0]
    assert groups[-1] == ["clip.text.proj.weight"]


@pytest.mark.parametrize("unlocked", [1, 2])
def test_locks_leave_the_last_groups(unlocked: int) -> None:
    encoder = small().build(0)
    model = ContrastiveModel(encoder, Oblique(sub_dim=8, num_spheres=3))
    lock = TowerTraining(locked=True, unlocked_groups=unlocked)
    apply_towers(model, Towers(lock, lock))
    expected = {
        name for side in ("image", "text") for group in tower_groups(encoder, side)[-unlocked:] for name in group
    }
    assert learning(encoder) == expected
    open_clips = small().build(0)
    open_clips.clip.lock_image_tower(unlocked_groups=unlocked)
    open_clips.clip.lock_text_tower(unlocked_layers=unlocked)
    assert learning(open_clips) == expected


def test_class_tokens_and_positions_do_not_decay(tmp_path: Path) -> None:
    assert {
        "clip.visual.class_embedding",
        "clip.visual.positional_embedding",
        "clip.text.positional_embedding",
    } <= no_decay(small().build(0))
    assert {f"clip.visual.trunk.{name}" for name in ("cls_token", "reg_token", "pos_embed")} <= no_decay(TIMM.build(0))


def test_adapters_change_every_token(tmp_path: Path) -> None:
    for side, encoder in (("image", TIMM.build(0)), ("text", hugging_face(tmp_path))):
        inputs = torch.randn(2, 3, 32, 32) if side == "image" else torch.tensor([[2, 10, 11, 3, 0, 0]] * 2)
        encode = encoder.encode_image if side == "image" else encoder.encode_text
        encoder.eval()
        before = encode(inputs)
        model = ContrastiveModel(encoder, Oblique(sub_dim=8, num_spheres=3))
        apply_towers(model, Towers(**{side: TowerTraining(lora=LoRA(rank=2))}))
        torch.testing.assert_close(encode(inputs), before)
        adapters = [parameter for name, parameter in encoder.named_parameters() if ".lora_B" in name]
        assert adapters
        with torch.no_grad():
            for parameter in adapters:
                parameter.normal_()
        assert ((encode(inputs) - before).unflatten(-1, (3, 8)).abs().amax(-1) > 1e-3).all()
        assert "LoRA" in encoder.architecture


@pytest.mark.parametrize("config", [small(), small("causal"), TIMM], ids=["bidirectional", "causal", "timm"])
def test_every_parameter_learns_in_bfloat16_and_is_copied(config: object) -> None:
    encoder = config.build(0)  # type: ignore[attr-defined]
    model = ContrastiveModel(encoder, Oblique(sub_dim=8, num_spheres=3)).train()
    ids = encoder.tokenize(["a red square", "nothing"])
    with torch.autocast("cpu", torch.bfloat16):
        features = model(torch.randn(2, 3, 32, 32), ids)
    (features.scale * model.geometry.similarity(features.image, features.text)).diagonal().sum().backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without == []
    twin = copy.deepcopy(encoder)
    assert type(twin.clip.visual) is type(encoder.clip.visual)
    assert hash_module(twin) == hash_module(encoder)
    with torch.no_grad():
        twin.clip.text.positional_embedding.add_(1.0)
    assert hash_module(twin) != hash_module(encoder)


def test_cache_keys_know_the_tokens() -> None:
    kinds = [small(), small("causal"), small(sub_dim=6, num_tokens=4), replace(small(), multi=None)]
    assert len({config.build(0).architecture for config in kinds}) == 4
