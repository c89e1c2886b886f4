"""Runs: what a recipe says is built, trained, scored and written down here."""

from __future__ import annotations

from troth.run.arguments import data_argument
from troth.run.build import Built, build
from troth.run.diagnose import diagnose
from troth.run.explaining import explain
from troth.run.opened import OpenedRun, open_run
from troth.run.scoring import audit, check_data, embed, evaluate, export, run_tasks
from troth.run.start import start
from troth.run.training import resume, show_dry_run, train

__all__ = [
    "Built",
    "OpenedRun",
    "audit",
    "build",
    "check_data",
    "data_argument",
    "diagnose",
    "embed",
    "evaluate",
    "explain",
    "export",
    "open_run",
    "resume",
    "run_tasks",
    "show_dry_run",
    "start",
    "train",
]
