"""The contrastive model: projection in full precision, the scale in multiplier units, the bias."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError

from troth import recipe as recipes
from troth.encoders import ContrastiveModel, Heads, ScaleConfig
from troth.encoders.contrastive import MULTI_TOKEN_CAP
from troth.errors import UserError
from troth.geometry import FILIP, Oblique, Sphere

HEADS = Heads(embed_dim=8, hidden_dim=16, image_feature_dim=5, text_feature_dim=7)


def model(scale_config=None, **options):
    return ContrastiveModel(HEADS.build(0), Sphere(), scale_config, **options)


def test_features_are_points_with_scale_and_no_bias():
    features = model()(torch.randn(4, 5), torch.randn(4, 7))
    assert features.image.shape == features.text.shape == (4, 8)
    torch.testing.assert_close(features.image.norm(dim=-1), torch.ones(4))
    assert float(features.scale.detach()) == pytest.approx(1 / 0.07)
    assert features.bias is None


def test_projection_stays_in_float32_under_autocast_and_keeps_float64():
    contrastive = model()
    image, text = torch.randn(4, 5), torch.randn(4, 7)
    with torch.autocast("cpu", torch.bfloat16):
        assert contrastive.encoder.encode_image(image).dtype == torch.bfloat16
        features = contrastive(image, text)
    assert features.image.dtype == features.text.dtype == features.scale.dtype == torch.float32
    # unit length to float32's precision, which a projection in bfloat16 would miss by 1e-3
    torch.testing.assert_close(features.image.norm(dim=-1), torch.ones(4), rtol=0, atol=1e-6)
    exact = contrastive.double()(image.double(), text.double())
    assert exact.image.dtype == exact.scale.dtype == torch.float64


@pytest.mark.parametrize(("cap", "expected"), [(100.0, 100.0), (20.0, 20.0), (None, 1000.0)])
def test_clamp_keeps_the_scale_between_one_and_cap(cap, expected):
    contrastive = model(ScaleConfig(init=10.0, cap=cap))
    with torch.no_grad():
        contrastive.log_scale.fill_(math.log(1000.0))
    contrastive.clamp_scale()
    assert float(contrastive.scale.detach()) == pytest.approx(expected)
    with torch.no_grad():
        contrastive.log_scale.fill_(-1.0)
    contrastive.clamp_scale()
    assert float(contrastive.scale.detach()) == 1.0


def test_a_fixed_scale_is_a_buffer_and_never_clamped():
    contrastive = model(ScaleConfig(init=0.5, learnable=False))
    assert "log_scale" not in dict(contrastive.named_parameters())
    assert "log_scale" in contrastive.state_dict()
    contrastive.clamp_scale()
    assert float(contrastive.scale.detach()) == pytest.approx(0.5)


def test_the_scale_and_the_bias_learn():
    contrastive = model(with_bias=True)
    assert float(contrastive.bias.detach()) == -10.0
    features = contrastive(torch.randn(4, 5), torch.randn(4, 7))
    (features.scale * (features.image * features.text).sum() + features.bias).backward()
    assert contrastive.log_scale.grad is not None
    assert contrastive.log_scale.grad != 0
    assert float(contrastive.bias.grad) == 1.0
    assert float(model(ScaleConfig(bias_init=-3.0), with_bias=True).bias.detach()) == -3.0


def test_a_pretrained_scale_is_taken_over_up_to_the_cap():
    encoder = HEADS.build(0)
    encoder.pretrained_scale, encoder.pretrained_bias = 112.0, -12.5
    taken = ContrastiveModel(encoder, Sphere(), ScaleConfig(cap=None), with_bias=True)
    assert float(taken.scale.detach()) == pytest.approx(112.0)
    assert float(taken.bias.detach()) == -12.5
    assert float(ContrastiveModel(encoder, Sphere()).scale.detach()) == pytest.approx(100.0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"init": 0.07}, "it is the multiplier 1 / temperature"),
        ({"init": -1.0}, "greater than 0"),
        ({"init": 200.0}, "must not exceed cap"),
        ({"cap": 0.5}, "cap must be at least 1"),
        ({"temperature": 0.07}, "temperature"),
        ({"init": "e^5.31"}, 'init (e^5.31 = 202.4) must not exceed cap (100): the preset e^5.31 needs cap = "none"'),
        ({"init": "e^2.64", "cap": 3.95}, "or a cap of at least 14.01"),
        ({"init": "e^3"}, 'a finite number greater than 0, or "e^0" or "e^2.64" or "e^5.31"'),
        ({"init": math.inf}, "a finite number greater than 0"),
        ({"init": math.nan}, "a finite number greater than 0"),
        ({"cap": "100/n"}, 'a finite number greater than 0, or "100/m"'),
        ({"cap": True}, "a finite number greater than 0"),
    ],
)
def test_a_wrong_scale_is_refused(fields, message):
    with pytest.raises(ValidationError) as caught:
        ScaleConfig(**fields)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("init", "cap", "multiplier"),
    [("e^0", 100.0, 1.0), ("e^2.64", 100.0, 14.0132), ("e^5.31", None, 202.3502), (3.0, MULTI_TOKEN_CAP, 3.0)],
)
def test_the_papers_initial_scales_are_multipliers(init, cap, multiplier):
    for learnable in (True, False):
        contrastive = model(ScaleConfig(init=init, cap=cap, learnable=learnable))
        assert float(contrastive.scale.detach()) == pytest.approx(multiplier, rel=1e-6)


@pytest.mark.parametrize(
    ("geometry", "cap"),
    [
        (Sphere(), 100.0),
        (FILIP(sub_dim=2), 100.0),
        (Oblique(sub_dim=2, num_spheres=4), 25.0),
        (Oblique(sub_dim=1, num_spheres=8), 12.5),
    ],
)
def test_a_cap_per_sphere_is_shared_among_the_geometrys_spheres(geometry, cap):
    contrastive = ContrastiveModel(HEADS.build(0), geometry, ScaleConfig(cap="100/m"))
    assert contrastive.scale_cap == cap
    # CLIP's own start, which no one asked for, gives way to the cap
    assert float(contrastive.scale.detach()) == pytest.approx(min(1 / 0.07, cap))
    with torch.no_grad():
        contrastive.log_scale.fill_(9.0)
    contrastive.clamp_scale()
    assert float(contrastive.scale.detach()) == pytest.approx(cap)


def test_a_cap_per_sphere_that_cannot_be_met_is_refused_by_the_model():
    with pytest.raises(UserError, match=r'^scale.init: "100/m" is 6.25 for the 16 spheres.*init \(e\^2.64 = 14.01\)'):
        ContrastiveModel(HEADS.build(0), Oblique(sub_dim=1, num_spheres=16), ScaleConfig(init="e^2.64", cap="100/m"))
    with pytest.raises(UserError, match=r'^scale.cap: "100/m" is 0.78125 for the 128 spheres'):
        ContrastiveModel(HEADS.build(0), Oblique(sub_dim=4, num_spheres=128), ScaleConfig(cap="100/m"))
    # one that is not trained is not capped
    fixed = ScaleConfig(init="e^2.64", cap="100/m", learnable=False)
    assert ContrastiveModel(HEADS.build(0), Oblique(sub_dim=1, num_spheres=16), fixed).scale_cap == 6.25


@pytest.mark.parametrize(
    "scale",
    [
        {"init": "e^0", "cap": "100/m"},
        {"init": "e^5.31", "cap": "none"},
        {"init": "e^2.64", "cap": 100},
        {"init": 14, "cap": 3950},
        {"cap": 3.95},
    ],
)
def test_scales_survive_the_recipes_file(tmp_path, scale):
    geometry = {"kind": "oblique", "sub_dim": 16, "num_spheres": 16, "distance": "geodesic"}
    recipe = recipes.from_dict({"scale": scale, "geometry": geometry})
    path = tmp_path / "resolved.toml"
    path.write_text(recipes.to_toml(recipe))
    again = recipes.load(path)
    assert again == recipe
    assert again.geometry == Oblique(sub_dim=16, num_spheres=16, distance="geodesic")
    for name, value in scale.items():
        assert getattr(again.scale, name) == (None if value == "none" else value)
