"""The experiments of the theory and two simulations: each measures, writes a CSV, and draws a figure of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from troth.errors import UserError
from troth.experiments import (
    affinity,
    convergence,
    gamma_histograms,
    heterogeneity,
    rate,
    unpaired,
    wrong_pairs,
)
from troth.experiments.base import Experiment, save_figure
from troth.experiments.table import Table

#: Every experiment, in the order of the documentation.
EXPERIMENTS: dict[str, Experiment] = {
    module.EXPERIMENT.name: module.EXPERIMENT
    for module in (heterogeneity, wrong_pairs, convergence, rate, unpaired, affinity, gamma_histograms)
}


def run(name: str, folder: Path, seeds: int | None = None, say: Callable[[str], None] = print) -> None:
    """Run an experiment, or ``all``.

    Args:
        name: which.
        folder: where ``NAME.csv`` and ``NAME.png`` go; made if missing.
        seeds: how many runs of each case; each experiment's own number by default.
        say: takes a line of progress.

    Raises:
        UserError: for an unknown name, or no seed.
    """
    chosen = list(EXPERIMENTS) if name == "all" else [name]
    if name != "all" and name not in EXPERIMENTS:
        raise UserError(f"unknown experiment {name!r}", where="troth theory", remedy=f"one of: {names()}")
    if seeds is not None and seeds < 1:
        raise UserError(f"{seeds} runs measure nothing", where="--seeds", remedy="1 or more")
    with _one_thread():
        for each in chosen:
            say(f"{each}: {EXPERIMENTS[each].about}")
            started = time.perf_counter()
            values, picture = EXPERIMENTS[each].run(folder, seeds)
            say(f"  {time.perf_counter() - started:.1f} s, {values}, {picture}")


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep torch from splitting matrices as small as these, which on a busy machine takes many times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def names() -> str:
    """Return what ``troth theory`` takes, for people."""
    return ", ".join(("all", *EXPERIMENTS))


__all__ = ["EXPERIMENTS", "Experiment", "Table", "names", "run", "save_figure"]
