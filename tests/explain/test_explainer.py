"""Explanations against independent Grad-CAM, on every kind of tower."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from timm import create_model
from timm.models.vision_transformer import ResPostBlock
from torch import Tensor, nn

from tests.explain.towers import CAPTION, model_of, open_clip_resnet, picture, small, timm
from troth.encoders import ContrastiveModel, Heads, OpenClipEncoder, Plain
from troth.encoders.towers import seeded
from troth.errors import UserError
from troth.explain import Explainer, explain
from troth.geometry import FILIP, Euclidean, Geometry, Oblique, Sphere

GEOMETRIES: list[Geometry] = [
    Sphere(),
    Euclidean(),
    Oblique(sub_dim=8, num_spheres=4),
    Oblique(sub_dim=8, num_spheres=4, distance="geodesic"),
    Oblique(sub_dim=8, num_spheres=4, distance="geodesic_sum"),
    FILIP(sub_dim=8),
]


def differences(function: Callable[[Tensor], Tensor], at: Tensor, step: float = 1e-5) -> Tensor:
    """Central differences of a function of a batch of ``(T, C)`` by every number."""
    steps = step * torch.eye(at.numel(), dtype=at.dtype).view(-1, *at.shape)
    return ((function(at + steps) - function(at - steps)) / (2 * step)).view(at.shape)


def plain_grad_cam(activations: Tensor, gradients: Tensor) -> list[float]:
    tokens, channels = activations.shape
    weight = [sum(float(gradients[t, c]) for t in range(tokens)) / tokens for c in range(channels)]
    return [max(0.0, sum(weight[c] * float(activations[t, c]) for c in range(channels))) for t in range(tokens)]


def run_block(block: nn.Module, stream: Tensor, normed: Tensor, mask: Tensor | None) -> Tensor:
    """A residual attention block from behind its first norm: what it adds to ``stream``."""
    stream = stream + block.attn(normed, normed, normed, need_weights=False, attn_mask=mask)[0]
    return stream + block.mlp(block.ln_2(stream))


@torch.no_grad()
def by_hand(model: ContrastiveModel, image: Tensor, ids: Tensor, score: Callable[[Tensor, Tensor], Tensor]):
    """Strengths of the patches and of the pieces in columns 1 to the end, from finite differences in float64."""
    clip = model.encoder.clip
    u, v = model.embed_image(image), model.embed_text(ids)

    visual, last = clip.visual, clip.visual.transformer.resblocks[-1]
    stream = visual._embeds(image)
    for block in visual.transformer.resblocks[:-1]:
        stream = block(stream)
    normed = last.ln_1(stream)

    def of_patches(patches: Tensor) -> Tensor:
        batch = len(patches)
        tokens = torch.cat([normed[:, :1].expand(batch, -1, -1), patches], dim=1)
        out = run_block(last, stream.expand(batch, -1, -1), tokens, None)
        points = model.geometry.project(visual.ln_post(out)[:, 0] @ visual.proj)
        return score(points, v.expand(batch, -1))

    patches = normed[0, 1:]
    image_strength = plain_grad_cam(patches, differences(of_patches, patches))

    last, end = clip.transformer.resblocks[-1], int(ids.argmax())
    stream = clip.token_embedding(ids) + clip.positional_embedding
    mask = clip.attn_mask.to(stream.dtype)
    for block in clip.transformer.resblocks[:-1]:
        stream = block(stream, attn_mask=mask)
    normed_text = last.ln_1(stream)

    def of_pieces(pieces: Tensor) -> Tensor:
        batch = len(pieces)
        whole = normed_text.expand(batch, -1, -1)
        tokens = torch.cat([whole[:, :1], pieces, whole[:, end:]], dim=1)
        out = run_block(last, stream.expand(batch, -1, -1), tokens, mask)
        points = model.geometry.project(clip.ln_final(out)[:, end] @ clip.text_projection)
        return score(u.expand(batch, -1), points)

    pieces = normed_text[0, 1:end]
    return image_strength, plain_grad_cam(pieces, differences(of_pieces, pieces))


@pytest.fixture(scope="module")
def towers() -> OpenClipEncoder:
    return small(image_size=48, patch_size=16).double()


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda each: getattr(each, "distance", each.kind))
def test_strengths_are_those_of_finite_differences(towers: OpenClipEncoder, geometry: Geometry) -> None:
    model = model_of(towers, geometry)
    spheres = (2,) if isinstance(geometry, Oblique) else ()
    found = explain(model, picture(), CAPTION, spheres=spheres)
    image = towers.image_transform(train=False)(picture())[None].double()
    ids = towers.tokenize([CAPTION])
    scores = {"full": (geometry.paired_similarity, found.full)}
    for number in spheres:

        def cosine(u: Tensor, v: Tensor, k: int = number) -> Tensor:
            product = (u.view(-1, 4, 8)[:, k] * v.view(-1, 4, 8)[:, k]).sum(dim=1)
            return product if geometry.distance == "inner_product" else -product.arccos()

        scores[f"sphere {number}"] = (cosine, found.spheres[number])
    for score, part in scores.values():
        cells, pieces = by_hand(model, image, ids, score)
        # The transform rounds its pixels to float32.
        np.testing.assert_allclose(part.cell_strength.ravel(), cells, rtol=1e-4, atol=1e-9)
        expected = float(score(model.embed_image(image), model.embed_text(ids)).detach())
        assert part.score == pytest.approx(expected, rel=1e-4)
        assert found.words == ("a", "unicornfish")
        assert len(pieces) > 2, "the second word has several pieces"
        np.testing.assert_allclose(part.word_strength, [pieces[0], max(pieces[1:])], rtol=1e-4, atol=1e-9)
        assert max(cells) > 0
        assert max(pieces) > 0


def test_an_angle_and_its_cosine_have_one_map(towers: OpenClipEncoder) -> None:
    parts = [
        explain(model_of(towers, Oblique(sub_dim=8, num_spheres=4, distance=distance)), picture(), CAPTION, spheres=[1])
        for distance in ("inner_product", "geodesic")
    ]
    first, second = (each.spheres[1] for each in parts)
    assert first.score == pytest.approx(np.cos(second.score))
    np.testing.assert_allclose(first.image, second.image, atol=1e-9)
    np.testing.assert_allclose(first.words, second.words, atol=1e-9)


def with_trunk(name: str, side: int, **settings: object) -> OpenClipEncoder:
    """A timm encoder whose trunk is built with settings of its own."""
    encoder = timm(name, side)
    with seeded(2):
        encoder.clip.visual.trunk = create_model(name, num_classes=0, img_size=side, global_pool="token", **settings)
    return encoder


#: Model, grid of its cells, side of the picture.
KINDS = {
    "small": (small, (4, 4), 32),
    "timm vit": (lambda: timm("test_vit", 48), (3, 3), 48),
    "timm vit with registers": (lambda: timm("test_vit3", 48), (3, 3), 48),
    "timm vit, norms behind attention": (lambda: with_trunk("test_vit", 48, block_fn=ResPostBlock), (3, 3), 48),
    "timm eva, norms behind attention": (
        lambda: with_trunk("eva02_tiny_patch14_224", 42, use_post_norm=True, depth=2),
        (3, 3),
        42,
    ),
    "timm hybrid": (lambda: timm("vit_tiny_r_s16_p8_224", 96), (3, 3), 96),
    "timm resnet": (lambda: timm("test_resnet", 96), (3, 3), 96),
    "timm, channels last": (lambda: timm("test_mambaout", 96), (3, 3), 96),
    "a layer behind the pooling": (lambda: timm("mobilenetv3_small_050", 64), (2, 2), 64),
    "open_clip RN50": (lambda: open_clip_resnet(96), (3, 3), 96),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_tower_has_a_map_of_its_grid(name: str) -> None:
    build, grid, side = KINDS[name]
    model = ContrastiveModel(build(), Sphere()).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = explain(model, picture(), CAPTION)
    part = found.full
    assert part.cell_strength.shape == grid
    assert part.image.shape == (side, side)
    assert found.picture.shape == (side, side, 3)
    # Of a tower drawn at random a whole map may speak against a caption.
    assert any(explain(model, picture(), caption).full.cell_strength.any() for caption in (CAPTION, "red", "two"))
    assert part.word_strength.any()
    assert 0 <= part.image.min() <= part.image.max() <= 1
    assert part.words.max() == 1
    # Nothing of the model is touched: no batch norm's statistics, no gradients, no hooks, no hidden methods.
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    assert not any("forward_features" in part.__dict__ for part in model.modules())
    model.eval()
    with torch.no_grad():
        image = model.encoder.image_transform(train=False)(picture())[None]
        points = model.embed_image(image), model.embed_text(model.encoder.tokenize([CAPTION]))
        assert part.score == pytest.approx(float(model.geometry.paired_similarity(*points)), abs=1e-5)


def test_parts_keep_their_modes_and_no_graph_is_kept_of_what_is_not_asked() -> None:
    model = model_of(small()).train()
    clip = model.encoder.clip
    clip.visual.ln_post.eval()
    clip.visual.conv1.requires_grad_(False)
    modes = [part.training for part in model.modules()]
    learned = [parameter.requires_grad for parameter in model.parameters()]
    assert len(set(modes)) == len(set(learned)) == 2
    kept: list[bool] = []
    for tower in (clip.visual, clip):
        for block in tower.transformer.resblocks:
            block.register_forward_hook(lambda _, inputs, output: kept.append(output.requires_grad))
    explain(model, picture(), CAPTION)
    assert kept == [False, True, False, True], "of two blocks each, the last one alone"
    assert [part.training for part in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == learned


def test_the_picture_is_what_the_tower_saw() -> None:
    wide = Image.new("RGB", (64, 32), (200, 30, 40))
    wide.paste((10, 20, 230), (0, 0, 16, 32))  # cut off with the left quarter
    found = explain(model_of(small()), wide, CAPTION)
    assert (found.picture == np.array([200, 30, 40])).all()


class RedTower(nn.Module):
    """An image tower that counts the red cells of 8 pixels, seen as open_clip's ResNets are."""

    def __init__(self, preprocess: dict, direction: Tensor) -> None:
        super().__init__()
        self.preprocess_cfg = preprocess
        convolution = nn.Conv2d(3, 2, kernel_size=8, stride=8, bias=False)
        mean, std = (torch.tensor(preprocess[name]) for name in ("mean", "std"))
        with torch.no_grad():
            weight = torch.stack([torch.tensor([1.0, -1.0, -1.0]), torch.tensor([-1.0, -1.0, 1.0])])
            convolution.weight.copy_((weight * std)[:, :, None, None].expand(-1, -1, 8, 8) / 64)
        self.offset = nn.Parameter((weight * mean).sum(dim=1))
        self.layer4 = nn.Sequential(convolution, nn.Identity())
        self.register_buffer("direction", direction)

    def forward(self, image: Tensor) -> Tensor:
        red, blue = (self.layer4(image) + self.offset[:, None, None]).relu().mean(dim=(2, 3)).unbind(dim=1)
        across = torch.roll(self.direction, 1)
        return (red - blue)[:, None] * self.direction + 0.3 * across


@pytest.mark.parametrize("place", range(4))
def test_a_tower_for_red_points_at_what_is_red(place: int) -> None:
    encoder = small()
    with torch.no_grad():
        direction = encoder.encode_text(encoder.tokenize([CAPTION]))[0]
    encoder.clip.visual = RedTower(encoder.preprocess_cfg, direction)
    scene = Image.new("RGB", (32, 32), "white")
    left, top = place % 2 * 16, place // 2 * 16
    scene.paste((255, 0, 0), (left + 8, top, left + 16, top + 8))
    scene.paste((0, 0, 255), (16 - left, 16 - top, 24 - left, 24 - top))
    model = model_of(encoder)
    found = explain(model, scene, CAPTION).full
    row, column = np.unravel_index(found.image.argmax(), found.image.shape)
    assert top <= row < top + 8
    assert left + 8 <= column < left + 16
    encoder.clip.visual.direction.neg_()  # now blue speaks for the caption
    found = explain(model, scene, CAPTION).full
    row, column = np.unravel_index(found.image.argmax(), found.image.shape)
    assert 16 - top <= row < 24 - top
    assert 16 - left <= column < 24 - left


def test_where_nothing_speaks_for_the_caption_the_map_stays_empty() -> None:
    encoder = small()
    encoder.clip.visual = RedTower(encoder.preprocess_cfg, torch.zeros(32))
    found = explain(model_of(encoder), picture(), CAPTION).full
    assert found.score == 0
    assert not found.image.any()
    assert not found.words.any()


@pytest.fixture(scope="module")
def heads() -> ContrastiveModel:
    return model_of(Heads(embed_dim=32, hidden_dim=16, image_size=128).build(0), Oblique(sub_dim=8, num_spheres=4))


@pytest.fixture(scope="module")
def heads_explainer(heads: ContrastiveModel) -> Explainer:
    return Explainer(heads)


def test_heads_are_explained_through_their_frozen_encoders(heads: ContrastiveModel, heads_explainer: Explainer) -> None:
    found = heads_explainer.explain(picture(), "an unicornfish", spheres=[3])
    assert found.full.cell_strength.shape == (4, 4)
    assert found.full.image.shape == (128, 128)
    assert found.words == ("an", "unicornfish")
    assert found.full.cell_strength.any()
    assert found.full.words.max() == 1
    assert not np.allclose(found.full.image, found.spheres[3].image)
    frozen_image, frozen_text = heads_explainer._sides.frozen
    with torch.no_grad():
        u = heads.embed_image(frozen_image.encode([picture()]))
        v = heads.embed_text(frozen_text.encode(["an unicornfish"]))
    assert found.full.score == pytest.approx(float(heads.geometry.paired_similarity(u, v)), abs=1e-4)
    assert found.spheres[3].score == pytest.approx(float((u * v)[0, 24:].sum()), abs=1e-4)
    # A cell's strength is its channels' pull: with mean pooling the gradient is the same in every cell.
    features = frozen_image.module.network.extract_features(
        (torch.from_numpy(found.picture).permute(2, 0, 1)[None] / 255 - _column(frozen_image.mean))
        / _column(frozen_image.std)
    ).detach()
    pooled = features.mean(dim=(2, 3)).requires_grad_()
    heads.geometry.paired_similarity(heads.embed_image(pooled), v).sum().backward()
    cells = torch.einsum("chw,c->hw", features[0], pooled.grad[0] / 16).relu()
    np.testing.assert_allclose(found.full.cell_strength, cells, rtol=1e-3, atol=1e-6)


def _column(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values)[:, None, None]


def test_mistakes_are_said_in_one_line(heads_explainer: Explainer) -> None:
    model = model_of(small())
    explainer = Explainer(model)
    for call, message in (
        (lambda: explainer.explain(b"no picture", CAPTION), "IMAGE: the picture cannot be read: corrupt-image"),
        (lambda: explainer.explain(picture(), "  "), "TEXT: the text has no words"),
        (lambda: explainer.explain(picture(), CAPTION, spheres=[0]), "a geometry of kind 'sphere' has no pairs"),
        (lambda: heads_explainer.explain(picture(), CAPTION, spheres=[4]), "there is no sphere 4 (they are 0 to 3)"),
        (lambda: Explainer(model_of(Plain(image_dim=4, text_dim=4).build(0))), "the model takes vectors"),
        (
            lambda: explain(model_of(Heads(image_feature_dim=7, hidden_dim=4).build(0)), picture(), CAPTION),
            "the heads take image vectors of 7 dimensions",
        ),
    ):
        with pytest.raises(UserError) as caught:
            call()
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
