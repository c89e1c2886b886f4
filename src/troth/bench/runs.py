"""Running the yardstick: runs several at a time, kept and taken up where they stopped, the truth out of their reach."""

from __future__ import annotations

import contextlib
import io
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from rich.console import Console

from troth.bench.data import pairs_source, prepare, share_features
from troth.bench.guard import forbidden, guarded_worker, plain_worker
from troth.bench.methods import ABLATION_NOISE, METHODS, QUICK, REGIMES, Method, Regime, method_named, run_recipe
from troth.bench.results import RESULTS_NAME, collect, show, wide_console, write_results
from troth.bench.scores import SCORE_NAME, Score, score_run
from troth.bench.settings import SETTINGS, Place, Setting
from troth.embed import FrozenEncoders
from troth.encoders import Heads
from troth.errors import NonFiniteLossError, UserError
from troth.recipe import Recipe
from troth.run.opened import check_trained_by
from troth.run.training import resume, train
from troth.train import Checkpoints
from troth.train.resume import holds_run
from troth.train.teacher import CachedTeacher


@dataclass(frozen=True)
class Order:
    """What is asked of the yardstick.

    Attributes:
        out: its folder.
        quick: a first impression: the rows of :data:`~troth.bench.methods.QUICK`, no noise and 40%, one seed.
        regimes: which regimes.
        only: names of rows; empty for all.
        noise: names of settings; empty for all. The clean setting that a noisy one is compared with comes along.
        seeds: how many.
        jobs: runs at a time, of one thread each.
    """

    out: Path
    quick: bool = False
    regimes: tuple[Regime, ...] = REGIMES
    only: tuple[str, ...] = ()
    noise: tuple[str, ...] = ()
    seeds: int = 3
    jobs: int = 2

    def methods(self) -> tuple[Method, ...]:
        """Return the rows. Raises UserError for a name that no row has."""
        if self.only:
            chosen = [method_named(name) for name in self.only]
            return tuple(method for method in METHODS if method in chosen)
        return QUICK if self.quick else METHODS

    def settings(self) -> tuple[Setting, ...]:
        """Return the settings, clean ones first. Raises UserError for a name that is none."""
        if self.noise:
            named = [Setting.parse(name) for name in self.noise]
            return tuple(dict.fromkeys([*(setting.clean for setting in named), *named]))
        return SETTINGS[:2] if self.quick else SETTINGS

    def jobs_in_order(self) -> Iterator[list[Job]]:
        """Yield the runs of one set of data after the other, the first seed of everything first."""
        methods, settings = self.methods(), self.settings()
        for seed in range(1 if self.quick else self.seeds):
            for regime in self.regimes:
                for setting in settings:
                    place = Place(self.out, setting, seed)
                    found = [
                        Job(regime, method, place)
                        for method in methods
                        if method.recipe_name(regime) is not None and method.runs_on(setting)
                    ]
                    if found:
                        yield found


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        regime: its regime.
        method: its row.
        place: its data.
    """

    regime: Regime
    method: Method
    place: Place

    @property
    def folder(self) -> Path:
        """Where it is kept."""
        run = f"{self.place.setting.name}-{self.place.seed}"
        return self.place.root / "runs" / f"{self.regime}-{self.method.slug}" / run

    @property
    def title(self) -> str:
        """What it is called in messages."""
        return f"{self.regime}: {self.method.name}, {self.place.name}"

    @property
    def is_done(self) -> bool:
        """Whether it has a score."""
        return (self.folder / SCORE_NAME).is_file()


def run_robustness(order: Order) -> list[Score]:
    """Run what was ordered and is not there yet; keep ``results.parquet`` whole, print the table; return all results.

    A run whose loss diverges ends alone; the others go on. Of a scored run all but its checkpoints is kept.

    Raises:
        UserError: for an order that cannot be, a kept run of another recipe, or, at the end, if a run failed.
    """
    _check(order)
    console = wide_console()
    failed: list[str] = []
    frozen = FrozenEncoders(Heads(), num_workers=2)
    with Workers(order.out, order.jobs) as workers:
        waiting: dict[Future[Score], Job] = {}
        for jobs in order.jobs_in_order():
            missing = [job for job in jobs if not job.is_done]
            for job in jobs:
                if job.is_done:  # its process may have ended before it had removed them
                    discard_checkpoints(job.folder)
            if missing:
                _prepare(missing, frozen, console)
            waiting |= {workers.submit(job): job for job in missing}
        for future in as_completed(waiting):
            job = waiting[future]
            try:
                score = future.result()
            except (UserError, NonFiniteLossError) as error:
                failed.append(job.title)
                console.print(f"{job.title}: {error}", highlight=False, markup=False)
                continue
            write_results(collect(order.out), order.out / RESULTS_NAME)
            line = f"zero-shot {score.zero_shot:.1f}, retrieval {score.retrieval:.1f}"
            line += ", taken up" if score.seconds is None else f", {score.seconds:.0f} s"
            console.print(f"{job.title}: {line}", highlight=False, markup=False)
    scores = collect(order.out)
    write_results(scores, order.out / RESULTS_NAME)
    show(scores, console)
    console.print(f"written to {order.out / RESULTS_NAME}", highlight=False)
    if failed:
        raise UserError(f"{len(failed)} runs failed: {'; '.join(failed)}", where=str(order.out))
    return scores


class Workers:
    """Processes that train under the guard, and others that score without it; at most ``jobs`` work at a time.

    Args:
        root: the yardstick's folder.
        jobs: runs at a time.
    """

    def __init__(self, root: Path, jobs: int) -> None:
        self._stack = ExitStack()
        spawn = get_context("spawn")

        def pool(begin: Callable[..., None], *arguments: object) -> ProcessPoolExecutor:
            return ProcessPoolExecutor(jobs, mp_context=spawn, initializer=begin, initargs=arguments)

        self._training = {
            "given": pool(guarded_worker, forbidden(root)),
            "right": pool(guarded_worker, forbidden(root, right=True)),
        }
        self._scoring = pool(plain_worker)
        self._threads = ThreadPoolExecutor(jobs)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for pool in (self._threads, *self._training.values(), self._scoring):
            pool.shutdown(cancel_futures=True)

    def submit(self, job: Job) -> Future[Score]:
        """Train and then score a run as soon as there is room."""
        return self._threads.submit(self._run, job)

    def _run(self, job: Job) -> Score:
        seconds = self._training[job.method.data].submit(train_job, job).result()
        return self._scoring.submit(score_job, job, seconds).result()


def train_job(job: Job) -> float | None:
    """Train a run as :func:`train_kept` does. Its process is under the guard."""
    return train_kept(run_recipe(job.method, job.regime, job.place), job.folder)


def train_kept(recipe: Recipe, folder: Path) -> float | None:
    """Train in a new folder and return the wall time in seconds, or go on in one that holds the run and return None.

    A run that has no weights, since it ended before its first checkpoint or lost them with its score, is begun anew.
    """
    started = time.monotonic()
    with contextlib.redirect_stdout(io.StringIO()):  # several at a time, they would talk across each other
        if holds_run(folder):
            if Checkpoints(folder / "checkpoints").latest() is not None:
                resume(folder, progress=False)
                return None
            shutil.rmtree(folder)
        train(recipe, folder, progress=False)
    return time.monotonic() - started


def score_job(job: Job, seconds: float | None) -> Score:
    """Score a trained run, keep the score beside it, and remove the weights that it is of."""
    right = job.method.data == "right"
    score = score_run(job.regime, job.method.name, job.place, job.folder, seconds, of_right_pairs=right)
    score.write(job.folder / SCORE_NAME)
    discard_checkpoints(job.folder)
    return score


def discard_checkpoints(folder: Path) -> None:
    """Remove the checkpoints of a run whose result is kept. A tower has 285 MB of them, a full table over 100 GB."""
    Checkpoints(folder / "checkpoints").discard()


def _check(order: Order) -> None:
    for name, value in (("--seeds", order.seeds), ("--jobs", order.jobs)):
        if value < 1:
            raise UserError(f"must be at least 1, not {value}", where=name)
    found = [job for jobs in order.jobs_in_order() for job in jobs]
    if not found:
        raise UserError(
            "nothing to run: none of these rows has a recipe in this regime and runs under this noise",
            where="--only",
            remedy=f"leave out --regime or --noise; rows of the ablation run on {' and '.join(ABLATION_NOISE)}",
        )
    for job in found:
        if job.place.pairs.is_file() and job.place.right.is_file():  # a recipe is of as many steps as the pairs take
            recipe = run_recipe(job.method, job.regime, job.place)
            check_trained_by(job.folder, recipe, on_any_data=True)


def takes_features(recipe: Recipe) -> bool:
    """Say whether frozen features of the pairs are needed: heads take them, judges and cached teachers go by them."""
    cached = isinstance(recipe.teacher, CachedTeacher)
    return isinstance(recipe.model, Heads) or recipe.judge is not None or cached


def sees_stages(recipe: Recipe) -> bool:
    """Say whether a judge goes by the image encoder's intermediate features too."""
    return recipe.judge is not None and recipe.judge.stages


def _prepare(jobs: Sequence[Job], frozen: FrozenEncoders, console: Console) -> None:
    """Write the data of runs that share them, and compute the frozen features that heads take, and judges go by."""
    place = jobs[0].place
    new = not place.pairs.is_file()
    prepare(place)
    taking = [recipe for job in jobs if takes_features(recipe := run_recipe(job.method, job.regime, job.place))]
    if taking:
        sources = (pairs_source(place.pairs), pairs_source(place.right))
        share_features(frozen, sources, stages=any(map(sees_stages, taking)))
    if new:
        console.print(f"{place.name}: written to {place.pairs.parent}", highlight=False)
