"""What the tables say, worked out once for the page and the terminal."""

from __future__ import annotations

import math
from dataclasses import dataclass

from troth.report.data import Estimate, MethodResult, Metric, ReportData


@dataclass(frozen=True)
class Cell:
    """One method's value of one metric, as shown.

    Attributes:
        value: e.g. ``"41.2"``; ``"–"`` where the method has none.
        error: e.g. ``"± 0.9"``, or empty.
        best: whether no method is better.
        delta: difference from the baseline, e.g. ``"+3.1"``; empty for the baseline itself.
        delta_error: its error, e.g. ``"± 1.0"``.
        verdict: ``"better"``, ``"worse"`` or ``"unclear"`` (within two standard errors of no difference); empty if
            there is nothing to compare or no error is known.
    """

    value: str
    error: str = ""
    best: bool = False
    delta: str = ""
    delta_error: str = ""
    verdict: str = ""


@dataclass(frozen=True)
class Row:
    """A metric and its cells, in the order of the methods; ``starts_group`` where a new heading is due."""

    metric: Metric
    cells: tuple[Cell, ...]
    starts_group: bool


def table_rows(data: ReportData) -> tuple[Row, ...]:
    """Return the headline table: a row a metric, a cell a method."""
    rows = []
    group = None
    for metric in data.metrics:
        best = _best(data, metric)
        cells = tuple(_cell(data, method, metric, best) for method in data.methods)
        rows.append(Row(metric, cells, starts_group=bool(metric.group) and metric.group != group))
        group = metric.group
    return tuple(rows)


def headline(data: ReportData) -> str:
    """Say in one sentence how the best method stands against the baseline, by the first metric."""
    if not data.metrics:
        return ""
    metric, reference = data.metrics[0], data.reference
    name = metric.label if not metric.group else f"{metric.group}, {_lower_first(metric.label)}"
    values = {method.name: method.metrics.get(metric.name) for method in data.methods}
    others = [
        method
        for method in data.methods
        if method is not reference and not method.ceiling and values[method.name] is not None
    ]
    own = values[reference.name]
    if own is None or not others:
        return f"{name}: {show(own, metric)}." if own is not None else ""
    sign = 1 if metric.higher_is_better else -1
    best = max(others, key=lambda method: sign * method.metrics[metric.name].value)
    cell = _cell(data, best, metric, None)
    points = " points" if metric.unit == "percent" else ""
    against = f"{show(best.metrics[metric.name], metric)} for {best.label}, {show(own, metric)} for {reference.label}"
    change = f"{cell.delta.lstrip('+−')}{' ' + cell.delta_error if cell.delta_error else ''}{points}"
    if cell.verdict == "unclear":
        return f"{name}: {against}. A difference of {change} is within two standard errors: no clear winner."
    return f"{name}: {against}. {best.label} is {cell.verdict or 'different'} by {change}{_gap_closed(data, best)}."


def _gap_closed(data: ReportData, method: MethodResult) -> str:
    """Say how much of the way from the baseline to a ceiling, or beyond, a better method goes, by the first metric."""
    name, reference = data.metrics[0].name, data.reference
    ceiling = next((other for other in data.methods if other.ceiling and name in other.metrics), None)
    if ceiling is None:
        return ""
    whole = ceiling.metrics[name].value - reference.metrics[name].value
    part = method.metrics[name].value - reference.metrics[name].value
    if whole == 0 or part / whole <= 0:
        return ""
    there = f"{ceiling.label} ({show(ceiling.metrics[name], data.metrics[0])})"
    if part / whole <= 1:
        return f", {part / whole:.0%} of the way to {there}"
    beyond = _independent(method.metrics[name], ceiling.metrics[name])
    verdict = "" if beyond is None else _verdict(beyond, data.metrics[0])
    return f", {'level with' if verdict == 'unclear' else 'beyond'} {there}"


def difference(data: ReportData, method: MethodResult, metric: Metric) -> Estimate | None:
    """Return a method's difference from the baseline: paired where the run did, else as if independent."""
    if method is data.reference:
        return None
    if metric.name in method.differences:
        return method.differences[metric.name]
    return _independent(method.metrics.get(metric.name), data.reference.metrics.get(metric.name))


def _independent(own: Estimate | None, other: Estimate | None) -> Estimate | None:
    if own is None or other is None:
        return None
    if own.standard_error is None or other.standard_error is None:
        return Estimate(own.value - other.value)
    return Estimate(own.value - other.value, math.hypot(own.standard_error, other.standard_error))


def show(estimate: Estimate, metric: Metric) -> str:
    """Write a value in the metric's unit, e.g. ``41.2%``."""
    return f"{_digits(estimate.value, metric)}{'%' if metric.unit == 'percent' else ''}"


def duration(seconds: float | None) -> str:
    """Write seconds for people: ``48 s``, ``6 min 05 s``, ``2 h 10 min``."""
    if seconds is None:
        return "–"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 120:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _cell(data: ReportData, method: MethodResult, metric: Metric, best: float | None) -> Cell:
    own = method.metrics.get(metric.name)
    if own is None:
        return Cell("–")
    change = difference(data, method, metric)
    return Cell(
        value=_digits(own.value, metric),
        error=_error(own, metric),
        best=best is not None and own.value == best and not method.ceiling,
        delta=_signed(change.value, metric) if change else "",
        delta_error=_error(change, metric) if change else "",
        verdict=_verdict(change, metric) if change else "",
    )


def _best(data: ReportData, metric: Metric) -> float | None:
    values = [
        method.metrics[metric.name].value
        for method in data.methods
        if metric.name in method.metrics and not method.ceiling
    ]
    if len(values) < 2:
        return None
    return max(values) if metric.higher_is_better else min(values)


def _verdict(change: Estimate, metric: Metric) -> str:
    if change.standard_error is None:
        return ""
    if abs(change.value) <= 2 * change.standard_error:
        return "unclear"
    return "better" if (change.value > 0) == metric.higher_is_better else "worse"


def _digits(value: float, metric: Metric) -> str:
    """Write the value, its error and its differences with the same decimals."""
    return f"{100 * value if metric.unit == 'percent' else value:,.{metric.decimals}f}"


def _signed(value: float, metric: Metric) -> str:
    text = _digits(abs(value), metric)
    # A true minus sign lines up with the plus and is not broken off at a line's end.
    return f"+{text}" if value > 0 else f"−{text}" if value < 0 else text


def _error(estimate: Estimate, metric: Metric) -> str:
    return "" if estimate.standard_error is None else f"± {_digits(estimate.standard_error, metric)}"


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:] if text[1:2].islower() else text
