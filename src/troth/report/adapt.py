"""From what evaluation and audit return to what a report shows."""

from __future__ import annotations

from collections.abc import Sequence

from troth.audit import SimilarityHistogram
from troth.evaluate import TaskResult, compare
from troth.report.data import Estimate, Histogram


def task_estimates(results: Sequence[TaskResult]) -> dict[str, Estimate]:
    """Return every metric of every task as ``"task/metric"`` with its standard error."""
    return {
        f"{result.task}/{metric}": Estimate(value, result.standard_errors.get(metric))
        for result in results
        for metric, value in result.metrics.items()
    }


def task_differences(baseline: Sequence[TaskResult], results: Sequence[TaskResult]) -> dict[str, Estimate]:
    """Return how much a model differs from the baseline on the same queries, as ``"task/metric"``.

    Only metrics that are means have a paired error (a median has not), and only tasks both were scored on.

    Raises:
        UserError: if a task of one name was scored on different queries.
    """
    first = {result.task: result for result in baseline}
    found: dict[str, Estimate] = {}
    for result in results:
        other = first.get(result.task)
        if other is None or result.num_queries < 2:
            continue
        for metric in result.influences:
            if metric in other.influences and metric in result.standard_errors:
                difference = compare(other, result, metric)
                found[f"{result.task}/{metric}"] = Estimate(difference.value, difference.standard_error)
    return found


def histogram_of(counts: SimilarityHistogram) -> Histogram:
    """Return an audit's histogram as a report's."""
    return Histogram(
        edges=tuple(counts.edges.tolist()),
        right=tuple(float(count) for count in counts.right.tolist()),
        wrong=tuple(float(count) for count in counts.wrong.tolist()),
    )
