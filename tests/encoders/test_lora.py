"""Adapters: what learns, what is computed, and that an export needs none of it."""

import sys
from pathlib import Path

import open_clip
import pytest
import torch

from tests.encoders.test_models import TINY_TIMM
from tests.encoders.test_tower_groups import TIMM_VIT, hugging_face
from troth.encoders import ContrastiveModel, LoRA, OpenClip, Timm, Towers, TowerTraining, apply_towers, export_open_clip
from troth.encoders.decay import no_decay
from troth.encoders.lora import has_adapters, without_adapters
from troth.encoders.tower_groups import tower_groups
from troth.encoders.towers import quiet_open_clip
from troth.errors import UserError
from troth.geometry import Sphere


def adapted(lora: LoRA, seed: int = 0, config: Timm = TIMM_VIT) -> ContrastiveModel:
    made = ContrastiveModel(config.build(0), Sphere()).eval()
    apply_towers(made, Towers(image=TowerTraining(lora=lora)), seed)
    return made


def trained(model: ContrastiveModel) -> ContrastiveModel:
    """Give the second matrices values, as training does."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    return model


def test_only_adapters_and_what_is_behind_the_trunk_learn() -> None:
    plain, model = ContrastiveModel(TIMM_VIT.build(0), Sphere()), adapted(LoRA(rank=2, targets=("qkv",)))
    learning = {name for name, parameter in model.encoder.named_parameters() if parameter.requires_grad}
    image = {name for name in learning if name.startswith("clip.visual.")}
    assert {name for name in image if "lora_" not in name} == {"clip.visual.head.proj.weight"}
    blocks = len(model.encoder.clip.visual.trunk.blocks)
    assert len(image) == 1 + 2 * blocks
    assert all(".attn.qkv.lora_" in name for name in image if "lora_" in name)
    assert {name for name in learning if not name.startswith("clip.visual.")} == {
        name for name, _ in plain.encoder.named_parameters() if not name.startswith("clip.visual.")
    }
    assert not no_decay(model) & {f"encoder.{name}" for name in image if "lora_" in name}
    groups = tower_groups(model.encoder, "image")
    assert len(groups) == len(tower_groups(plain.encoder, "image"))
    assert sum("lora_" in name for name in groups[1]) == 2
    picture = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        assert torch.equal(model.embed_image(picture), plain.eval().embed_image(picture)), "nothing changes at first"


def test_adapters_come_from_the_seed_and_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = (adapted(LoRA(rank=2), seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    names = [name for name in first if "lora_A" in name]
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in names)


def test_an_adapted_layer_is_its_equation() -> None:
    model = trained(adapted(LoRA(rank=3, alpha=6.0, targets=("blocks.0.mlp.fc1",))))
    layer = model.encoder.clip.visual.trunk.blocks[0].mlp.fc1
    x = torch.randn(5, layer.base_layer.in_features)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    expected = x @ (layer.base_layer.weight + 6.0 / 3 * b @ a).T + layer.base_layer.bias
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
    assert "LoRA(rank=3, alpha=6.0" in model.encoder.architecture, "cached points depend on alpha, too"


def test_the_export_has_the_adapters_in_its_weights(tmp_path: Path) -> None:
    model = trained(adapted(LoRA(rank=4)))
    before = {name: values.clone() for name, values in model.state_dict().items()}
    folder = export_open_clip(model, tmp_path / "export")
    with quiet_open_clip():
        theirs = open_clip.create_model(f"local-dir:{folder}").eval()
    picture = torch.randn(3, 3, 160, 160)
    with torch.no_grad():
        ours = model.embed_image(picture)
        torch.testing.assert_close(theirs.encode_image(picture, normalize=True), ours, rtol=1e-4, atol=1e-5)
        plain = ContrastiveModel(TIMM_VIT.build(0), Sphere()).eval()
        assert not torch.allclose(plain.embed_image(picture), ours, atol=1e-2)
    assert has_adapters(model)
    assert all(torch.equal(values, before[name]) for name, values in model.state_dict().items())


def test_a_hugging_face_text_tower_takes_adapters(tmp_path: Path) -> None:
    model = ContrastiveModel(hugging_face(tmp_path), Sphere()).eval()
    tokens = torch.randint(1, 50, (3, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model.embed_text(tokens)
    names = set(model.encoder.clip.state_dict())
    apply_towers(model, Towers(text=TowerTraining(lora=LoRA(rank=2, targets=("query", "value")))))
    learning = {n for n, p in model.encoder.clip.text.named_parameters() if p.requires_grad}
    assert {name for name in learning if "lora_" not in name} == {"proj.weight"}
    assert len(learning) == 1 + 2 * 2 * 2
    with torch.no_grad():
        torch.testing.assert_close(model.embed_text(tokens), before)
        after = trained(model).embed_text(tokens)
        assert not torch.allclose(after, before, atol=1e-3)
        merged = without_adapters(model.encoder.clip)
        assert set(merged.state_dict()) == names
        torch.testing.assert_close(merged.encode_text(tokens, normalize=True), after, rtol=1e-4, atol=1e-5)
        again = OpenClip(name=f"local-dir:{export_open_clip(model, tmp_path / 'export')}").build(0).eval()
        loaded = ContrastiveModel(again, Sphere())
        torch.testing.assert_close(loaded.embed_text(tokens), after, rtol=1e-4, atol=1e-5)
    adapters = Towers(text=TowerTraining(lora=LoRA(rank=2)))
    apply_towers(loaded, adapters)  # a model by name, built as a recipe builds it
    assert sum("lora_B" in name for name, _ in loaded.named_parameters()) > 4
    model.embed_text(tokens).sum().backward()
    assert all(p.grad is not None for n, p in model.encoder.clip.text.named_parameters() if n in learning)


@pytest.mark.parametrize(
    ("config", "lora", "message"),
    [
        (TIMM_VIT, LoRA(targets=("qvk",)), r"image\.lora\.targets: .* has no layer 'qvk' \(did you mean qkv"),
        (TINY_TIMM, LoRA(), "has no linear layers"),
        (TIMM_VIT, LoRA(targets=("norm1",)), r"image\.lora\.targets"),
    ],
    ids=["misspelt", "no linear layer", "a norm"],
)
def test_layers_that_cannot_be_adapted_are_one_line(config: Timm, lora: LoRA, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        adapted(lora, config=config)
    assert "\n" not in str(caught.value)


def test_a_layer_whose_weight_is_used_without_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = TIMM_VIT.build(0)
    attention = type(encoder.clip.visual.trunk.blocks[0].attn)
    usual = attention.forward

    def past(self, x, *arguments, **keywords):
        torch.nn.functional.linear(x, self.qkv.weight, self.qkv.bias)
        return x

    assert usual is not past
    monkeypatch.setattr(attention, "forward", past)
    with pytest.raises(UserError, match=r"uses the weight of blocks\.0\.attn\.qkv without the layer"):
        adapted(LoRA(targets=("qkv",)))


def test_without_peft_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"pip install 'troth\[lora\]'"):
        adapted(LoRA())
