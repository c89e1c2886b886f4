"""FILIP's own laws: padding, directions, unequal numbers of tokens."""

from __future__ import annotations

import pytest
import torch

from troth.errors import UserError
from troth.geometry import FILIP

IMAGE, TEXT = FILIP(sub_dim=3), FILIP(sub_dim=3, direction="text_to_image")


def sides(image_tokens: int = 4, text_tokens: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return (
        IMAGE.project(torch.randn(5, image_tokens * 3, generator=generator, dtype=torch.float64)),
        IMAGE.project(torch.randn(6, text_tokens * 3, generator=generator, dtype=torch.float64)),
    )


def test_a_pair_worked_out_by_hand() -> None:
    image = torch.tensor([[1.0, 0, 0, 0, 1, 0]])
    text = torch.tensor([[0.6, 0.8, 0, 0, 0, 1, 0, -1, 0]])
    # image tokens: best 0.6 and 0.8; text tokens: best 0.8, 0 and 0
    assert float(IMAGE.similarity(image, text)) == pytest.approx(0.7)
    assert float(TEXT.similarity(image, text)) == pytest.approx(0.8 / 3)
    assert float(IMAGE.paired_similarity(image, text)) == pytest.approx(0.7)
    assert float(TEXT.paired_similarity(image, text)) == pytest.approx(0.8 / 3)


def test_the_views_are_the_two_directions_whatever_the_own() -> None:
    image, text = sides()
    for geometry in (IMAGE, TEXT):
        assert geometry.views() == (IMAGE, TEXT)
    # A caption that searches is a row: the default direction then averages over the caption's tokens.
    torch.testing.assert_close(IMAGE.similarity(text, image), TEXT.similarity(image, text).T)


@pytest.mark.parametrize("geometry", [IMAGE, TEXT], ids=["image", "text"])
def test_padding_changes_nothing_and_gets_no_gradient(geometry: FILIP) -> None:
    image, text = sides()
    # Closer to everything than a token could be if zeros counted: all similarities are made negative.
    image, text = image.abs(), -text.abs()
    plain = geometry.similarity(image, text)
    wide_image = torch.cat([image[:, :3], torch.zeros(5, 6), image[:, 3:]], dim=1)
    wide_text = torch.cat([text, torch.zeros(6, 3)], dim=1)
    torch.testing.assert_close(geometry.similarity(wide_image, wide_text), plain)
    torch.testing.assert_close(geometry.paired_similarity(wide_image, wide_text[:5]), plain[:, :5].diagonal())
    upstream = torch.randn(5, 6, dtype=torch.float64)
    expected = geometry.similarity_gradient(upstream, image, text)
    row, column = geometry.similarity_gradient(upstream, wide_image, wide_text)
    torch.testing.assert_close(torch.cat([row[:, :3], row[:, 9:]], dim=1), expected[0])
    torch.testing.assert_close(column[:, :6], expected[1])
    assert not row[:, 3:9].any()
    assert not column[:, 6:].any()


@pytest.mark.parametrize("geometry", [IMAGE, TEXT], ids=["image", "text"])
def test_a_sample_of_padding_only_is_at_zero(geometry: FILIP) -> None:
    image, text = sides()
    image[1], text[1] = 0, 0
    found = geometry.similarity(image, text)
    assert not found[1].any()
    assert not found[:, 1].any()
    assert found[0, 0] != 0
    assert not geometry.paired_similarity(image, text[:5])[1]
    gradients = geometry.similarity_gradient(torch.ones_like(found), image, text)
    assert not gradients[0][1].any()
    assert not gradients[1][1].any()


def test_features_that_are_not_whole_tokens_are_refused() -> None:
    with pytest.raises(UserError, match=r"^geometry.sub_dim: features of 10 dimensions are not whole tokens of 3"):
        IMAGE.project(torch.randn(2, 10))
