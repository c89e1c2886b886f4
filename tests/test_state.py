"""Per-pair memory is keyed by sample id and belongs to one data set."""

import pytest
import torch

from troth.errors import UserError
from troth.state import Clock, State


def test_first_visit_takes_the_value_later_ones_move_towards_it() -> None:
    state = State(5, "abc")
    state.declare("loss")
    state.average("loss", torch.tensor([3, 1]), torch.tensor([4.0, 2.0]), keep=0.75)
    state.average("loss", torch.tensor([3]), torch.tensor([8.0]), keep=0.75)
    assert state.read("loss", torch.tensor([1, 3])).tolist() == [2.0, 5.0]
    assert torch.isnan(state.read("loss")[[0, 2, 4]]).all()


def test_declaring_again_keeps_what_is_remembered() -> None:
    state = State(3, "abc")
    state.declare("u", fill=0.0)
    state.write("u", torch.tensor([2]), torch.tensor([7.0]))
    state.declare("u", fill=0.0)
    assert state.read("u").tolist() == [0.0, 0.0, 7.0]


def test_another_data_sets_state_is_refused_by_name() -> None:
    state = State(3, "a" * 64)
    state.declare("u")
    with pytest.raises(UserError, match="another data set"):
        State(3, "b" * 64).load_state_dict(state.state_dict(), "a" * 64)
    with pytest.raises(UserError, match="'u' has 3 samples, the data set 4"):
        State(4, "a" * 64).load_state_dict(state.state_dict(), "a" * 64)


def test_loading_copies() -> None:
    old, new = State(3, "x"), State(3, "x")
    old.declare("u", fill=1.0)
    new.load_state_dict(old.state_dict(), "x")
    old.write("u", torch.tensor([0]), torch.tensor([9.0]))
    assert new.read("u").tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("index", [[2, 0, 2, 2], [1, 1, 1, 1]])
def test_of_values_written_twice_the_last_one_stays(index: list[int]) -> None:
    state = State(3, "abc")
    state.declare("u")
    values = [1.0, 2.0, 3.0, 4.0]
    state.write("u", torch.tensor(index), torch.tensor(values))
    expected = [float("nan")] * 3
    for sample, value in zip(index, values, strict=True):
        expected[sample] = value
    torch.testing.assert_close(state.read("u"), torch.tensor(expected), equal_nan=True, rtol=0, atol=0)


def test_of_many_repeated_pairs_the_last_row_stays() -> None:
    draw = torch.Generator().manual_seed(0)
    index, values = torch.randint(50, (5000,), generator=draw), torch.arange(5000.0)
    state = State(50, "abc")
    state.declare("u")
    state.write("u", index, values)
    expected = {int(sample): float(value) for sample, value in zip(index, values, strict=True)}
    assert state.read("u").tolist() == [expected[sample] for sample in range(50)]


def test_a_pair_twice_in_a_batch_moves_once_towards_its_last_value() -> None:
    state = State(2, "abc")
    state.declare("loss", fill=4.0)
    state.average("loss", torch.tensor([1, 1]), torch.tensor([100.0, 8.0]), keep=0.75)
    assert state.read("loss").tolist() == [4.0, 5.0]


def test_values_are_kept_in_the_precision_they_were_declared_in() -> None:
    state = State(2, "abc")
    state.declare_value("mixture", torch.zeros(2, dtype=torch.float64))
    new = torch.tensor([0.1, 0.2], dtype=torch.float64)
    state.set_value("mixture", new)
    new[0] = 9.0
    assert torch.equal(state.value("mixture"), torch.tensor([0.1, 0.2], dtype=torch.float64))
    state.declare_value("mixture", torch.ones(2))
    assert state.value("mixture")[0] == 0.1
    with pytest.raises(ValueError, match=r"'mixture' was declared as \(2,\), not \(3,\)"):
        state.set_value("mixture", torch.zeros(3))
    with pytest.raises(KeyError):
        state.set_value("other", torch.zeros(3))
    with pytest.raises(UserError, match=r"'mixture' has the shape \(2,\), this objective's \(5,\)"):
        state.declare_value("mixture", torch.zeros(5))


def test_scopes_share_everything_but_their_names() -> None:
    state = State(3, "abc")
    first, inner = state.scope("0"), state.scope("1").scope("0")
    for scope, fill in ((state, 0.0), (first, 1.0), (inner, 2.0)):
        scope.declare("u", fill=fill)
        scope.declare_value("v", torch.tensor(fill))
    inner.write("u", torch.tensor([1]), torch.tensor([7.0]))
    first.set_value("v", torch.tensor(8.0))
    assert [scope.read("u").tolist() for scope in (state, first, inner)] == [[0, 0, 0], [1, 1, 1], [2, 7, 2]]
    assert [float(scope.value("v")) for scope in (state, first, inner)] == [0, 8, 2]
    assert (list(state), list(first), list(inner)) == (["u", "0/u", "1/0/u"], ["u"], ["u"])
    assert "u" in state.scope("1").scope("0")
    assert "u" not in state.scope("1")
    state.clock = Clock(seed=3, step=5, steps_per_epoch=2, total_steps=8)
    assert inner.clock is state.clock
    names = ("u", "0/u", "1/0/u")
    whole = {f"memory/{name}" for name in names} | {f"value/{name[:-1]}v" for name in names}
    assert inner.state_dict().keys() == whole


def test_a_scope_made_before_a_resume_sees_what_was_loaded() -> None:
    old, new = State(3, "x"), State(3, "x")
    scope = new.scope("0")
    old.scope("0").declare("u", fill=4.0)
    old.scope("0").declare_value("v", torch.tensor([1.5]))
    new.load_state_dict(old.state_dict(), "x")
    assert scope.read("u").tolist() == [4.0, 4.0, 4.0]
    assert scope.value("v").tolist() == [1.5]
    old.scope("0").set_value("v", torch.tensor([2.5]))
    assert scope.value("v").tolist() == [1.5]


def test_a_value_of_another_shape_is_refused() -> None:
    old, new = State(3, "x"), State(3, "x")
    old.declare_value("v", torch.zeros(2))
    new.declare_value("v", torch.zeros(3))
    with pytest.raises(UserError, match=r"'v' has the shape \(2,\), this objective's \(3,\).*began with"):
        new.load_state_dict(old.state_dict(), "x")


def test_the_clock_tells_epochs_and_progress() -> None:
    clocks = [Clock(step=step, steps_per_epoch=3, total_steps=6) for step in range(6)]
    assert [clock.epoch for clock in clocks] == [0, 0, 0, 1, 1, 1]
    assert [clock.starts_epoch for clock in clocks] == [True, False, False, True, False, False]
    assert [clock.progress for clock in clocks] == pytest.approx([step / 6 for step in range(6)])
