"""Detected pairs and their losses against loops over their definitions, whatever the orders, tiles and ranks."""

from typing import get_args

import pytest
import torch
from torch import Tensor

from tests.distributed_detection import compute
from tests.objectives.instances import GEOMETRIES, features
from tests.references import detection as references
from tests.torchrun import Runs, check_gradients, check_losses, one_and_two
from troth.geometry import Sphere
from troth.objectives.detection import detection_losses
from troth.similarity import Matching, Pairs, detect

MATCHINGS = get_args(Matching)
TILES = [(1024, 1024), (3, 2), (1, 7)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return one_and_two(compute, tmp_path_factory)


def batch(seed: int = 1, size: int = 7) -> tuple[Tensor, Tensor]:
    """Images and captions in different orders."""
    image, text = features(size, seed=seed)
    return image, text[torch.randperm(size, generator=torch.Generator().manual_seed(seed))]


def found(image: Tensor, text: Tensor, matching: Matching, tile: tuple[int, int] = (3, 2)) -> list[tuple[int, int]]:
    edges = detect(image, text, Sphere(), matching, tile)
    return list(zip(edges.image.tolist(), edges.text.tolist(), strict=True))


def losses(image: Tensor, text: Tensor, scale: Tensor, matching: Matching, judges: tuple[Tensor, Tensor]) -> Tensor:
    edges = detect(*judges, Sphere(), matching, (3, 2))
    return detection_losses(Pairs(image, text, scale, tile=(3, 2)), edges, matching)


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("matching", MATCHINGS)
@pytest.mark.parametrize("seed", range(4))
def test_the_edges_are_those_of_the_definition(matching: Matching, tile: tuple[int, int], seed: int) -> None:
    image, text = batch(seed)
    expected = references.edges(image @ text.T, matching)
    assert sorted(found(image, text, matching, tile)) == sorted(expected)


@pytest.mark.parametrize("tile", TILES)
def test_of_equal_similarities_the_first_counts(tile: tuple[int, int]) -> None:
    image, text = batch()
    same = image[:1].repeat(7, 1), text[:1].repeat(7, 1)
    assert found(*same, "top", tile) == [(0, j) for j in range(7)]
    assert found(*same, "mutual", tile) == [(0, 0)]
    assert found(*same, "argmax", tile) == [*((0, j) for j in range(7)), *((i, 0) for i in range(7))]


@pytest.mark.parametrize("matching", MATCHINGS)
def test_losses_and_gradients_are_those_of_the_definition(matching: Matching) -> None:
    image, text = batch()
    judges = batch(seed=2)
    leaves = [image.requires_grad_(), text.requires_grad_(), torch.tensor(4.0).double().requires_grad_()]
    values = losses(*leaves, matching, judges)
    logits, similarity = leaves[2] * image @ text.T, judges[0] @ judges[1].T
    if matching == "mutual":
        assert len(references.edges(similarity, matching)) in range(2, 7)
        expected = references.mutual_mean(logits, similarity)
    else:
        rows = references.ROWS[matching](logits, similarity)
        torch.testing.assert_close(values, rows, rtol=1e-12, atol=1e-12)
        expected = rows.mean()
    torch.testing.assert_close(values.mean(), expected, rtol=1e-12, atol=1e-12)
    slopes, wanted = torch.autograd.grad(values.mean(), leaves), torch.autograd.grad(expected, leaves)
    torch.testing.assert_close(slopes, wanted, rtol=1e-10, atol=1e-12)


def test_both_published_pairings_of_argmax_are_one_number() -> None:
    image, text = batch()
    logits = 4 * image @ text.T
    images, captions = logits.argmax(0), logits.argmax(1)
    rows, columns = logits.logsumexp(1).mean(), logits.logsumexp(0).mean()
    by_caption = -logits[images, torch.arange(7)].mean()
    by_image = -logits[torch.arange(7), captions].mean()
    paper, swapped = (
        0.5 * ((by_caption + rows) + (by_image + columns)),
        0.5 * ((by_image + rows) + (by_caption + columns)),
    )
    value = losses(image, text, torch.tensor(4.0).double(), "argmax", (image, text)).mean()
    torch.testing.assert_close(value, paper)
    torch.testing.assert_close(value, swapped)


@pytest.mark.parametrize("matching", MATCHINGS)
def test_the_order_of_either_side_changes_nothing(matching: Matching) -> None:
    image, text = batch()
    order = torch.randperm(7, generator=torch.Generator().manual_seed(9))
    scale = torch.tensor(4.0).double()
    value = losses(image, text, scale, matching, (image, text)).mean()
    for other in ((image[order], text), (image, text[order])):
        torch.testing.assert_close(losses(*other, scale, matching, other).mean(), value, rtol=1e-12, atol=1e-12)
    expected = sorted((i, int(order.argsort()[j])) for i, j in found(image, text, matching))
    assert sorted(found(image, text[order], matching)) == expected


def test_what_has_no_partner_has_no_loss_of_its_own_but_is_a_negative() -> None:
    image, text = batch(seed=5)
    edges = detect(image, text, Sphere(), "mutual")
    alone = [row for row in range(7) if row not in edges.image and row not in edges.text]
    assert alone, "the test needs a row whose image and caption are both left over"
    image.requires_grad_()
    values = losses(image, text, torch.tensor(4.0).double(), "mutual", (image, text))
    assert not values[alone].any()
    assert values[edges.image].all()
    (slope,) = torch.autograd.grad(values.sum(), image)
    assert slope[alone].any()


def test_a_geometry_whose_directions_differ_is_asked_for_both() -> None:
    geometry, image_width, text_width = GEOMETRIES["filip, unequal"]
    draw = torch.Generator().manual_seed(0)
    image, text = (
        geometry.project(torch.randn(6, width, generator=draw, dtype=torch.float64))
        for width in (image_width, text_width)
    )
    views = geometry.views()
    assert views is not None
    similarity = torch.stack([view.similarity(image, text) for view in views]).mean(0)
    for matching in MATCHINGS:
        edges = detect(image, text, geometry, matching, (4, 5))
        expected = references.edges(similarity, matching)
        assert sorted(zip(edges.image.tolist(), edges.text.tolist(), strict=True)) == sorted(expected)


def test_the_choice_has_no_gradient_and_a_number_that_is_none_no_crash() -> None:
    image, text = batch()
    image.requires_grad_()
    for matching in MATCHINGS:
        edges = detect(image, text, Sphere(), matching)
        assert not edges.image.requires_grad
        broken = image.detach().clone()
        broken[2] = torch.nan
        assert len(detect(broken, text, Sphere(), matching)) > 0


def test_two_ranks_give_the_losses_of_one(runs: Runs) -> None:
    check_losses(runs)


def test_averaged_over_ranks_the_gradients_are_those_of_one(runs: Runs) -> None:
    check_gradients(runs)
