"""Passes in which samples come as often as their shares say."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from troth.data import Plan, WeightedPlan
from troth.errors import UserError

SHARES = st.lists(st.sampled_from([0.0, 1e-9, 0.1, 1 / 3, 0.7, 1.0]), min_size=1, max_size=60)


def one_pass(plan: WeightedPlan, number: int) -> list[int]:
    steps = range(number * plan.steps_per_pass, (number + 1) * plan.steps_per_pass)
    assert {plan.epoch(step) for step in steps} == {number}
    return [int(sample) for step in steps for sample in plan.indices(step)]


@given(shares=SHARES, batch_size=st.integers(1, 20), seed=st.integers(-5, 2**63))
def test_a_pass_meets_no_sample_twice_and_none_of_share_zero(shares: list[float], batch_size: int, seed: int) -> None:
    array = np.array(shares)
    if array.sum() < batch_size:
        return
    plan = WeightedPlan(array, batch_size, seed)
    assert plan.pass_size == int(array.sum())
    for number in range(3):
        met = one_pass(plan, number)
        assert len(set(met)) == len(met) == plan.steps_per_pass * batch_size
        assert array[met].min() > 0


def test_samples_come_as_often_as_their_shares() -> None:
    shares = np.linspace(0, 1, 50)
    plan = WeightedPlan(shares, 1, seed=3)
    passes = 2000
    counts = np.bincount([sample for number in range(passes) for sample in one_pass(plan, number)], minlength=50)
    expected = shares * plan.pass_size / shares.sum()
    error = np.sqrt(np.maximum(expected * (1 - expected), 1e-9) / passes)
    assert np.all(np.abs(counts / passes - expected) < 5 * error + 1e-12)


def test_equal_shares_are_whole_epochs_in_new_orders() -> None:
    plan, plain = WeightedPlan(np.ones(30), 10, seed=0), Plan(30, 10, seed=0)
    assert sorted(one_pass(plan, 0)) == list(range(30)) == sorted(one_pass(plan, 1))
    assert one_pass(plan, 0) != one_pass(plan, 1)
    assert one_pass(plan, 0) != one_pass(WeightedPlan(np.ones(30), 10, seed=1), 0)
    assert (plan.steps_per_epoch, plan.total_steps(7)) == (plain.steps_per_epoch, plain.total_steps(7))


def test_the_steps_of_a_run_do_not_depend_on_the_shares() -> None:
    half = WeightedPlan(np.full(30, 0.5), 5, seed=0)
    assert half.total_steps(4) == Plan(30, 5, seed=0).total_steps(4) == 24
    assert half.epoch(23) == 7, "of half the samples, twice as many passes"


@given(shares=SHARES, batch_size=st.integers(1, 20), step=st.integers(0, 50))
def test_replacements_are_new_to_the_batch_and_reach_the_pass(shares: list[float], batch_size: int, step: int) -> None:
    array = np.array(shares)
    if array.sum() < batch_size:
        return
    plan = WeightedPlan(array, batch_size, seed=1)
    if plan.pass_size >= 2 * batch_size:
        assert plan.replacement(step, batch_size - 1, 1) not in plan.indices(step)
    reached = {plan.replacement(step, 0, attempt) for attempt in range(1, plan.attempts() + 1)}
    assert len(reached) == plan.pass_size
    assert array[list(reached)].min() > 0


def test_a_worker_draws_the_same_passes() -> None:
    plan = WeightedPlan(np.linspace(0, 1, 40), 5, seed=2)
    copy = pickle.loads(pickle.dumps(plan))
    assert all(np.array_equal(copy.indices(step), plan.indices(step)) for step in range(12))


@pytest.mark.parametrize(("shares", "batch_size"), [([0.5] * 10, 6), ([1.0] * 4, 0), ([0.0] * 4, 1)])
def test_a_pass_without_a_whole_batch_is_a_user_error(shares: list[float], batch_size: int) -> None:
    with pytest.raises(UserError, match=r"train\.batch_size"):
        WeightedPlan(np.array(shares), batch_size, seed=0)
