"""Evaluation on every geometry against plain loops: prompts, neighbours, tokens, and whole small runs."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from troth import recipe as recipes
from troth.audit import pair_scores
from troth.embed import Embedder, FeatureCache
from troth.embed.features import FrozenFeatures, distinct_captions
from troth.errors import UserError
from troth.evaluate import class_embedding, concept_test, knn, mean_point, retrieval, zero_shot
from troth.geometry import FILIP, Euclidean, Geometry, Oblique, Sphere
from troth.run import build, run_tasks
from troth.run.scoring import audit_source, caption_points
from troth.train import Trainer

INNER = Oblique(sub_dim=4, num_spheres=2)
GEODESIC = Oblique(sub_dim=4, num_spheres=2, distance="geodesic")
GEODESIC_SUM = Oblique(sub_dim=4, num_spheres=2, distance="geodesic_sum")
GEOMETRIES = {
    "sphere": Sphere(),
    "euclidean": Euclidean(),
    "oblique": INNER,
    "geodesic": GEODESIC,
    "geodesic sum": GEODESIC_SUM,
    "filip": FILIP(sub_dim=4),
}
#: Where a class's similarity is the mean of its prompts'.
AVERAGING = {name: geometry for name, geometry in GEOMETRIES.items() if name != "sphere"}


@pytest.fixture(params=GEOMETRIES.values(), ids=GEOMETRIES.keys())
def geometry(request: pytest.FixtureRequest) -> Geometry:
    return request.param


def points(geometry: Geometry, *shape: int, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return geometry.project(torch.randn(*shape, generator=draw, dtype=torch.float64).flatten(0, -2)).view(shape)


def dot(one: list[float], other: list[float]) -> float:
    return math.fsum(a * b for a, b in zip(one, other, strict=True))


def spheres(point: Tensor, geometry: Oblique) -> list[list[float]]:
    return point.view(geometry.num_spheres, geometry.sub_dim).tolist()


def similarity(geometry: Geometry, one: Tensor, other: Tensor) -> float:
    """Compare two points from the equations, in plain floats."""
    if isinstance(geometry, Euclidean):
        return -math.dist(one.tolist(), other.tolist())
    if isinstance(geometry, FILIP):
        tokens = one.view(-1, geometry.sub_dim).tolist(), other.view(-1, geometry.sub_dim).tolist()
        return sum(max(dot(u, v) for v in tokens[1]) for u in tokens[0]) / len(tokens[0])
    if isinstance(geometry, Sphere) or geometry.distance == "inner_product":
        return dot(one.tolist(), other.tolist())
    cosines = [dot(u, v) for u, v in zip(spheres(one, geometry), spheres(other, geometry), strict=True)]
    angles = [math.acos(cosine) for cosine in cosines]
    return -math.hypot(*angles) if geometry.distance == "geodesic" else -sum(angles)


def class_scores(geometry: Geometry, image: Tensor, prompts: Tensor) -> list[float]:
    """Score a picture against ``(C, T, D)`` prompts: by CLIP's mean point on the sphere, elsewhere by their mean."""
    if isinstance(geometry, Sphere):
        means = [sum(group) / len(group) for group in prompts]
        return [similarity(geometry, image, mean / mean.norm()) for mean in means]
    return [sum(similarity(geometry, image, prompt) for prompt in group) / len(group) for group in prompts]


@pytest.mark.parametrize("tile", [(1024, 1024), (3, 8)])
def test_zero_shot_averages_over_prompts_as_the_geometry_has_it(
    geometry: Geometry, tile: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("averages", "zero_shot"):
        monkeypatch.setattr(sys.modules[f"troth.evaluate.{module}"], "TILE", tile)
    images, prompts = points(geometry, 20, 8), points(geometry, 7, 3, 8, seed=1)
    labels = torch.arange(20) % 7
    result = zero_shot(images, labels, prompts, geometry)
    scores = [class_scores(geometry, image, prompts) for image in images]
    ranks = [sum(other > row[label] for other in row) for row, label in zip(scores, labels.tolist(), strict=True)]
    assert result.details["rank"].tolist() == ranks
    assert result.details["prediction"].tolist() == [row.index(max(row)) for row in scores]
    reduced = zero_shot(images, labels, class_embedding(prompts, geometry), geometry)
    assert reduced.metrics == result.metrics
    single = zero_shot(images, labels, prompts[:, :1], geometry)
    assert (
        single.details["rank"].tolist() == zero_shot(images, labels, prompts[:, 0], geometry).details["rank"].tolist()
    )


@pytest.mark.parametrize("geometry", AVERAGING.values(), ids=AVERAGING.keys())
def test_a_projected_mean_would_choose_other_classes(geometry: Geometry) -> None:
    images, prompts = points(geometry, 300, 8), points(geometry, 7, 3, 8, seed=1)
    labels = torch.zeros(300, dtype=torch.int64)
    right = zero_shot(images, labels, prompts, geometry).details["prediction"]
    wrong = zero_shot(images, labels, geometry.project(prompts.mean(dim=1)), geometry).details["prediction"]
    assert (right != wrong).any()


def test_a_mean_point_has_the_mean_similarity_where_there_is_one() -> None:
    image, prompts = points(INNER, 1, 8), points(INNER, 3, 8, seed=1)
    mean = mean_point(prompts.mean(dim=0), INNER)
    assert mean is not None
    assert (image @ mean).item() == pytest.approx(INNER.similarity(image, prompts).mean().item(), abs=1e-12)
    assert torch.equal(mean_point(prompts.mean(dim=0), Sphere()), Sphere().project(prompts.mean(dim=0)))
    for geometry in (Euclidean(), GEODESIC, GEODESIC_SUM, FILIP(sub_dim=4)):
        assert mean_point(prompts.mean(dim=0), geometry) is None


def test_a_collapsed_model_scores_chance_with_many_prompts_too(geometry: Geometry) -> None:
    same = points(geometry, 1, 8).float()
    result = zero_shot(same.expand(50, -1), torch.arange(50) % 10, same.expand(10, 3, 8), geometry)
    assert result.metrics["top1"] == 0.0
    assert (result.details["rank"] == 5).all(), "half of the nine others, rounded up"


def test_no_more_prompts_are_compared_at_a_time_than_a_tile_has_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["troth.evaluate.averages"], "TILE", (1024, 8))
    compared: list[int] = []
    whole = Euclidean.similarity
    monkeypatch.setattr(Euclidean, "similarity", lambda self, u, v: compared.append(len(v)) or whole(self, u, v))
    zero_shot(points(Euclidean(), 4, 8), torch.arange(4), points(Euclidean(), 7, 3, 8), Euclidean())
    assert compared == [6, 6, 6, 3]


def test_the_concept_test_takes_prompts(geometry: Geometry) -> None:
    images, prompts = points(geometry, 12, 8), points(geometry, 8, 3, 8, seed=1)
    held_out, labels = torch.arange(8) % 2 == 1, torch.arange(12) % 4 * 2 + 1
    result = concept_test(images, labels, prompts, held_out, geometry)
    narrow, wide = (
        zero_shot(images, labels // 2, prompts[1::2], geometry),
        zero_shot(images, labels, prompts, geometry),
    )
    assert result.details["held_out/rank"].tolist() == narrow.details["rank"].tolist()
    assert result.details["all/rank"].tolist() == wide.details["rank"].tolist()


def naive_cosine(geometry: Geometry, test: Tensor, train: Tensor, others: Tensor) -> float:
    if isinstance(geometry, Euclidean):
        centre = (sum(others) / len(others)).tolist()
        spread = sum(math.dist(other, centre) ** 2 for other in others.tolist()) / len(others)
        return 1 - math.dist(test.tolist(), train.tolist()) ** 2 / (2 * spread)
    value = similarity(geometry, test, train)
    if isinstance(geometry, Oblique):
        if geometry.distance == "geodesic":
            return math.cos(value / math.sqrt(geometry.num_spheres))
        if geometry.distance == "geodesic_sum":
            return math.cos(value / geometry.num_spheres)
        return value / geometry.num_spheres
    return value


def test_neighbours_vote_with_a_cosine(geometry: Geometry) -> None:
    train, test = points(geometry, 60, 8), points(geometry, 40, 8, seed=1)
    labels = torch.arange(60) % 5
    result = knn(train, labels, test, torch.arange(40) % 5, geometry, k=20, temperature=0.1)
    for row, predicted in zip(test, result.details["prediction"].tolist(), strict=True):
        scores = [similarity(geometry, row, other) for other in train]
        nearest = sorted(range(60), key=lambda j: -scores[j])[:20]
        votes = [0.0] * 5
        for j in nearest:
            votes[j % 5] += math.exp(naive_cosine(geometry, row, train[j], train) / 0.1)
        assert predicted == votes.index(max(votes))


@pytest.mark.parametrize(
    "geometry", [Oblique(sub_dim=8, num_spheres=1, distance=d) for d in ("inner_product", "geodesic")]
)
def test_one_sphere_votes_as_the_sphere_does(geometry: Oblique) -> None:
    train, test = points(Sphere(), 200, 8), points(Sphere(), 200, 8, seed=1)
    labels = torch.arange(200) % 5
    expected = knn(train, labels, test, labels, Sphere()).details["prediction"]
    np.testing.assert_array_equal(knn(train, labels, test, labels, geometry).details["prediction"], expected)


def test_euclidean_votes_do_not_depend_on_unit_or_origin() -> None:
    train, test = points(Euclidean(), 200, 8), points(Euclidean(), 100, 8, seed=1)
    labels = torch.arange(200) % 5
    plain = knn(train, labels, test, labels[:100], Euclidean())
    for scale, offset in ((1000.0, 0.0), (1e-3, 0.0), (1.0, 50.0)):
        moved = knn(train * scale + offset, labels, test * scale + offset, labels[:100], Euclidean())
        np.testing.assert_array_equal(moved.details["prediction"], plain.details["prediction"])
    one_place = knn(train[:1].expand(6, -1), torch.tensor([1, 2, 2, 2, 1, 1]), test, labels[:100], Euclidean(), k=3)
    assert set(one_place.details["prediction"].tolist()) <= {1, 2}


def test_sides_of_different_numbers_of_tokens_can_be_scored() -> None:
    filip = FILIP(sub_dim=4)
    images, texts = points(filip, 12, 12), points(filip, 12, 8, seed=1)
    found = retrieval(images, texts, torch.arange(12), torch.arange(12), filip)
    for name, queries, others in (("image_to_text", images, texts), ("text_to_image", texts, images)):
        scores = [[similarity(filip, query, other) for other in others] for query in queries]
        ranks = [sum(other > row[i] for other in row) for i, row in enumerate(scores)]
        assert found.details[f"{name}/rank"].tolist() == ranks
    zero_shot(images, torch.arange(12) % 4, texts.view(4, 3, 8), filip)
    with pytest.raises(UserError, match="not whole tokens of 4"):
        retrieval(images, texts[:, :7], torch.arange(12), torch.arange(12), filip)
    with pytest.raises(UserError, match="12 and 8 dimensions cannot be compared"):
        retrieval(images, texts, torch.arange(12), torch.arange(12), Euclidean())


class PlantedEncoders:
    """Stands for the frozen encoders of heads: features of colours' names, and of pictures by their place."""

    def __init__(self) -> None:
        self.cache = FeatureCache()
        self.text_encoder = SimpleNamespace(
            weights_hash="planted", tokenization="words", precision="float32", encode=self._encode
        )

    def _encode(self, texts: Sequence[str], on_progress: object = None) -> Tensor:
        draws = [torch.Generator().manual_seed(sum(map(ord, text))) for text in texts]
        return torch.stack([torch.randn(5, generator=draw) for draw in draws])

    def features(self, source, extra_captions: Sequence[str] = ()) -> FrozenFeatures:
        captions = distinct_captions(source, extra_captions)
        image = torch.randn(len(source), 6, generator=torch.Generator().manual_seed(len(source)))
        return FrozenFeatures(captions, image, torch.ones(len(source), dtype=torch.bool), self._encode(captions), ())


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("pictures")
    for split, colours in (("seen", ("red", "green", "blue")), ("unseen", ("pink", "grey"))):
        for number in range(12 if split == "seen" else 6):
            colour = colours[number % len(colours)]
            (root / split / colour).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8)).save(root / split / colour / f"{number:02}.png")
            lines = [f"a {colour} square", f"square {number}", "a square"][: 1 + number % 3]
            (root / split / colour / f"{number:02}.txt").write_text("\n".join(lines))
    seen, unseen = (f"{{kind='folder', path='{root / split}'}}" for split in ("seen", "unseen"))
    prompts = "class_field='category', templates=['a {} square', '{}', 'all {}']"
    return [
        f"data.source={seen}",
        "model={kind='heads', embed_dim=8, hidden_dim=8, depth=0, image_feature_dim=6, text_feature_dim=5}",
        f"evaluation.tasks=[{{kind='zero-shot', source={seen}, {prompts}}}, "
        f"{{kind='concept', source={unseen}, names_source={seen}, {prompts}}}, "
        f"{{kind='retrieval', source={seen}, captions='none'}}]",
        "train={epochs=1, batch_size=6, device='cpu', precision='float32', tensorboard=false}",
    ]


NAMED = {
    "sphere": "{kind='sphere'}",
    "euclidean": "{kind='euclidean'}",
    "oblique": "{kind='oblique', sub_dim=4, num_spheres=2}",
    "geodesic": "{kind='oblique', sub_dim=4, num_spheres=2, distance='geodesic'}",
    "geodesic sum": "{kind='oblique', sub_dim=4, num_spheres=2, distance='geodesic_sum'}",
    "filip": "{kind='filip', sub_dim=4}",
}


@pytest.mark.parametrize("name", NAMED)
def test_a_recipe_trains_and_is_scored(name: str, settings: list[str], tmp_path: Path) -> None:
    recipe = recipes.load("heads-infonce", [*settings, f"geometry={NAMED[name]}"])
    assert recipe.geometry == GEOMETRIES[name]
    frozen = PlantedEncoders()
    built = build(recipe, frozen=frozen)
    start = {key: value.clone() for key, value in built.model.state_dict().items()}
    trained = Trainer(
        built.model, recipe.objective, built.stream(), config=recipe.train, folder=tmp_path, progress=False
    ).run()
    assert trained.step == 2
    assert any(not torch.equal(value, start[key]) for key, value in built.model.state_dict().items())
    results = {result.task: result for result in run_tasks(recipe, built.model, frozen=frozen)}
    for result in results.values():
        assert all(math.isfinite(value) for value in result.metrics.values())
    embedder = Embedder(built.model, frozen=frozen)
    index, images = embedder.images(built.source)
    names = ("blue", "green", "red")
    prompts = (
        embedder.texts(
            [
                f"{before}{colour}{after}"
                for colour in names
                for before, after in (("a ", " square"), ("", ""), ("all ", ""))
            ]
        )
        .view(3, 3, 8)
        .double()
    )
    scores = [class_scores(recipe.geometry, image, prompts) for image in images.double()]
    assert results["zero-shot"].details["prediction"].tolist() == [row.index(max(row)) for row in scores]
    assert results["concept"].num_queries == 6
    assert results["retrieval"].metrics["mean_recall"] > 0
    _check_audit(recipe.geometry, embedder, built.source, index, images)


def _check_audit(geometry: Geometry, embedder: Embedder, source, index: Tensor, images: Tensor) -> None:
    """A pair's score is that of all its captions where they have a mean point, else of the one the table shows."""
    table = audit_source(embedder, source)
    for row, number in enumerate(index.tolist()):
        points = embedder.texts(source.captions(number)).double()
        used = points if mean_point(points[0], geometry) is not None else points[:1]
        (expected,) = class_scores(geometry, images[row].double(), used.unsqueeze(0))
        assert table.score[row] == pytest.approx(expected, abs=1e-5)
        assert table.caption[row] == source.captions(number)[0]
    texts = caption_points(embedder, [source.captions(number) for number in index.tolist()])
    np.testing.assert_array_equal(pair_scores(images, texts, geometry), table.score)
