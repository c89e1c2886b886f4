"""A flat model ranks and scores as the trained one does, in open_clip's own functions."""

from __future__ import annotations

import math

import open_clip
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.encoders.test_models import TINY
from troth.encoders import ContrastiveModel, FlatClip, Heads, ScaleConfig
from troth.errors import UserError
from troth.evaluate import zero_shot
from troth.geometry import FILIP, Euclidean, Oblique, Sphere
from troth.objectives import InfoNCE
from troth.similarity import Pairs
from troth.state import State

CAPTIONS = ["a red square on white", "Zwei Füße", "x", "a dog in the snow", "nothing"]
GEOMETRIES = [Sphere(), Oblique(sub_dim=32, num_spheres=1), Oblique(sub_dim=16, num_spheres=2), Oblique(8, 4)]


def trained(geometry, with_bias: bool = False) -> ContrastiveModel:
    return ContrastiveModel(TINY.build(4), geometry, ScaleConfig(init=7.0), with_bias=with_bias).eval()


def inputs(model: ContrastiveModel) -> tuple[Tensor, Tensor]:
    transform = model.encoder.image_transform(train=False)
    pictures = [Image.effect_noise((48, 40), 90).convert("RGB").rotate(90 * k) for k in range(len(CAPTIONS))]
    return torch.stack([transform(picture) for picture in pictures]), model.encoder.tokenize(CAPTIONS)


@torch.no_grad()
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda geometry: f"{geometry.kind}-{geometry.num_spheres}")
def test_vectors_and_logits_are_those_of_the_equation(geometry, with_bias):
    model = trained(geometry, with_bias)
    flat, (images, tokens) = FlatClip.of(model), inputs(model)
    m, n = geometry.num_spheres, 32 // geometry.num_spheres
    raw = [features.double() for features in (model.encoder.encode_image(images), model.encoder.encode_text(tokens))]
    points = [
        torch.stack([row[k * n : (k + 1) * n] / row[k * n : (k + 1) * n].norm() for k in range(m)])
        for side in raw
        for row in side
    ]
    image, text = torch.stack(points[: len(images)]), torch.stack(points[len(images) :])
    expected = torch.zeros(len(images), len(tokens), dtype=torch.float64)
    for i in range(len(images)):
        for j in range(len(tokens)):
            expected[i, j] = 7.0 * sum(image[i, k] @ text[j, k] for k in range(m)) + (-10.0 if with_bias else 0.0)
    vectors = flat.encode_image(images), flat.encode_text(tokens)
    for ours, theirs in zip(vectors, (image, text), strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), theirs.flatten(1) / math.sqrt(m), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(ours.norm(dim=1), torch.ones(len(ours)))
    assert torch.equal(vectors[0], flat.encode_image(images, normalize=True))
    assert torch.equal(vectors[1], flat.encode_text(tokens, normalize=True))
    image_logits, text_logits = flat.get_logits(images, tokens)
    torch.testing.assert_close(image_logits.double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(text_logits, image_logits.T)


def test_it_answers_as_open_clips_own_models_do():
    model = trained(GEOMETRIES[2], with_bias=True)
    flat, (images, tokens) = FlatClip.of(model), inputs(model)
    assert flat.visual.image_size == (32, 32)
    assert open_clip.get_model_preprocess_cfg(flat) == open_clip.get_model_preprocess_cfg(model.encoder.clip)
    assert (flat.context_length, flat.vocab_size) == (TINY.context_length, 49408)
    image, text, scale, bias = flat(images, tokens)
    torch.testing.assert_close(scale, torch.tensor(14.0))
    torch.testing.assert_close(bias, torch.tensor(-10.0))
    assert flat(images)[1] is None
    flat.output_dict = True
    answer = flat(images, tokens)
    assert list(answer) == ["image_features", "text_features", "logit_scale", "logit_bias"]
    assert torch.equal(answer["image_features"], image)
    assert torch.equal(answer["text_features"], text)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert flat.encode_image(images).dtype == flat.encode_text(tokens).dtype == torch.float32
    assert flat.no_weight_decay() <= {name for name, _ in flat.named_parameters()}
    flat.lock_image_tower(unlocked_groups=0)
    assert not any(parameter.requires_grad for parameter in flat.visual.parameters())
    flat.lock_text_tower(unlocked_layers=0)
    learning = {name for name, parameter in flat.named_parameters() if parameter.requires_grad}
    assert learning == {"logit_scale", "logit_bias"}


def test_open_clips_loss_of_it_is_infonce_on_the_manifold_with_its_gradients():
    model = trained(GEOMETRIES[2])
    flat, (images, tokens) = FlatClip.of(model), inputs(model)
    theirs = open_clip.ClipLoss()(*flat(images, tokens))
    features = model(images, tokens)
    pairs = Pairs(features.image, features.text, features.scale, geometry=model.geometry)
    ours = InfoNCE()(pairs, State(len(images), "test")).mean()
    torch.testing.assert_close(theirs, ours)
    weight = model.encoder.clip.visual.conv1.weight
    torch.testing.assert_close(*(torch.autograd.grad(loss, weight)[0] for loss in (theirs, ours)), rtol=1e-4, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda geometry: f"{geometry.kind}-{geometry.num_spheres}")
def test_open_clips_zero_shot_functions_give_troths_scores(geometry):
    model = trained(geometry)
    flat, (images, _) = FlatClip.of(model), inputs(model)
    names, template = ["dog", "cat", "boat", "house"], "a photo of a {}."
    classifier = open_clip.build_zero_shot_classifier(flat, model.encoder.tokenize, names, [template])
    points = model.embed_text(model.encoder.tokenize([template.format(name) for name in names]))
    similarity = model.geometry.similarity(model.embed_image(images), points)
    scores = flat.encode_image(images) @ classifier
    torch.testing.assert_close(scores * geometry.num_spheres, similarity, rtol=1e-5, atol=1e-5)
    labels = torch.tensor([0, 1, 2, 3, 0])
    ours = zero_shot(model.embed_image(images), labels, points, model.geometry, topk=(1, 2))
    for k in (1, 2):
        found = (scores.topk(k).indices == labels[:, None]).any(dim=1).double().mean()
        assert ours.metrics[f"top{k}"] == pytest.approx(float(found))


@pytest.mark.parametrize(
    ("geometry", "what"),
    [
        (Oblique(8, 4, "geodesic"), "oblique geodesic"),
        (Oblique(8, 4, "geodesic_sum"), "oblique geodesic_sum"),
        (Euclidean(), "euclidean"),
        (FILIP(8), "filip"),
    ],
)
def test_distances_and_best_matches_are_refused(geometry, what):
    with pytest.raises(UserError, match=rf"inner product; the similarity of this model \({what}\) is none"):
        FlatClip.of(trained(geometry))


def test_heads_are_refused():
    with pytest.raises(UserError, match="heads on frozen features"):
        FlatClip.of(ContrastiveModel(Heads(hidden_dim=16, embed_dim=32).build(0), GEOMETRIES[2]))
