"""Learning rates of their own for the towers, down to locking them, and nothing else where nothing is said."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.train.small import SmallStream, small_config, small_model, trainer
from troth.encoders import ContrastiveModel, Heads, Towers, TowerTraining, apply_towers
from troth.encoders.decay import no_decay
from troth.encoders.tower_groups import tower_groups
from troth.errors import UserError
from troth.geometry import Sphere
from troth.objectives import InfoNCE
from troth.state import State
from troth.train import OptimizerConfig, PartSize, ScheduleConfig, dry_run, read_log
from troth.train.courses import tower_courses
from troth.train.optimizer import Course, drop_locked_gradients, set_learning_rate


def applied(towers: Towers, **arguments) -> ContrastiveModel:
    model = small_model(**arguments)
    apply_towers(model, towers)
    return model


LOCKED_LATER = Towers(image=TowerTraining(lock_after_epochs=2))


def test_without_settings_there_are_the_two_groups_of_before() -> None:
    model = applied(Towers())
    step = small_config().step_maker(model, InfoNCE(), State(40, "f"), 0, SmallStream())
    groups = step.optimizer.param_groups
    spared = no_decay(model)
    assert [[id(p) for p in group["params"]] for group in groups] == [
        [id(p) for name, p in model.named_parameters() if (name in spared) == exempt] for exempt in (False, True)
    ]
    assert [group["weight_decay"] for group in groups] == [0.2, 0.0]
    set_learning_rate(step.optimizer, 0.1 + 0.2, 3)
    assert [group["lr"] for group in groups] == [0.1 + 0.2] * 2


def test_settings_that_say_nothing_train_to_the_same_bits(tmp_path: Path) -> None:
    def run(name: str, model: ContrastiveModel) -> bytes:
        result = trainer(tmp_path / name, model=model, seed=2, config={"epochs": 2}).run()
        return b"".join((result.checkpoint / f"{file}.safetensors").read_bytes() for file in ("model", "optimizer"))

    plain = run("plain", small_model(dropout=0.2))
    assert run("default", applied(Towers(image=TowerTraining(layer_decay=1.0)), dropout=0.2)) == plain
    # Groups of their own, but the same learning rates: the cosine ends with the run, where it would anyway.
    assert run("late", applied(LOCKED_LATER, dropout=0.2)) == plain
    slower = Towers(text=TowerTraining(learning_rate_factor=0.5))
    assert run("slower", applied(slower, dropout=0.2)) != plain


def test_factor_and_layer_decay_multiply_by_depth() -> None:
    heads = ContrastiveModel(Heads(embed_dim=8, hidden_dim=16, depth=2).build(0), Sphere())
    apply_towers(heads, Towers(image=TowerTraining(learning_rate_factor=0.5, layer_decay=0.1)))
    step = small_config().step_maker(heads, InfoNCE(), State(40, "f"), 0, SmallStream())
    set_learning_rate(step.optimizer, 2.0, 0)
    names = {id(parameter): name for name, parameter in heads.named_parameters()}
    rates = {names[id(p)]: group["lr"] for group in step.optimizer.param_groups for p in group["params"]}
    assert set(rates) == {name for name, _ in heads.named_parameters()}
    expected = {0: 1e-3, 1: 1e-3, 2: 1e-2, 3: 0.1, 4: 0.1, 5: 1.0}  # layer norm, linear; two blocks; norm; projection
    for name, rate in rates.items():
        if "image_head" in name:
            assert rate == pytest.approx(expected[int(name.split(".")[2])]), name
        else:
            assert rate == 2.0, name
    spared = no_decay(heads)
    decay = {names[id(p)]: group["weight_decay"] for group in step.optimizer.param_groups for p in group["params"]}
    assert {name for name, value in decay.items() if not value} == spared


def test_the_cosine_of_a_tower_that_is_locked_ends_there() -> None:
    schedule, total, end = ScheduleConfig(warmup_fraction=0.1, final_fraction=0.2), 50, 30
    course = Course(0.5, end, schedule, total)
    for step in range(total):
        usual = 3.0 * schedule.factor(step, total)
        if step < 5:
            expected = (step + 1) / 5  # the warm-up is the run's
        elif step < end:
            expected = 0.2 + 0.8 * (1 + math.cos(math.pi * (step - 5) / (end - 5))) / 2
        else:
            expected = 0.0
        assert course.learning_rate(usual, step) == pytest.approx(3.0 * 0.5 * expected, rel=1e-12, abs=0)
        assert course.is_locked(step) == (step >= end)
    assert course.learning_rate(0.0, 3) == 0.0  # a dry run
    flat = Course(1.0, 4, ScheduleConfig(shape="constant", warmup_steps=2), 8)
    assert [flat.learning_rate(1.0, step) for step in (1, 3, 4, 7)] == [1.0, 1.0, 0.0, 0.0]


def test_a_locked_towers_gradients_are_forgotten() -> None:
    model = small_model()
    courses = {f"encoder.{name}": Course(1.0, 3) for group in tower_groups(model.encoder, "image") for name in group}
    optimizer = OptimizerConfig().build(model, courses)
    for step, gone in ((2, False), (3, True)):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        drop_locked_gradients(optimizer, step)
        for name, parameter in model.named_parameters():
            assert (parameter.grad is None) == (gone and "image_tower" in name)


def test_a_tower_stays_as_it_was_when_it_is_locked(tmp_path: Path) -> None:
    model = applied(LOCKED_LATER)
    result = trainer(tmp_path, model=model, config={"epochs": 4, "keep_last": 9}, evaluate=lambda *_: {}).run()
    states = {e: load_file(result.checkpoint.parent / f"step-{5 * e:08d}" / "model.safetensors") for e in (1, 2, 3, 4)}
    for name in states[1]:
        if "image_tower" in name:
            assert not torch.equal(states[1][name], states[2][name]), name
            assert torch.equal(states[2][name], states[4][name]), name
        else:
            assert not torch.equal(states[3][name], states[4][name]), name
    assert len(read_log(tmp_path, "train")) == 20


def test_resuming_across_the_lock_is_bit_for_bit(tmp_path: Path) -> None:
    def run(folder: Path, stop: int | None, **arguments) -> bytes:
        class Stopping(SmallStream):
            def batches(self, start_step: int, stop_step: int):
                yield from super().batches(start_step, stop_step if stop is None else min(stop, stop_step))
                if stop is not None:
                    raise InterruptedError

        towers = Towers(LOCKED_LATER.image, TowerTraining(layer_decay=0.5))
        model = applied(towers, dropout=0.3)
        config = {"checkpoint_every_steps": 2, "epochs": 3}
        result = trainer(folder, model=model, stream=Stopping(), config=config).run(**arguments)
        return b"".join((result.checkpoint / f"{name}.safetensors").read_bytes() for name in ("model", "optimizer"))

    whole = run(tmp_path / "whole", None)
    for stop in (9, 13):  # before the lock, which comes with step 10, and after it
        with pytest.raises(InterruptedError):
            run(tmp_path / str(stop), stop)
        assert run(tmp_path / str(stop), None, resume=True) == whole


def test_a_tower_can_be_locked_from_a_step_that_no_setting_says() -> None:
    model, stream, config = small_model(), SmallStream(), small_config()
    courses = tower_courses(model, config, stream, {"image": 7})
    assert {course.lock_after_steps for course in courses.values()} == {7}
    assert {name.split(".")[1] for name in courses} == {"image_tower"}
    assert {course.total_steps for course in courses.values()} == {15}
    assert tower_courses(model, config, stream) == {}
    apply_towers(model, LOCKED_LATER)
    courses = tower_courses(model, config, stream)
    assert {course.lock_after_steps for course in courses.values()} == {10}


def test_a_dry_run_counts_what_learns() -> None:
    model = applied(Towers(image=TowerTraining(locked=True, unlocked_groups=1)))
    report = dry_run(model, InfoNCE(), SmallStream(), small_config())
    projection = 16 * 8 + 8
    assert report.image_tower == PartSize(12 * 16 + 16 + 32 + projection, projection)
    assert report.text_tower == PartSize(10 * 16 + 16 + projection, 10 * 16 + 16 + projection)


def test_a_lock_that_would_never_come_and_two_locks_at_once_are_refused() -> None:
    model = applied(LOCKED_LATER)
    with pytest.raises(UserError, match=r"^towers.image.lock_after_epochs: locked after epoch 2, the tower never is"):
        tower_courses(model, small_config(epochs=1), SmallStream())
    with pytest.raises(UserError, match=r"^towers.image.lock_after_epochs: the episodes lock this tower already"):
        tower_courses(model, small_config(epochs=3), SmallStream(), {"image": 4})
