"""When the scale has found its place, against a loop over the definition and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from troth.errors import UserError
from troth.evaluate import converge_step


def loop(steps: list[int], scales: list[float], epoch: float, tolerance: float = 0.02) -> list[int]:
    """Every step that has a whole epoch behind it in which the logarithm keeps still."""
    found = []
    for first, start in enumerate(steps):
        t = math.log(scales[first])
        for last in range(first, len(steps)):
            if steps[last] >= start + epoch:
                window = [math.log(scale) for scale in scales[first : last + 1]]
                if max(abs(other - t) for other in window) / max(0.1, *map(abs, window)) < tolerance:
                    found.append(start)
                break
    return found


@pytest.mark.parametrize("seed", range(20))
def test_it_is_the_first_step_of_the_definition(seed: int) -> None:
    draw = np.random.default_rng(seed)
    steps = np.cumsum(draw.integers(1, 8, 80)).tolist()
    course = 1 + draw.uniform(0, 2) + (1 - np.exp(-np.arange(80) / 12)) + 0.004 * np.cumsum(draw.normal(size=80))
    scales, epoch = np.exp(course).tolist(), float(draw.uniform(5, 60))
    still = loop(steps, scales, epoch)
    assert converge_step(steps, scales, epoch) == (still[0] if still else None)
    whole = [step for step in steps if any(other >= step + epoch for other in steps)]
    kept = [step for number, step in enumerate(whole) if all(later in still for later in whole[number:])]
    assert converge_step(steps, scales, epoch, lasting=True) == (kept[0] if kept else None)


def test_both_answers_occur_in_the_comparison() -> None:
    """The comparison above would be empty if no course converged, or all did at once."""
    steps = list(range(0, 300, 3))
    scales = [math.exp(2 + 2 * (1 - math.exp(-step / 40))) for step in steps]
    found = converge_step(steps, scales, 20)
    assert found == loop(steps, scales, 20)[0]
    assert 60 < (found or 0) < 200
    assert converge_step(steps, scales, 20, 1e-6) is None


def test_a_turning_point_is_not_the_end_unless_the_epoch_is_short() -> None:
    steps = list(range(101))
    there_and_back = [math.exp(3 + math.sin(math.pi * step / 50)) for step in steps]
    # After one period the two ends of the window are equal; what lies between them counts.
    assert converge_step(steps, there_and_back, 100) is None
    assert converge_step(steps, there_and_back, 4) is not None
    assert converge_step(steps, there_and_back, 4, lasting=True) is None


def test_a_scale_that_leaves_one_has_not_converged() -> None:
    steps = list(range(60))
    # The logarithm rises from 0 to 0.5: never by 2% of a scale a step, but by much of itself.
    rising = [math.exp(0.01 * min(step, 50)) for step in steps]
    assert converge_step(steps, rising, 1) == 50
    # What moves by a thousandth around 1 keeps still, what moves by a hundredth does not.
    assert converge_step(steps, [1 + 0.001 * (step % 2) for step in steps], 2) == 0
    assert converge_step(steps, [1 + 0.01 * (step % 2) for step in steps], 2) is None
    # At a large scale 0.07 of a logarithm of 4 is 7% of the scale.
    assert converge_step(steps, [math.exp(4 + 0.07 * (step % 2)) for step in steps], 2) == 0


def test_a_constant_scale_has_converged_at_once_and_a_short_log_says_nothing() -> None:
    assert converge_step([1, 5, 9], [14.0, 14.0, 14.0], 4) == 1
    assert converge_step([1, 5, 9], [14.0, 14.0, 14.0], 9) is None
    assert converge_step([], [], 4) is None


def test_a_rare_log_is_not_taken_for_a_still_scale() -> None:
    # Within one epoch of 10 there is no second value: the window reaches to the next one.
    assert converge_step([0, 50, 100], [2.0, 20.0, 200.0], 10) is None


@pytest.mark.parametrize(
    ("steps", "scales", "epoch", "words"),
    [
        ([1, 2], [1.0], 1, "not one scale a step"),
        ([2, 1], [1.0, 1.0], 1, "ascend"),
        ([1, 2], [1.0, 0.0], 1, "above 0"),
        ([1, 2], [1.0, math.nan], 1, "finite"),
        ([1, 2], [1.0, 1.0], 0, "an epoch of 0 steps"),
    ],
)
def test_what_is_refused(steps: list[int], scales: list[float], epoch: float, words: str) -> None:
    with pytest.raises(UserError, match=words):
        converge_step(steps, scales, epoch)
