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
from troth.report.diagnostics_page import print_diagnostics, render_diagnostics, show_diagnostics
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
    "print_diagnostics",
    "render_diagnostics",
    "render_report",
    "render_table",
    "show_diagnostics",
    "task_differences",
    "task_estimates",
]
