"""Locked towers, fixed statistics of batch norms, and what cannot be locked."""

import copy

import pytest
import torch
from pydantic import ValidationError

from tests.encoders.test_models import TINY, TINY_TIMM
from troth.encoders import ContrastiveModel, Heads, LoRA, ScaleConfig, Towers, TowerTraining, apply_towers
from troth.encoders.tower_groups import tower_groups
from troth.errors import UserError
from troth.geometry import Sphere


def model(config=TINY, scale: ScaleConfig | None = None) -> ContrastiveModel:
    return ContrastiveModel(config.build(0), Sphere(), scale)


def test_a_locked_tower_keeps_its_last_groups_only() -> None:
    made = model()
    apply_towers(made, Towers(text=TowerTraining(locked=True, unlocked_groups=1)))
    groups = tower_groups(made.encoder, "text")
    fixed = {name for name, parameter in made.named_parameters() if not parameter.requires_grad}
    assert fixed == {f"encoder.{name}" for group in groups[:-1] for name in group}
    assert groups[-1] == ["clip.text_projection"]


@pytest.mark.parametrize("unlocked", [0, 4])
def test_fixed_statistics_stay_fixed_in_training(unlocked: int) -> None:
    made = model(TINY_TIMM).train()
    training = TowerTraining(locked=True, unlocked_groups=unlocked, freeze_batch_norm=True)
    apply_towers(made, Towers(image=training))
    norms = {n: m for n, m in made.named_modules() if isinstance(m, torch.nn.BatchNorm2d)}
    locked = {name for name in norms if not made.get_parameter(f"{name}.weight").requires_grad}
    assert set(made.fixed_statistics) == locked
    assert locked == set(norms) if not unlocked else 0 < len(locked) < len(norms)
    for owner in (made, copy.deepcopy(made)):
        before = {name: owner.get_submodule(name).running_mean.clone() for name in norms}
        owner.eval().train()
        owner.embed_image(torch.randn(4, 3, 32, 32))
        for name, mean in before.items():
            assert torch.equal(owner.get_submodule(name).running_mean, mean) == (name in locked), name
    assert made.encoder.clip.training


def test_locked_statistics_move_unless_they_are_fixed() -> None:
    made = model(TINY_TIMM)
    apply_towers(made, Towers(image=TowerTraining(locked=True)))
    norm = next(m for m in made.train().modules() if isinstance(m, torch.nn.BatchNorm2d))
    before = norm.running_mean.clone()
    made.embed_image(torch.randn(4, 3, 32, 32))
    assert not torch.equal(norm.running_mean, before)
    assert made.fixed_statistics == ()


@pytest.mark.parametrize(
    ("config", "towers", "message"),
    [
        (TINY, Towers(image=TowerTraining(locked=True, unlocked_groups=3)), r"image\.unlocked_groups.*has 3 groups"),
        (TINY, Towers(text=TowerTraining(freeze_batch_norm=True)), r"text\.freeze_batch_norm.*no batch norms"),
        (
            TINY_TIMM,
            Towers(image=TowerTraining(locked=True, unlocked_groups=8, freeze_batch_norm=True)),
            r"image\.(unlocked_groups|freeze_batch_norm)",
        ),
        (TINY, Towers(image=TowerTraining(lora=LoRA())), r"image\.lora: adapters go into timm image towers"),
        (Heads(hidden_dim=16), Towers(text=TowerTraining(lora=LoRA())), r"text\.lora: adapters go into"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_a_tower_does_not_have_is_one_line(config, towers: Towers, message: str) -> None:
    with pytest.raises(UserError, match=message):
        apply_towers(model(config), towers)


def test_something_must_learn() -> None:
    both = Towers(image=TowerTraining(locked=True), text=TowerTraining(locked=True))
    apply_towers(model(), both)  # the scale does
    with pytest.raises(UserError, match="nothing in the model learns"):
        apply_towers(model(scale=ScaleConfig(learnable=False)), both)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"unlocked_groups": 1}, "set locked = true"),
        ({"locked": True, "lock_after_epochs": 2}, "leave out locked, or lock_after_epochs"),
        ({"locked": True, "lora": {}}, "leave out locked, or lora"),
        ({"learning_rate_factor": 0}, "greater than 0"),
        ({"layer_decay": 1.1}, "less than or equal to 1"),
        ({"lora": {"targets": ()}}, "at least 1 item"),
        ({"lora": {"rank": 0}}, "greater than 0"),
        ({"lock_after_epochs": 0}, "greater than 0"),
    ],
)
def test_settings_that_contradict_themselves_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TowerTraining(**settings)
