"""Pictures and HTML, made from saved results only, never from a live model."""

from __future__ import annotations

from troth.report.adapt import histogram_of, task_differences, task_estimates
from troth.report.data import (
    Curve,
    Estimate,
    Histogram,
    MethodAnswer,
    MethodResult,
    Metric,
    Provenance,
    ReportData,
    RetrievalExample,
    RetrievedItem,
    SuspiciousPair,
)
from troth.report.html import render_report
from troth.report.terminal import render_table

__all__ = [
    "Curve",
    "Estimate",
    "Histogram",
    "MethodAnswer",
    "MethodResult",
    "Metric",
    "Provenance",
    "ReportData",
    "RetrievalExample",
    "RetrievedItem",
    "SuspiciousPair",
    "histogram_of",
    "render_report",
    "render_table",
    "task_differences",
    "task_estimates",
]
