"""Zero-shot accuracy with some of the spheres: against a loop, and what must hold of any subset."""

from __future__ import annotations

import statistics
from collections import Counter

import pytest
import torch
from torch import Tensor

from troth.errors import UserError
from troth.evaluate import token_subset_accuracy, zero_shot
from troth.evaluate.token_subsets import draw_subset, restrict, sub_geometry, subset_sizes
from troth.geometry import Oblique, Sphere

GEOMETRIES = {
    distance: Oblique(sub_dim=3, num_spheres=4, distance=distance)  # type: ignore[arg-type]
    for distance in ("inner_product", "geodesic", "geodesic_sum")
}
LABELS = torch.arange(40) % 5


@pytest.fixture(params=GEOMETRIES.values(), ids=GEOMETRIES.keys())
def geometry(request: pytest.FixtureRequest) -> Oblique:
    return request.param


def classes(geometry: Oblique, *shape: int) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return geometry.project(torch.randn(*shape, 12, generator=draw, dtype=torch.float64).flatten(0, -2)).view(
        *shape, 12
    )


def pictures(geometry: Oblique, near: Tensor, seed: int = 1) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return geometry.project(near[LABELS] + 0.7 * torch.randn(40, 12, generator=draw, dtype=torch.float64))


def loop(images: Tensor, texts: Tensor, spheres: list[int], geometry: Oblique) -> float:
    """Top-1 accuracy of sums over some of the spheres, one pair at a time."""
    right = 0
    for image, label in zip(images.view(-1, 4, 3), LABELS.tolist(), strict=True):
        scores = []
        for text in texts.view(-1, 4, 3):
            cosines = torch.stack([image[k] @ text[k] for k in spheres])
            angles = cosines.clamp(-1, 1).acos()
            score = {
                "inner_product": cosines.sum(),
                "geodesic": -angles.square().sum().sqrt(),
                "geodesic_sum": -angles.sum(),
            }[geometry.distance]
            scores.append(float(score))
        right += scores.index(max(scores)) == label
    return right / len(images)


def test_every_draw_equals_the_loop(geometry: Oblique) -> None:
    texts = classes(geometry, 5)
    images = pictures(geometry, texts)
    measured = token_subset_accuracy(images, LABELS, texts, geometry, draws=6, seed=3)
    assert measured.sizes == (1, 2, 4)
    for size, draws, mean, deviation in zip(
        measured.sizes, measured.draws, measured.mean, measured.deviation, strict=True
    ):
        expected = [loop(images, texts, draw_subset(4, size, 3, draw).tolist(), geometry) for draw in range(len(draws))]
        assert draws == pytest.approx(expected)
        assert mean == pytest.approx(statistics.fmean(expected))
        assert deviation == pytest.approx(statistics.stdev(expected) if size < 4 else 0)
    assert len(set(measured.draws[0])) > 1
    assert measured.chance == 0.2


def test_all_spheres_are_the_whole_model(geometry: Oblique) -> None:
    prompts = classes(geometry, 5, 3)
    images = pictures(geometry, prompts.mean(dim=1))
    whole = zero_shot(images, LABELS, prompts, geometry, (1,)).metrics["top1"]
    measured = token_subset_accuracy(images, LABELS, prompts, geometry)
    assert (measured.mean[-1], measured.deviation[-1], measured.draws[-1]) == (whole, 0, (whole,))
    assert [len(draws) for draws in measured.draws] == [20, 20, 1]


def test_the_similarity_of_all_spheres_is_the_sum_over_a_subset_and_its_rest() -> None:
    geometry = GEOMETRIES["inner_product"]
    texts = classes(geometry, 5)
    images = pictures(geometry, texts)
    chosen, rest = torch.tensor([0, 2]), torch.tensor([1, 3])
    parts = [
        sub_geometry(geometry, 2).similarity(restrict(images, geometry, part), restrict(texts, geometry, part))
        for part in (chosen, rest)
    ]
    torch.testing.assert_close(parts[0] + parts[1], geometry.similarity(images, texts))


def test_the_same_spheres_of_both_towers_are_compared() -> None:
    """Shuffling the spheres of both towers alike changes nothing but which are drawn; of one, everything."""
    geometry = GEOMETRIES["inner_product"]
    texts = classes(geometry, 5)
    images = texts[LABELS]
    assert token_subset_accuracy(images, LABELS, texts, geometry).mean == (1.0, 1.0, 1.0)
    shuffled = restrict(texts, geometry, torch.tensor([1, 2, 3, 0]))
    assert token_subset_accuracy(images, LABELS, shuffled, geometry).mean[0] < 0.9


def test_subsets_are_functions_of_their_names_and_any_is_as_likely() -> None:
    assert draw_subset(16, 4, 0, 7).tolist() == draw_subset(16, 4, 0, 7).tolist()
    assert draw_subset(16, 4, 0, 7).tolist() != draw_subset(16, 4, 1, 7).tolist()
    assert set(draw_subset(16, 4, 0, 7).tolist()) < set(draw_subset(16, 8, 0, 7).tolist())
    counts = Counter(tuple(draw_subset(5, 2, 0, draw).tolist()) for draw in range(2000))
    assert len(counts) == 10
    # 200 expected of each, with a standard deviation of 13.4.
    assert all(abs(count - 200) < 5 * 13.4 for count in counts.values())


@pytest.mark.parametrize(("spheres", "sizes"), [(2, (1, 2)), (8, (1, 2, 4, 8)), (12, (1, 2, 4, 8, 12))])
def test_sizes_double_up_to_all(spheres: int, sizes: tuple[int, ...]) -> None:
    assert subset_sizes(spheres) == sizes


def test_what_is_refused() -> None:
    geometry = GEOMETRIES["inner_product"]
    texts = classes(geometry, 5)
    images = pictures(geometry, texts)
    with pytest.raises(UserError, match="between 1 and 4"):
        token_subset_accuracy(images, LABELS, texts, geometry, [5])
    with pytest.raises(UserError, match="at least 2"):
        token_subset_accuracy(images, LABELS, texts, geometry, draws=1)
    with pytest.raises(UserError, match="one sphere only"):
        token_subset_accuracy(images, LABELS, texts, Oblique(sub_dim=12, num_spheres=1))
    with pytest.raises(UserError, match="one sphere only"):
        token_subset_accuracy(images, LABELS, texts, Sphere())  # type: ignore[arg-type]
