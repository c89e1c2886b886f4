"""Plain encoders against the matrix products they are."""

import pytest
import torch

from troth.encoders import ContrastiveModel, Plain, export_open_clip
from troth.errors import UserError
from troth.geometry import Sphere


def test_one_linear_map_without_bias_is_a_matrix() -> None:
    encoder = Plain(hidden=(), bias=False, embed_dim=3, image_dim=5, text_dim=4).build(7).double()
    assert {name: tuple(value.shape) for name, value in encoder.named_parameters()} == {
        "image_tower.0.weight": (3, 5),
        "text_tower.0.weight": (3, 4),
    }
    x, y = torch.randn(6, 5, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    torch.testing.assert_close(encoder.encode_image(x), x @ encoder.image_tower[0].weight.T)
    torch.testing.assert_close(encoder.encode_text(y), y @ encoder.text_tower[0].weight.T)


def test_hidden_layers_are_followed_by_relu_and_the_last_map_is_not() -> None:
    encoder = Plain(hidden=(16, 8), embed_dim=2, image_dim=5, text_dim=4).build().double()
    x = torch.randn(50, 5, dtype=torch.float64)
    (w1, b1), (w2, b2), (w3, b3) = ((encoder.image_tower[i].weight, encoder.image_tower[i].bias) for i in (0, 2, 4))
    hidden = (x @ w1.T + b1).clamp(min=0)
    expected = (hidden @ w2.T + b2).clamp(min=0) @ w3.T + b3
    torch.testing.assert_close(encoder.encode_image(x), expected)
    assert float(encoder.encode_image(x).detach().min()) < 0


def test_weights_follow_from_the_seed_and_are_torchs_default() -> None:
    config = Plain(hidden=(), bias=False, embed_dim=8, image_dim=400, text_dim=4)
    before = torch.random.get_rng_state()
    one, same, other = config.build(1), config.build(1), config.build(2)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(one.image_tower[0].weight, same.image_tower[0].weight)
    assert not torch.equal(one.image_tower[0].weight, other.image_tower[0].weight)
    # torch draws from U(-1/sqrt(fan in), 1/sqrt(fan in)).
    largest = float(one.image_tower[0].weight.detach().abs().max())
    assert 0.045 < largest <= 0.05


def test_what_only_the_data_can_say_must_be_said() -> None:
    with pytest.raises(UserError, match="text_dim: no data to take the dimension from"):
        Plain(image_dim=3).build()


def test_there_are_no_pictures_no_words_and_no_open_clip(tmp_path) -> None:
    encoder = Plain(image_dim=3, text_dim=3).build()
    with pytest.raises(UserError, match="takes vectors, not pictures"):
        encoder.image_transform(train=True)
    with pytest.raises(UserError, match="takes vectors, not words"):
        _ = encoder.tokenize
    with pytest.raises(UserError, match="an encoder of vectors cannot be an open_clip model"):
        export_open_clip(ContrastiveModel(encoder, Sphere()), tmp_path / "out")
