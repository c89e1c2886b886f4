"""Recipes trained over seeds, several at a time, each kept in a folder: a table of hours takes up where it stopped."""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.table import Record, kept, report, save
from troth.bench.methods import REGIMES, SMALL
from troth.errors import UserError
from troth.recipe import Recipe, from_dict, load, to_dict
from troth.run.opened import OpenedRun, check_trained_by, open_run
from troth.run.training import resume, train
from troth.train.resume import holds_run


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        regime: ``heads`` or ``small``.
        name: of the row it belongs to.
        seed: of the run.
        quick: whether it has two epochs only.
        folder: where it is kept.
    """

    regime: str
    name: str
    seed: int
    quick: bool
    folder: Path


def cut_recipe(job: Job, recipe: str, settings: Sequence[str], small: Sequence[str] = SMALL) -> dict[str, Any]:
    """Return a shipped recipe of the job's regime as a tree: with its seed and no evaluation.

    Args:
        job: the run.
        recipe: its name without the regime.
        settings: what the row changes in it.
        small: what small towers are cut to; heads are not cut.
    """
    cut = small if job.regime == "small" else ()
    tree = to_dict(load(f"{job.regime}-{recipe}", [*settings, f"seed={job.seed}", *cut]))
    tree["evaluation"] = {"best": "none", "tasks": []}
    if job.quick:
        tree["train"] |= {"epochs": 2, "evaluate_every_epochs": 2}
    return tree


def trained(recipe: Recipe, folder: Path) -> OpenedRun:
    """Train once on one thread, or take up a run that stopped; return it as it ended.

    Raises:
        UserError: if the folder holds a run of another recipe: the row has changed since.
    """
    torch.set_num_threads(1)
    check_trained_by(folder, recipe)
    if holds_run(folder):
        resume(folder, progress=False)
    else:
        train(recipe, folder, progress=False)
    return open_run(folder, "last")


def with_tasks(recipe: Recipe, tasks: Sequence[Mapping[str, Any]] = ()) -> Recipe:
    """Return the recipe with the default tasks, and ``tasks`` beside them."""
    tree = to_dict(recipe)
    tree["evaluation"] = {"tasks": [*to_dict(from_dict({}))["evaluation"]["tasks"], *tasks]}
    return from_dict(tree)


def add_arguments(parser: argparse.ArgumentParser, name: str, rows: Sequence[str]) -> None:
    """Add what every table over seeds takes: which part of it, where its runs are kept, how many at a time."""
    parser.add_argument("--regime", choices=REGIMES, help="one regime only")
    parser.add_argument("--only", nargs="+", choices=rows, metavar="NAME", help="these rows only")
    parser.add_argument("--runs", type=Path, default=Path("runs") / name, help="where runs are kept")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, of one thread each")


def table(
    name: str,
    title: str,
    cases: Sequence[tuple[str, str]],
    recipe_of: Callable[[Job], Recipe],
    score: Callable[[Job, OpenedRun], dict[str, float]],
    options: argparse.Namespace,
    seeds: Sequence[int] = (0, 1, 2),
    command: str | None = None,
) -> None:
    """Run every case over the seeds, print means with standard errors, and save them after each case if asked to.

    Args:
        name: of the benchmark and its result.
        title: of what is printed.
        cases: regimes and names of rows; those that ``options`` leaves out are kept as they were saved.
        recipe_of: what a run is trained by.
        score: what is reported of a trained run, in a process of its own.
        options: what :func:`add_arguments` added, ``quick`` and ``save``.
        seeds: of the runs; ``options.quick`` takes the first one.
        command: that is saved beside the result; None: the benchmark's, without arguments.

    Raises:
        SystemExit: with one line, before anything is trained, if a kept run is of another recipe than its row has now.
    """
    seeds = seeds[:1] if options.quick else seeds
    cases = [
        (regime, row)
        for regime, row in cases
        if options.regime in (None, regime) and (not options.only or row in options.only)
    ]
    jobs = [[Job(*case, seed, options.quick, _folder(options, *case, seed)) for seed in seeds] for case in cases]
    try:
        for job in (job for of_case in jobs for job in of_case):
            check_trained_by(job.folder, recipe_of(job))
    except UserError as error:
        sys.exit(str(error))
    again = {f"{regime}: {row}" for regime, row in cases}
    others = kept(name, again.__contains__) if options.save else []
    records: list[Record] = []
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        waiting = [[pool.submit(_work, job, recipe_of, score) for job in of_case] for of_case in jobs]
        for case, futures in zip(cases, waiting, strict=True):
            records += summary(*case, [future.result() for future in futures])
            print(f"{case[0]}: {case[1]} done", flush=True)
            if options.save:
                save(name, command or f"python -m benchmarks.{name}", options.save, others + records)
    report(f"{title}, {len(seeds)} seed(s)", records)


def _work(
    job: Job, recipe_of: Callable[[Job], Recipe], score: Callable[[Job, OpenedRun], dict[str, float]]
) -> dict[str, float]:
    return score(job, trained(recipe_of(job), job.folder))


def summary(regime: str, row: str, runs: Sequence[dict[str, float]]) -> Iterator[Record]:
    """Means over seeds, and their standard errors, of what every run has."""
    for label in (label for label in runs[0] if all(label in each for each in runs)):
        values = [each[label] for each in runs]
        yield Record(f"{regime}: {row}", label, statistics.fmean(values))
        if len(values) > 1:
            error = statistics.stdev(values) / math.sqrt(len(values))
            yield Record(f"{regime}: {row}", f"{label} standard error", error)


def _folder(options: argparse.Namespace, regime: str, row: str, seed: int) -> Path:
    slug = "".join(letter if letter.isalnum() else "-" for letter in row.lower())
    return Path(options.runs) / ("quick" if options.quick else "full") / f"{regime}-{slug}-{seed}"
