"""Per-pair memory is keyed by sample id and belongs to one data set."""

import pytest
import torch

from troth.errors import UserError
from troth.state import State


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
