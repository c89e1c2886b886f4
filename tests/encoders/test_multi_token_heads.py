"""Heads with several class tokens: what each token computes, and who learns with whom."""

import pytest
import torch

from troth.encoders import Heads, Multi
from troth.encoders.heads import MultiTokenHead
from troth.encoders.tower_groups import tower_groups
from troth.errors import UserError
from troth.geometry import Oblique
from troth.recipe import from_dict

CONFIG = Heads(hidden_dim=16, depth=2, image_feature_dim=6, text_feature_dim=5, multi=Multi(num_tokens=3, sub_dim=4))


def test_each_token_is_the_head_of_its_own_shift() -> None:
    encoder = CONFIG.build(seed=1).double().eval()
    head = encoder.image_head
    assert isinstance(head, MultiTokenHead)
    torch.manual_seed(0)
    features = torch.randn(7, 6, dtype=torch.float64)
    norm, widen, *shared = head
    for token in range(3):
        hidden = widen(norm(features)) + head.class_embedding[token]
        for layer in shared:
            hidden = layer(hidden)
        torch.testing.assert_close(encoder.encode_image(features)[:, 4 * token : 4 * (token + 1)], hidden)
    assert (encoder.embed_dim, encoder.num_tokens) == (12, 3)


def test_tokens_differ_and_suit_the_oblique_manifold() -> None:
    encoder = CONFIG.build().eval()
    points = Oblique(sub_dim=4, num_spheres=3).project(encoder.encode_text(torch.randn(8, 5)))
    tokens = points.view(8, 3, 4)
    assert (tokens.norm(dim=2) - 1).abs().max() < 1e-5
    assert ((tokens[:, :1] * tokens[:, 1:]).sum(dim=2) < 0.99).any()


def test_the_dimension_of_a_token_is_the_embeddings_by_default() -> None:
    config = Heads(embed_dim=8, image_feature_dim=6, text_feature_dim=5, multi=Multi(num_tokens=2))
    assert config.build().embed_dim == 16


def test_class_embeddings_learn_with_the_first_map() -> None:
    first, *rest = tower_groups(CONFIG.build(), "image")
    assert "image_head.class_embedding" in first
    assert not any("class_embedding" in name for group in rest for name in group)


def test_heads_have_no_words_to_attend_to() -> None:
    multi = {"num_tokens": 2, "text_attention": "causal"}
    with pytest.raises(UserError, match=r"multi\.text_attention: heads have no words"):
        from_dict({"model": {"kind": "heads", "multi": multi}})
