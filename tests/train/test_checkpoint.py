"""A checkpoint is whole or it is not there, and it goes back into nothing but its own run."""

import dataclasses
import logging
from pathlib import Path

import pytest
import torch

from tests.train.small import IMAGE_DIM, SmallEncoder, small_model
from troth.errors import UserError
from troth.state import State
from troth.train import Checkpoints, OptimizerConfig, Position, load, load_model, read_position


def position(step: int, **values: object) -> Position:
    return Position(step, 0, 100, 8, 1, "f" * 64, **values)


def trained(seed: int = 0) -> tuple:
    """A model, its optimiser after a step, and a state."""
    model = small_model(bias=True)
    optimizer = OptimizerConfig().build(model)
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name != "bias":  # a parameter that no step has touched has no moments
            parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    state = State(5, "f" * 64)
    state.declare("loss")
    state.write("loss", torch.tensor([1, 3]), torch.tensor([0.5, float("inf")]))
    state.scope("0").declare("loss", fill=2.0)
    state.scope("0").declare_value("mixture", torch.tensor([0.1, float("nan")], dtype=torch.float64))
    state.declare_value("rounds", torch.tensor(3))
    return model, optimizer, state


def fresh() -> tuple:
    model = small_model(bias=True)
    return model, OptimizerConfig().build(model), State(5, "f" * 64)


def assert_same(one: tuple, two: tuple) -> None:
    for name, values in one[0].state_dict().items():
        assert torch.equal(values, two[0].state_dict()[name]), name
    for (name, a), (_, b) in zip(one[0].named_parameters(), two[0].named_parameters(), strict=True):
        moments, others = one[1].state.get(a, {}), two[1].state.get(b, {})
        assert moments.keys() == others.keys()
        for moment, values in moments.items():
            assert torch.equal(values, others[moment]), (name, moment)
            assert values.stride() == others[moment].stride()
    torch.testing.assert_close(one[2].state_dict(), two[2].state_dict(), rtol=0, atol=0, equal_nan=True)


def test_everything_comes_back(tmp_path: Path) -> None:
    parts = trained()
    saved = position(7, best_step=3, best_value=0.25, metrics={"recall": 0.2})
    path = Checkpoints(tmp_path).save(saved, *parts)
    back = fresh()
    assert load(path, *back) == saved
    assert_same(parts, back)
    assert back[2].scope("0").value("mixture")[0] == parts[2].scope("0").value("mixture")[0]
    assert int(back[2].value("rounds")) == 3
    assert sorted(child.name for child in tmp_path.iterdir()) == ["step-00000007"]


def test_moments_keep_the_layout_of_their_parameter(tmp_path: Path) -> None:
    def convolution() -> tuple:
        model = torch.nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last)
        return model, OptimizerConfig().build(model), State(5, "f")

    parts, back = convolution(), convolution()
    parts[0].weight.grad = torch.randn(4, 4, 3, 3).to(memory_format=torch.channels_last)
    parts[1].step()
    load(Checkpoints(tmp_path).save(position(1), *parts), *back)
    assert_same(parts, back)
    assert back[1].state[back[0].weight]["exp_avg"].is_contiguous(memory_format=torch.channels_last)


def test_the_last_and_the_best_stay(tmp_path: Path) -> None:
    checkpoints, parts = Checkpoints(tmp_path, keep_last=2), trained()
    for step in (1, 2, 3, 4, 5):
        checkpoints.save(position(step, best_step=2 if step >= 2 else None), *parts)
    assert checkpoints.steps() == [2, 4, 5]
    checkpoints.save(position(5), *parts, name="non-finite-step-00000006")
    assert checkpoints.latest() == tmp_path / "step-00000005"


def test_half_written_is_ignored_and_later_replaced(tmp_path: Path) -> None:
    checkpoints, parts = Checkpoints(tmp_path), trained()
    assert checkpoints.latest() is None
    assert checkpoints.best() is None
    checkpoints.save(position(4), *parts)
    partial = tmp_path / ".partial-step-00000008"
    partial.mkdir()
    (partial / "model.safetensors").write_bytes(b"half")
    assert checkpoints.latest() == tmp_path / "step-00000004"
    path = checkpoints.save(position(8), *parts)
    assert checkpoints.latest() == path
    assert not partial.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.safetensors", "trainer.json"])
@pytest.mark.parametrize("how", ["truncated", "flipped", "missing"])
def test_damage_is_noticed_and_the_one_before_is_used(
    tmp_path: Path, name: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints, parts = Checkpoints(tmp_path), trained()
    for step in (4, 8):
        checkpoints.save(position(step), *parts)
    victim = tmp_path / "step-00000008" / name
    content = bytearray(victim.read_bytes())
    if how == "missing":
        victim.unlink()
    elif how == "truncated":
        victim.write_bytes(content[:-9])
    else:
        content[len(content) // 2 if name != "trainer.json" else 0] ^= 0x10
        victim.write_bytes(content)
    with caplog.at_level(logging.WARNING, logger="troth"):
        assert checkpoints.latest() == tmp_path / "step-00000004"
    assert "step-00000008" in caplog.text
    assert name in caplog.text
    checkpoints.save(position(8), *parts)  # the resumed run comes by again
    assert checkpoints.latest() == tmp_path / "step-00000008"


def test_nothing_but_damage_is_an_error(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    path = checkpoints.save(position(4), *trained())
    (path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"no checkpoint can be read: model\.safetensors.*start the run anew"):
        checkpoints.latest()


def test_another_model_or_other_data_are_refused(tmp_path: Path) -> None:
    path = Checkpoints(tmp_path).save(position(4), *trained())
    encoder = SmallEncoder()
    encoder.image_tower[0] = torch.nn.Linear(IMAGE_DIM, 16, bias=False)
    with pytest.raises(UserError, match="of another model"):
        load(path, small_model(encoder=encoder), None, State(5, "f" * 64))
    with pytest.raises(UserError, match="another data set"):
        load(path, *fresh()[:2], State(5, "g" * 64))
    other = State(5, "f" * 64)
    other.declare_value("rounds", torch.zeros(2))
    with pytest.raises(UserError, match="'rounds' has the shape"):
        load(path, *fresh()[:2], other)


@pytest.mark.parametrize("how", ["truncated", "empty", "missing", "a folder"])
def test_weights_that_cannot_be_read_are_one_line(tmp_path: Path, how: str) -> None:
    path = Checkpoints(tmp_path).save(position(4), *trained())
    victim = path / "model.safetensors"
    content = victim.read_bytes()
    victim.unlink()
    if how == "a folder":
        victim.mkdir()
    elif how != "missing":
        victim.write_bytes(content[:-9] if how == "truncated" else b"")
    with pytest.raises(UserError, match=r"the weights cannot be read: .*\(bring the file back") as raised:
        load_model(path, small_model(bias=True))
    assert raised.value.where == str(victim)
    assert "\n" not in str(raised.value)


def test_a_new_position_replaces_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    checkpoints, parts = Checkpoints(tmp_path, keep_last=1), trained()
    checkpoints.save(position(3, best_step=3), *parts)
    path = checkpoints.save(position(7, best_step=3), *parts)
    assert checkpoints.steps() == [3, 7]
    before = {child.name: child.read_bytes() for child in path.iterdir() if child.name != "trainer.json"}
    noted = position(7, best_step=7, best_value=0.5, metrics={"recall": 0.5}, evaluated_step=7)
    checkpoints.rewrite_position(noted)
    assert read_position(path) == noted
    assert {child.name: child.read_bytes() for child in path.iterdir() if child.name != "trainer.json"} == before
    assert checkpoints.latest() == path
    assert checkpoints.steps() == [7]  # the former best is no longer kept


def test_positions_of_later_versions_can_be_read(tmp_path: Path) -> None:
    path = Checkpoints(tmp_path).save(position(4), *trained())
    text = (path / "trainer.json").read_text()
    (path / "trainer.json").write_text(text.replace('"step": 4,', '"step": 4, "of_later_versions": 1,'))
    assert read_position(path) == dataclasses.replace(position(4))
