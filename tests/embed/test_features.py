"""Features of sources: each picture and caption once, unreadable ones in the ledger, then from the cache."""

from __future__ import annotations

import io

import pytest
import torch
from PIL import Image
from torch import nn

from tests.encoders.test_models import TINY
from troth.data.ledger import Ledger, SampleError
from troth.embed import FeatureCache, Uncached, embed_source, embed_texts, frozen_features
from troth.embed.features import share_features
from troth.encoders import ContrastiveModel, Heads
from troth.encoders.pixels import PixelTransform
from troth.errors import UserError
from troth.geometry import Sphere


class Colours:
    """A source of single-coloured pictures; sample 2 is broken, sample 4 is missing."""

    name = "colours"
    fingerprint = "f" * 64

    def __init__(self, count=6):
        self.ledger = Ledger()
        self.shade = 10
        self.count = count
        self.reads = 0

    def __len__(self):
        return self.count

    def key(self, index):
        return f"colour-{index}"

    def captions(self, index):
        return ("a colour", f"shade {index // 2}")

    def category(self, index):
        return None

    def metadata(self, index):
        return {}

    def read_image(self, index):
        self.reads += 1
        if index == 4:
            raise SampleError(self.key(index), "missing-file", "gone")
        if index == 2:
            return b"\x89PNG nonsense"
        file = io.BytesIO()
        Image.new("RGB", (40, 30), (index * 40, self.shade, 0)).save(file, "PNG")
        return file.getvalue()


class MeanColour:
    """An image encoder whose features are the mean red, green and blue."""

    name, dim, image_size, precision = "mean", 3, 16, "float32"
    weights_hash, preprocessing = "image weights", "mean colour"
    transform = PixelTransform(16)

    def __init__(self):
        self.encoded = 0

    def encode_pixels(self, pixels):
        self.encoded += len(pixels)
        return pixels.float().mean(dim=(2, 3))


class Lengths:
    """A text encoder whose feature is the length."""

    dim, precision, weights_hash, tokenization = 2, "float32", "text weights", "len"

    def __init__(self):
        self.encoded = []

    def encode(self, captions, on_progress=None):
        self.encoded.extend(captions)
        if on_progress is not None:
            on_progress(len(captions), len(captions))
        return torch.tensor([[float(len(caption)), 1.0] for caption in captions])


@pytest.fixture
def cache(tmp_path):
    return FeatureCache(tmp_path)


def test_every_picture_and_caption_once(cache):
    source, images, texts, progress = Colours(), MeanColour(), Lengths(), []
    features = frozen_features(
        source, images, texts, cache, ["prompt", "a colour"], on_progress=lambda *at: progress.append(at)
    )
    assert features.captions == ("a colour", "shade 0", "shade 1", "shade 2", "prompt")
    assert texts.encoded == list(features.captions)
    assert images.encoded == 4
    assert features.valid.tolist() == [True, True, False, True, False, True]
    assert features.image_features[3].tolist() == [120, 10, 0]
    assert features.image_features[~features.valid].abs().sum() == 0
    assert [(entry.key, entry.reason) for entry in features.ledger] == [
        ("colour-2", "corrupt-image"),
        ("colour-4", "missing-file"),
    ]
    assert features.text_features[features.rows(["prompt", "shade 2"])][:, 0].tolist() == [6, 7]
    assert "prompt" in features
    assert progress == [(6, 11), (11, 11)]


def test_the_second_time_comes_from_the_cache_with_its_ledger(cache):
    first = frozen_features(Colours(), MeanColour(), Lengths(), cache)
    images, texts = MeanColour(), Lengths()
    again = frozen_features(Colours(), images, texts, cache)
    assert images.encoded == 0
    assert texts.encoded == []
    assert torch.equal(first.image_features, again.image_features)
    assert again.ledger == first.ledger


def test_other_pixels_under_the_same_keys_are_encoded_anew(cache):
    frozen_features(Colours(), MeanColour(), Lengths(), cache)
    changed, images, texts = Colours(), MeanColour(), Lengths()
    changed.shade = 99
    features = frozen_features(changed, images, texts, cache)
    assert images.encoded == 4
    assert texts.encoded == [], "the captions did not change"
    assert features.image_features[0, 1] == 99


def test_the_same_pictures_under_other_captions_are_not_encoded_again(cache):
    class Recaptioned(Colours):
        fingerprint = "e" * 64

        def captions(self, index):
            return (f"another {index}",)

    first = frozen_features(Colours(), MeanColour(), Lengths(), cache)
    images, texts = MeanColour(), Lengths()
    again = frozen_features(Recaptioned(), images, texts, cache)
    assert images.encoded == 0
    assert torch.equal(first.image_features, again.image_features)
    assert texts.encoded == [f"another {index}" for index in range(6)]


def test_other_keys_are_other_pictures(cache):
    class Renamed(Colours):
        def key(self, index):
            return f"shade-{index}"

    frozen_features(Colours(), MeanColour(), Lengths(), cache)
    images = MeanColour()
    frozen_features(Renamed(), images, Lengths(), cache)
    assert images.encoded == 4


def test_shared_features_are_read_and_not_encoded(cache):
    class Whole(Colours):
        def read_image(self, index):
            return Colours.read_image(self, 0 if index in (2, 4) else index)

    class Part(Whole):
        """Samples 5, 1 and 0 of the whole under other keys, with captions of other samples."""

        def key(self, index):
            return f"part-{index}"

        def captions(self, index):
            return (("shade 2",), ("shade 1", "a colour"), ("shade 2",))[index]

        def read_image(self, index):
            return super().read_image((5, 1, 0)[index])

    whole = frozen_features(Whole(), MeanColour(), Lengths(), cache)
    images, texts = MeanColour(), Lengths()
    share_features(whole, torch.tensor([5, 1, 0]), Part(3), images, texts, cache)
    shared = frozen_features(Part(3), images, texts, cache)
    assert (images.encoded, texts.encoded) == (0, [])
    alone = frozen_features(Part(3), MeanColour(), Lengths(), FeatureCache(cache.folder / "other"))
    assert shared.captions == alone.captions == ("shade 2", "shade 1", "a colour")
    assert torch.equal(shared.image_features, alone.image_features)
    assert torch.equal(shared.text_features, alone.text_features)
    assert bool(shared.valid.all())


@pytest.mark.parametrize("change", ["weights_hash", "preprocessing", "precision", "name"])
def test_another_image_encoder_is_another_file(change, cache):
    frozen_features(Colours(), MeanColour(), Lengths(), cache)
    other = MeanColour()
    setattr(other, change, "another")
    frozen_features(Colours(), other, Lengths(), cache)
    assert other.encoded == 4


@pytest.mark.parametrize("change", ["weights_hash", "tokenization", "precision"])
def test_another_text_encoder_is_another_file(change, cache):
    frozen_features(Colours(), MeanColour(), Lengths(), cache)
    other = Lengths()
    setattr(other, change, "another")
    frozen_features(Colours(), MeanColour(), other, cache)
    assert len(other.encoded) == 4


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_worker_processes_change_nothing(tmp_path):
    before = torch.get_rng_state()
    alone = frozen_features(Colours(70), MeanColour(), Lengths(), FeatureCache(tmp_path / "a"), num_workers=0)
    workers = frozen_features(Colours(70), MeanColour(), Lengths(), FeatureCache(tmp_path / "b"), num_workers=2)
    assert torch.equal(alone.image_features, workers.image_features)
    assert [(entry.key, entry.reason) for entry in alone.ledger] == [
        (entry.key, entry.reason) for entry in workers.ledger
    ]
    assert torch.equal(before, torch.get_rng_state())


def test_towers_embed_a_source_and_keep_their_mode(cache):
    model = ContrastiveModel(TINY.build(0), Sphere()).train()
    model.encoder.clip.visual.ln_pre.eval()
    source = Colours()
    embedded = embed_source(model, source, cache, extra_captions=["prompt"], batch_size=4)
    assert model.training
    assert not model.encoder.clip.visual.ln_pre.training
    assert embedded.image.shape == (6, 32)
    assert embedded.captions == ("a colour", "shade 0", "shade 1", "shade 2", "prompt")
    torch.testing.assert_close(embedded.image[embedded.valid].norm(dim=-1), torch.ones(4))
    assert embedded.image[2].abs().sum() == 0
    assert [entry.key for entry in embedded.ledger] == ["colour-2", "colour-4"]
    assert not embedded.image.requires_grad
    picture = model.encoder.image_transform(train=False)(Image.new("RGB", (40, 30), (0, 10, 0)))
    with torch.no_grad():
        expected = model.eval().embed_image(picture.unsqueeze(0))[0]
    torch.testing.assert_close(embedded.image[0], expected)
    texts = embed_texts(model, ["prompt", "shade 1", "prompt"], cache)
    torch.testing.assert_close(texts, embedded.text[embedded.rows(["prompt", "shade 1", "prompt"])])


def test_towers_encode_once_per_weights(cache, monkeypatch):
    model = ContrastiveModel(TINY.build(0), Sphere())
    first = embed_source(model, Colours(), cache)
    monkeypatch.setattr(ContrastiveModel, "embed_image", lambda *_: pytest.fail("encoded again"))
    monkeypatch.setattr(ContrastiveModel, "embed_text", lambda *_: pytest.fail("encoded again"))
    again = embed_source(model, Colours(), cache)
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.text, again.text)
    monkeypatch.undo()
    other = embed_source(ContrastiveModel(TINY.build(1), Sphere()), Colours(), cache)
    assert not torch.equal(first.image, other.image)


def test_heads_use_the_frozen_features_and_never_encode_again(cache, monkeypatch):
    images, texts = MeanColour(), Lengths()
    config = Heads(embed_dim=8, hidden_dim=16, image_feature_dim=3, text_feature_dim=2)
    monkeypatch.setattr(Heads, "open_encoders", lambda self: (images, texts))
    source = Colours()
    for seed in (0, 1):
        model = ContrastiveModel(config.build(seed), Sphere())
        embedded = embed_source(model, source, cache)
        assert images.encoded == 4, "once, whatever the heads' weights"
        assert len(texts.encoded) == 4
    features = frozen_features(source, images, texts, cache)
    given = embed_source(model, source, Uncached(), features=features)
    assert torch.equal(given.image, embedded.image)
    assert given.image[2].abs().sum() == 0
    with torch.no_grad():
        expected = model.eval().embed_text(features.text_features)
    torch.testing.assert_close(given.text, expected)
    torch.testing.assert_close(embed_texts(model, ["shade 1"], features=features), expected[features.rows(["shade 1"])])
    torch.testing.assert_close(
        embed_texts(model, ["shade 1"], cache, text_encoder=texts), expected[features.rows(["shade 1"])]
    )
    wrong = ContrastiveModel(Heads(image_feature_dim=4, text_feature_dim=2, hidden_dim=16).build(0), Sphere())
    with pytest.raises(UserError, match="have 3 dimensions, the heads take 4"):
        embed_source(wrong, source, cache, features=features)


def test_the_model_is_never_left_with_gradients(cache):
    model = ContrastiveModel(TINY.build(0), Sphere())
    embed_source(model, Colours(), cache)
    assert all(isinstance(parameter, nn.Parameter) and parameter.grad is None for parameter in model.parameters())


def test_a_picture_that_was_only_out_of_reach_is_not_missing_for_ever(cache):
    class Flaky(Colours):
        """Hands over every picture once, then loses sample 0 until it is mended."""

        broken = True

        def read_image(self, index):
            data = super().read_image(index)
            if self.broken and index == 0 and self.reads > self.count:
                raise SampleError(self.key(index), "missing-file", "the server is busy")
            return data

    source = Flaky()
    assert not frozen_features(source, MeanColour(), Lengths(), cache).valid[0]
    source.broken = False
    assert frozen_features(source, MeanColour(), Lengths(), cache).valid[0]


def test_the_same_weights_under_another_architecture_are_embedded_anew(cache):
    model = ContrastiveModel(TINY.build(0), Sphere())
    embed_source(model, Colours(), cache)
    before = set(cache.folder.glob("*.safetensors"))
    model.encoder.architecture += " with another activation"
    embed_source(model, Colours(), cache)
    assert len(set(cache.folder.glob("*.safetensors")) - before) == 2


def test_a_very_long_picture_is_embedded_without_blowing_up():
    """Resized by its shorter side, 100,000 x 2 pixels would be 10 GiB at 32 px; only the crop is made."""

    class Long(Colours):
        def read_image(self, index):
            file = io.BytesIO()
            Image.new("RGB", (100_000, 2), (index * 40, 0, 0)).save(file, "PNG")
            return file.getvalue()

    model = ContrastiveModel(TINY.build(0), Sphere())
    assert embed_source(model, Long(2), Uncached()).valid.all()
