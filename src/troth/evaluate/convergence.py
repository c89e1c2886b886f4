"""When the learned scale has found its place."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from troth.errors import UserError

#: Smaller logarithms of the scale, within 10% of 1, are taken for this one when a change is divided by them.
_NEAR_ONE = 0.1


def converge_step(
    steps: npt.ArrayLike,
    scales: npt.ArrayLike,
    steps_per_epoch: float,
    tolerance: float = 0.02,
    *,
    lasting: bool = False,
) -> int | None:
    """Return the first logged step from which the scale's logarithm changes by less than 2% over an epoch.

    .. code-block:: text

        t(s)      = log scale(s)
        change(s) = max |t(r) - t(s)| / max(max |t(r)|, 0.1)       over logged steps r from s to e,
                    e the first of them >= s + steps_per_epoch
        step      = min { s : change(s) < tolerance }

    The source says in words no more than "the number of steps for temperature starts to converge (changes less than 2%
    for an epoch)"; the numbers beside them are logarithms. Three things had to be decided.

    * Everything logged within the epoch counts, not its two ends alone: a scale that falls and rises again has not
      converged. The window is never shorter than an epoch, however rarely the log was written.
    * The change is relative to the largest logarithm of the window, so that a scale that leaves 1, whose logarithm is
      0, has changed by 100% and not by infinitely much. Within 10% of a scale of 1 the logarithm is next to nothing; it
      is taken for 0.1 there, so that 2% of it are 0.2% of the scale.
    * The first such step, as "starts to converge" has it, though the scale may move again: the paper's own figure 4
      shows it rising slowly afterwards. A scale that hardly moves in a long warm-up, or turns around in a flat bend,
      counts. ``lasting=True`` is the stricter reading: the first step from which *no* later whole epoch
      changes that much.

    Source: "Design of the topology for contrastive visual-textual alignment" (submission to TMLR), table 6 and section
    A.2.

    Args:
        steps: ``(P,)`` logged steps, ascending.
        scales: ``(P,)`` the multiplier at these steps, above 0.
        steps_per_epoch: of the run; need not be whole.
        tolerance: relative change that counts as none.
        lasting: whether it has to stay so.

    Returns:
        the step, or None if there is none (the log may be shorter than an epoch).

    Raises:
        UserError: for arrays that do not fit each other, steps that do not ascend, and scales that have no logarithm.
    """
    step, scale = np.asarray(steps, dtype=np.float64), np.asarray(scales, dtype=np.float64)
    if step.ndim != 1 or step.shape != scale.shape:
        raise UserError(f"{step.shape} steps and {scale.shape} scales are not one scale a step", where="steps")
    if np.any(np.diff(step) <= 0):
        raise UserError("steps must ascend", where="steps")
    if not np.all(np.isfinite(scale) & (scale > 0)):
        raise UserError("a scale must be finite and above 0", where="scales")
    if not steps_per_epoch > 0:
        raise UserError(f"an epoch of {steps_per_epoch:g} steps", where="steps_per_epoch", remedy="more than 0")
    still = _changes(step, np.log(scale), steps_per_epoch) < tolerance
    if not still.size:
        return None
    if lasting:
        # What is still from some place on to the end of all whole windows.
        still = np.logical_and.accumulate(still[::-1])[::-1]
    return int(step[np.argmax(still)]) if still.any() else None


def _changes(
    step: npt.NDArray[np.float64], level: npt.NDArray[np.float64], steps_per_epoch: float
) -> npt.NDArray[np.float64]:
    """Return the change over an epoch from every step on that has a whole epoch behind it."""
    ends = np.searchsorted(step, step + steps_per_epoch, side="left")
    whole = int((ends < len(step)).sum())
    changes: npt.NDArray[Any] = np.empty(whole)
    for first, end in enumerate(ends[:whole]):
        window = level[first : end + 1]
        changes[first] = np.abs(window - level[first]).max() / max(np.abs(window).max(), _NEAR_ONE)
    return changes
