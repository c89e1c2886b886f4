"""One method of the demo, trained, tested and audited."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from troth.audit import (
    AuditTable,
    SimilarityHistogram,
    Truth,
    against_truth,
    estimates_by_similarity,
    estimates_of_run,
    similarity_histogram,
)
from troth.data import CaptionAssignment
from troth.demo.methods import Method
from troth.embed import Embedder, FrozenEncoders
from troth.evaluate import TaskResult
from troth.recipe import Recipe
from troth.report import Curve
from troth.run import build, open_run, run_tasks, train
from troth.run.scoring import audit_source
from troth.train import read_log


@dataclass(frozen=True)
class Audited:
    """What a model, or its judge, makes of pairs of which some are wrong.

    Attributes:
        table: of all pairs.
        truth: how well the wrong ones are found, by the judge's scores or else by similarity.
        histogram: similarities of right and of wrong pairs.
        judged: whether a judge's scores are what ``truth`` is of.
    """

    table: AuditTable
    truth: Truth
    histogram: SimilarityHistogram
    judged: bool


@dataclass(frozen=True)
class Outcome:
    """What became of one method.

    Attributes:
        method: which.
        embedder: its trained model.
        results: of its tests.
        curves: ``loss`` and ``scale`` over the steps.
        seconds: wall time of the training, judging included where it was not cached.
        audited: None if it was given no wrong captions.
    """

    method: Method
    embedder: Embedder
    results: list[TaskResult]
    curves: dict[str, Curve]
    seconds: float
    audited: Audited | None


def train_and_test(method: Method, recipe: Recipe, folder: Path, frozen: FrozenEncoders) -> Outcome:
    """Train a method in a new folder and take the tests; audit its pairs if some are wrong.

    Raises:
        UserError: if it cannot be trained, as :func:`troth.run.train` does.
    """
    started = time.monotonic()
    train(recipe, folder, frozen=frozen)
    seconds = time.monotonic() - started
    embedder = Embedder(open_run(folder).model, frozen=frozen)
    results = run_tasks(recipe, embedder.model, frozen=frozen)
    log = read_log(folder, "train")
    steps = tuple(float(record["step"]) for record in log)
    curves = {name: Curve(steps, tuple(float(record[name]) for record in log)) for name in ("loss", "scale")}
    audited = _audited(recipe, folder, embedder, frozen) if method.noisy else None
    return Outcome(method, embedder, results, curves, seconds, audited)


def _audited(recipe: Recipe, folder: Path, embedder: Embedder, frozen: FrozenEncoders) -> Audited:
    built = build(recipe, frozen=frozen)
    assert isinstance(built.noise, CaptionAssignment)
    wrong = built.noise.mismatched
    judged = estimates_of_run(folder, len(built.source))
    table = audit_source(embedder, built.source, built.noise, judged=judged)
    table.write(folder / "audit.parquet")
    estimates = judged or estimates_by_similarity(table.id, table.score)
    truth = against_truth(estimates.score, wrong[estimates.id], estimated_rate=estimates.noise_rate)
    return Audited(table, truth, similarity_histogram(table.score, wrong[table.id]), judged is not None)
