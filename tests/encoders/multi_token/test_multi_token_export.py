"""Multi-token models score the same after a round trip through their folder, without what they began with."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.encoders.multi_token.towers import MULTI, SMALL, TIMM_VIT, small
from tests.encoders.test_flat_export import assert_same_scores
from tests.encoders.test_tower_groups import hugging_face
from troth.encoders import (
    ContrastiveModel,
    ModelConfig,
    Multi,
    OpenClip,
    ScaleConfig,
    export_flat,
    export_open_clip,
    load_export,
)
from troth.errors import UserError
from troth.geometry import Geometry, Oblique, Sphere

THREE = Oblique(sub_dim=8, num_spheres=3)


def trained(config: ModelConfig, geometry: Geometry = THREE) -> ContrastiveModel:
    return ContrastiveModel(config.build(4), geometry, ScaleConfig(init=3.0), with_bias=True).eval()


@pytest.mark.parametrize(
    ("config", "geometry"),
    [(small(), THREE), (small("causal"), THREE), (replace(TIMM_VIT, multi=MULTI), THREE), (small(), Sphere())],
    ids=["small", "causal", "timm", "several tokens on one sphere"],
)
def test_the_scores_are_the_same(config: ModelConfig, geometry: Geometry, tmp_path: Path) -> None:
    model = trained(config, geometry)
    assert_same_scores(model, export_flat(model, config, tmp_path / "export"))


@torch.no_grad()
def test_a_flat_vector_is_the_tokens_points_side_by_side(tmp_path: Path) -> None:
    model = trained(small())
    loaded, preprocess, _ = load_export(export_flat(model, small(), tmp_path / "export"))
    images = preprocess(Image.effect_noise((40, 40), 90).convert("RGB"))[None]
    tokens = model.encoder.clip.visual(images)[0].double().unflatten(0, (3, 8))
    expected = torch.cat([token / token.norm() for token in tokens]) / 3**0.5
    torch.testing.assert_close(loaded.encode_image(images)[0].double(), expected, rtol=1e-5, atol=1e-6)


def test_what_first_weights_decided_stays_decided_without_them(tmp_path: Path) -> None:
    """Trained weights of one token make ``auto`` a causal text tower, where none make it a bidirectional one."""
    export_open_clip(ContrastiveModel(SMALL.build(1), Sphere()), tmp_path / "begun")
    config = OpenClip(name=f"local-dir:{tmp_path / 'begun'}", multi=Multi(sub_dim=8, num_tokens=3))
    model = trained(config)
    assert model.encoder.multi.text_attention == "causal"
    folder = export_flat(model, config, tmp_path / "export")
    for path in (tmp_path / "begun").iterdir():
        path.unlink()
    assert_same_scores(model, folder)


def test_a_hugging_face_text_tower_comes_along(tmp_path: Path) -> None:
    begun = ContrastiveModel(hugging_face(tmp_path), Sphere())
    _ = begun.encoder.tokenizer
    export_open_clip(begun, tmp_path / "begun")
    config = OpenClip(name=f"local-dir:{tmp_path / 'begun'}", context_length=12, multi=MULTI)
    model = trained(config)
    folder = export_flat(model, config, tmp_path / "export")
    for place in ("begun", "bert"):
        for path in (tmp_path / place).iterdir():
            path.unlink()
    assert_same_scores(model, folder)


def test_open_clips_own_form_refuses_several_tokens(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="several class tokens"):
        export_open_clip(trained(small(), Sphere()), tmp_path / "export")
    assert list(tmp_path.iterdir()) == []
