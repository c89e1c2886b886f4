r"""How sure a metric is: standard errors, and whether two models differ on the same queries.

Every metric that is a mean (or a mean of means) is treated the same way, by its *influence*. With ``U`` independent
units, unit ``g`` holding the queries ``q in g``, and a metric ``R`` that is the mean of ``n`` values ``v_q``,

.. code-block:: text

    influence_g = sum over q in g of (v_q - R) / n
    standard error of R = sqrt( U / (U - 1) * sum over g of influence_g ** 2 )

For one query a unit this is ``sd / sqrt(n)`` (for a proportion: the binomial one with ``n - 1``); for several captions
of one image it is the cluster-robust error, which does not count five captions of one picture as five independent
queries. Influences add: a mean of recalls has the mean of their influences, and the difference of two models on the
same queries has the difference of theirs, so that what is hard for both models cancels.

A metric of exactly 0 or 1 has standard error 0: with ``n`` queries its true value may still be about ``1 / n`` away.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from troth.errors import UserError
from troth.evaluate.result import TaskResult

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """How much better a second model is than a first, on the same queries.

    Attributes:
        metric: which metric.
        value: second minus first, in the metric's unit.
        standard_error: of ``value``, paired by query.
        num_units: over how many independent units it was taken.
    """

    metric: str
    value: float
    standard_error: float
    num_units: int

    @property
    def is_clear(self) -> bool:
        """Whether the difference is more than two standard errors (about 95%) from none."""
        return abs(self.value) > 2 * self.standard_error


def mean_influence(values: npt.ArrayLike, units: npt.NDArray[Any] | None = None) -> Float64:
    """Return each unit's influence on the mean of ``values``.

    Args:
        values: ``(n,)`` one value a query, n >= 1.
        units: ``(n,)`` which unit each query belongs to (any hashable labels); each query its own if None.

    Returns:
        ``(U,)`` in the order of the sorted unit labels; sums to zero.
    """
    value = np.asarray(values, dtype=np.float64)
    contribution: Float64 = (value - value.mean()) / value.size
    if units is None:
        return contribution
    _, unit = np.unique(units, return_inverse=True)
    summed: Float64 = np.bincount(unit, weights=contribution).astype(np.float64)
    return summed


def standard_error(influence: npt.ArrayLike) -> float | None:
    """Return the standard error of a metric from its ``(U,)`` influences; None for fewer than two units."""
    part = np.asarray(influence, dtype=np.float64)
    if part.size < 2:
        return None
    return math.sqrt(part.size / (part.size - 1) * float(np.square(part).sum()))


def median_standard_error(values: npt.ArrayLike) -> float | None:
    """Return the standard error of a median: half the distance of the order statistics one sigma either side.

    The number of values below the true median is binomial with ``n / 2 +- sqrt(n) / 2``. Distribution-free, for ``n >=
    4`` independent values; None for fewer.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    if ordered.size < 4:
        return None
    half_width = math.sqrt(ordered.size) / 2
    low, high = np.quantile(ordered, [0.5 - half_width / ordered.size, 0.5 + half_width / ordered.size])
    return float(high - low) / 2


def paired_difference(
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    units: npt.NDArray[Any] | None = None,
    *,
    metric: str = "mean",
) -> Difference:
    """Compare two models by one value a query each.

    Args:
        first: ``(n,)`` values of the first model, e.g. 1.0 where it was right.
        second: ``(n,)`` values of the second, for the same queries in the same order.
        units: ``(n,)`` labels of queries that belong together.
        metric: what the values mean, for the record.

    Raises:
        UserError: for values of different length, or fewer than two units.
    """
    one, two = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if one.shape != two.shape or one.ndim != 1:
        raise UserError(f"{one.shape} values of one model against {two.shape} of the other: not the same queries")
    return _difference(metric, float((two - one).mean()), mean_influence(two - one, units))


def compare(first: TaskResult, second: TaskResult, metric: str) -> Difference:
    """Compare two models' results of the same task on the same queries.

    Raises:
        UserError: if the results are of different tasks or queries, or one has no influences for the metric.
    """
    where = f"{first.task}/{metric}"
    if first.task != second.task:
        raise UserError(f"compared with a result of {second.task}", where=where, remedy="compare the same task")
    for result in (first, second):
        if metric not in result.influences:
            known = ", ".join(sorted(result.influences)) or "none: the result was saved without arrays"
            raise UserError("no per-query values for this metric", where=where, remedy=f"known: {known}")
    asked = {name for name in (*first.details, *second.details) if name.startswith("query/")}
    for name in asked:
        one, two = first.details.get(name), second.details.get(name)
        if one is None or two is None or not np.array_equal(one, two):
            raise UserError(f"the two results are for different queries ({name} differs)", where=where)
    one, two = first.influences[metric], second.influences[metric]
    if one.shape != two.shape:
        raise UserError("the two results are for different queries", where=where)
    return _difference(metric, second.metrics[metric] - first.metrics[metric], two - one)


def _difference(metric: str, value: float, influence: Float64) -> Difference:
    error = standard_error(influence)
    if error is None:
        raise UserError("a comparison needs at least two independent queries", where=metric)
    return Difference(metric=metric, value=value, standard_error=error, num_units=int(influence.size))
