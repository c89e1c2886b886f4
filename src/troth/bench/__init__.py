"""The yardstick: every method on the same noisy pairs, with equal steps, the truth out of its reach."""

from __future__ import annotations

from troth.bench.runs import Order, run_robustness
from troth.bench.select import run_select

__all__ = ["Order", "run_robustness", "run_select"]
