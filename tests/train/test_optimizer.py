"""Weight decay spares what it must, and the learning rate follows its formula."""

import math

import pytest
import torch
from pydantic import ValidationError

from tests.train.small import small_model
from troth.train import OptimizerConfig, ScheduleConfig


def test_norms_biases_and_scale_do_not_decay() -> None:
    model = small_model(bias=True)
    optimizer = OptimizerConfig(weight_decay=0.3).build(model)
    names = {parameter: name for name, parameter in model.named_parameters()}
    decay = {names[p]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert set(decay) == set(names.values())
    assert {name for name, value in decay.items() if value == 0.3} == {
        "encoder.image_tower.0.weight",
        "encoder.image_tower.4.weight",
        "encoder.text_tower.0.weight",
        "encoder.text_tower.3.weight",
    }
    assert {decay[name] for name in ("log_scale", "bias", "encoder.image_tower.1.weight")} == {0.0}


def test_what_is_frozen_is_not_optimised() -> None:
    model = small_model()
    model.encoder.image_tower.requires_grad_(False)
    model.encoder.text_tower.requires_grad_(False)
    optimizer = OptimizerConfig().build(model)
    assert [p is model.log_scale for group in optimizer.param_groups for p in group["params"]] == [True]


def test_a_step_is_adamw_by_hand() -> None:
    weight = torch.nn.Linear(2, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        weight.weight.copy_(torch.tensor([[1.0, -2.0]]))
    optimizer = OptimizerConfig(learning_rate=0.1, weight_decay=0.2, eps=1e-6).build(weight)
    weight.weight.grad = torch.tensor([[0.5, 0.25]], dtype=torch.float64)
    optimizer.step()
    # First step: both bias-corrected moments are the gradient and its square.
    expected = [w * (1 - 0.1 * 0.2) - 0.1 * g / (abs(g) + 1e-6) for w, g in ((1.0, 0.5), (-2.0, 0.25))]
    assert weight.weight[0].tolist() == pytest.approx(expected, rel=1e-12)


def test_warmup_then_cosine_as_in_open_clip() -> None:
    schedule, warmup, total = ScheduleConfig(warmup_steps=10), 10, 50
    for step in range(total):
        if step < warmup:
            expected = (step + 1) / warmup
        else:
            expected = 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))
        assert schedule.factor(step, total) == pytest.approx(expected, abs=1e-15)


def test_the_other_ends_of_the_schedule() -> None:
    assert ScheduleConfig(final_fraction=0.1).factor(10**6, 10**6) == pytest.approx(0.1)
    assert ScheduleConfig(shape="constant", warmup_fraction=0.5).factor(7, 10) == 1.0
    assert ScheduleConfig(warmup_fraction=0.5).factor(0, 10) == pytest.approx(1 / 5)
    assert ScheduleConfig(warmup_steps=0, warmup_fraction=0.5).factor(0, 10) == 1.0
    assert ScheduleConfig(warmup_steps=100).factor(9, 10) == 1.0
    assert ScheduleConfig(warmup_steps=0, shape="constant").factor(0, 1) == 1.0


@pytest.mark.parametrize(
    ("config", "wrong"),
    [
        (OptimizerConfig, {"learning_rate": 0}),
        (OptimizerConfig, {"learning_rate": math.inf}),
        (OptimizerConfig, {"betas": (0.9, 1.0)}),
        (OptimizerConfig, {"gradient_clip": -1}),
        (OptimizerConfig, {"momentum": 0.9}),
        (ScheduleConfig, {"shape": "linear"}),
        (ScheduleConfig, {"warmup_fraction": 1.5}),
        (ScheduleConfig, {"warmup_steps": -1}),
    ],
)
def test_wrong_settings_are_refused(config: type, wrong: dict) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        config(**wrong)
