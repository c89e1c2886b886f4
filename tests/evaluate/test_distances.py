"""Distances of pairs, gap, alignment and uniformity against float64 loops, on every geometry."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from torch import Tensor

from troth.errors import UserError
from troth.evaluate import alignment, distance_limits, modality_gap, pair_distances, uniformity
from troth.geometry import FILIP, Euclidean, Geometry, Oblique, Sphere

GEOMETRIES = {
    "sphere": Sphere(),
    "euclidean": Euclidean(),
    "oblique": Oblique(sub_dim=4, num_spheres=2),
    "geodesic": Oblique(sub_dim=4, num_spheres=2, distance="geodesic"),
    "geodesic sum": Oblique(sub_dim=4, num_spheres=2, distance="geodesic_sum"),
    "filip": FILIP(sub_dim=4),
}
DIRECTED = {name: geometry for name, geometry in GEOMETRIES.items() if name != "filip"}
GROUP = torch.tensor([0, 0, 1, 2, 2, 2, 3, 4, 5, 6, 7])


@pytest.fixture(params=GEOMETRIES.values(), ids=GEOMETRIES.keys())
def geometry(request: pytest.FixtureRequest) -> Geometry:
    return request.param


@pytest.fixture(params=DIRECTED.values(), ids=DIRECTED.keys())
def directed(request: pytest.FixtureRequest) -> Geometry:
    return request.param


def points(geometry: Geometry, seed: int, count: int = len(GROUP)) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return geometry.project(torch.randn(count, 8, generator=draw, dtype=torch.float64))


def distance(u: Tensor, v: Tensor, geometry: Geometry) -> float:
    """The distance of two points from the definitions, one number at a time."""
    if isinstance(geometry, Sphere):
        return -math.fsum(a * b for a, b in zip(u.tolist(), v.tolist(), strict=True))
    if isinstance(geometry, Euclidean):
        return math.dist(u.tolist(), v.tolist())
    parts = zip(u.view(2, 4), v.view(2, 4), strict=True)
    if isinstance(geometry, FILIP):
        best = [max(float(p @ q) for q in v.view(2, 4)) for p in u.view(2, 4)]
        return -math.fsum(best) / 2
    assert isinstance(geometry, Oblique)
    cosines = [math.fsum(a * b for a, b in zip(p.tolist(), q.tolist(), strict=True)) for p, q in parts]
    if geometry.distance == "inner_product":
        return -sum(cosines)
    angles = [math.acos(max(-1.0, min(1.0, cosine))) for cosine in cosines]
    return sum(angles) if geometry.distance == "geodesic_sum" else math.hypot(*angles)


def reference(images: Tensor, texts: Tensor, group: Tensor, geometry: Geometry) -> dict[str, list[float]]:
    count = range(len(images))
    pairs = [(i, j) for i in count for j in count if group[i] != group[j]]
    return {
        "positive": [distance(images[i], texts[i], geometry) for i in count],
        "negative": [distance(images[i], texts[j], geometry) for i, j in pairs],
        "image_image": [distance(images[i], images[j], geometry) for i, j in pairs],
        "text_text": [distance(texts[i], texts[j], geometry) for i, j in pairs],
    }


@pytest.mark.parametrize("tile", [(1024, 1024), (3, 4)])
def test_distances_equal_the_loop(geometry: Geometry, tile: tuple[int, int]) -> None:
    images, texts = points(geometry, 0), points(geometry, 1)
    measured = pair_distances(images, texts, geometry, GROUP, bins=7, tile=tile)
    expected = reference(images, texts, GROUP, geometry)
    assert measured.edges[0] == pytest.approx(min(min(values) for values in expected.values()))
    assert measured.edges[-1] == pytest.approx(max(max(values) for values in expected.values()))
    assert (measured.edges[0], measured.edges[-1]) == distance_limits(images, texts, geometry, GROUP, tile=tile)
    middle = statistics.median(expected["positive"])
    edges = torch.tensor(measured.edges, dtype=torch.float64)
    assert list(measured.kinds) == list(expected)
    for kind, values in expected.items():
        ours = measured.kinds[kind]  # type: ignore[index]
        assert ours.number == len(values)
        assert ours.mean == pytest.approx(statistics.fmean(values))
        assert ours.deviation == pytest.approx(statistics.pstdev(values))
        assert (ours.low, ours.high) == pytest.approx((min(values), max(values)))
        assert ours.closer == pytest.approx(
            statistics.fmean(0.5 if abs(d - middle) < 1e-12 else float(d < middle) for d in values)
        )
        held = torch.tensor(values, dtype=torch.float64).clamp(*measured.edges[:: len(edges) - 1])
        assert list(ours.counts) == torch.histogram(held, edges).hist.long().tolist()


def test_every_sample_is_on_its_own_without_groups() -> None:
    images, texts = points(Sphere(), 0), points(Sphere(), 1)
    alone = pair_distances(images, texts, Sphere())
    assert alone == pair_distances(images, texts, Sphere(), torch.arange(len(images)))
    assert alone.kinds["negative"].number == len(images) * (len(images) - 1)


def test_the_order_of_the_samples_does_not_matter(directed: Geometry) -> None:
    images, texts = points(directed, 0), points(directed, 1)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(2))
    one = pair_distances(images, texts, directed, GROUP)
    other = pair_distances(images[order], texts[order], directed, GROUP[order], limits=(one.edges[0], one.edges[-1]))
    for kind, values in one.kinds.items():
        assert other.kinds[kind].mean == pytest.approx(values.mean)
        assert sum(other.kinds[kind].counts) == values.number
    assert modality_gap(images[order], texts, directed) == pytest.approx(modality_gap(images, texts, directed))
    assert alignment(images[order], texts[order], directed) == pytest.approx(alignment(images, texts, directed))
    assert uniformity(images[order], directed) == pytest.approx(uniformity(images, directed))


def test_what_lies_beyond_the_limits_is_counted_in_the_outermost_bins() -> None:
    images, texts = points(Sphere(), 0), points(Sphere(), 1)
    measured = pair_distances(images, texts, Sphere(), bins=2, limits=(-0.01, 0.01))
    assert all(sum(values.counts) == values.number for values in measured.kinds.values())
    below = pair_distances(images, texts, Sphere(), bins=2, limits=(5.0, 6.0))
    assert below.kinds["negative"].counts == (below.kinds["negative"].number, 0)


def test_a_collapsed_model_has_a_histogram_too() -> None:
    rounded = points(Sphere(), 0)[:1].repeat(4, 1) * (1 + 1e-9 * torch.arange(4).unsqueeze(1))
    assert pair_distances(rounded, rounded, Sphere()).edges[-1] > -0.6
    one = torch.eye(8)[:1].repeat(4, 1)
    measured = pair_distances(one, one, Sphere())
    assert measured.edges[0] < -1 < measured.edges[-1]
    assert measured.kinds["negative"].deviation == pytest.approx(0, abs=1e-8)
    assert measured.kinds["negative"].closer == pytest.approx(0.5)


# Gap, alignment and uniformity.


def directions(points: Tensor) -> list[list[float]]:
    """Points as unit vectors, from the definition."""
    rows = [row.flatten().tolist() for row in points]
    return [[value / math.hypot(*row) for value in row] for row in rows]


def test_gap_alignment_and_uniformity_equal_the_loops(directed: Geometry) -> None:
    images, texts = points(directed, 0), points(directed, 1)
    x, y = directions(images), directions(texts)
    centres = [[statistics.fmean(column) for column in zip(*rows, strict=True)] for rows in (x, y)]
    assert modality_gap(images, texts, directed) == pytest.approx(math.dist(*centres))
    assert alignment(images, texts, directed) == pytest.approx(
        statistics.fmean(math.dist(u, v) ** 2 for u, v in zip(x, y, strict=True))
    )
    for group in (torch.arange(len(x)), GROUP):
        kernel = [
            math.exp(-2 * math.dist(x[i], x[j]) ** 2)
            for i in range(len(x))
            for j in range(len(x))
            if group[i] != group[j]
        ]
        assert uniformity(images, directed, group, tile=(3, 4)) == pytest.approx(math.log(statistics.fmean(kernel)))


def test_an_oblique_points_alignment_is_the_mean_over_its_spheres() -> None:
    geometry = GEOMETRIES["oblique"]
    images, texts = points(geometry, 0), points(geometry, 1)
    spheres = [alignment(images[:, part], texts[:, part], Sphere()) for part in (slice(0, 4), slice(4, 8))]
    assert alignment(images, texts, geometry) == pytest.approx(statistics.fmean(spheres))


def test_laws_of_gap_alignment_and_uniformity(directed: Geometry) -> None:
    images, texts = points(directed, 0), points(directed, 1)
    assert modality_gap(images, images, directed) == 0
    assert alignment(images, images, directed) == 0
    assert modality_gap(images, -images, directed) <= 2
    assert alignment(images, -images, directed) == pytest.approx(4)
    assert uniformity(images, directed) < 0
    collapsed = images[:1].repeat(5, 1)
    assert uniformity(collapsed.float(), directed) == pytest.approx(0, abs=1e-6)
    assert uniformity(collapsed.float(), directed) <= 0
    # Adding the same to one modality's points moves it away from the other.
    assert modality_gap(images + 3, texts, directed) > modality_gap(images, texts, directed)


def test_lengths_of_euclidean_points_do_not_count() -> None:
    images, texts = points(Euclidean(), 0), points(Euclidean(), 1)
    assert alignment(5 * images, texts, Euclidean()) == pytest.approx(alignment(images, texts, Euclidean()))
    assert uniformity(5 * images, Euclidean()) == pytest.approx(uniformity(images, Euclidean()))


def test_what_is_refused() -> None:
    images, texts = points(Sphere(), 0), points(Sphere(), 1)
    with pytest.raises(UserError, match="belong together"):
        pair_distances(images, texts, Sphere(), torch.zeros(len(images), dtype=torch.int64))
    with pytest.raises(UserError, match="belong together"):
        uniformity(images[:1], Sphere())
    with pytest.raises(UserError, match="11 images and 3 captions"):
        pair_distances(images, texts[:3], Sphere())
    with pytest.raises(UserError, match="11 images and 3 captions"):
        alignment(images, texts[:3], Sphere())
    with pytest.raises(UserError, match="has no direction"):
        modality_gap(images, texts, FILIP(sub_dim=4))
    with pytest.raises(UserError, match="not finite"):
        uniformity(images * math.nan, Sphere())
