"""The demo: the same pairs, a share of them wrong, learnt plainly and robustly; one table, one page."""

from __future__ import annotations

from troth.demo.methods import METHODS
from troth.demo.running import run_demo

__all__ = ["METHODS", "run_demo"]
