"""What a trained run is worth and which of its pairs are wrong; embeddings and exports of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from safetensors.torch import save_file
from torch import Tensor

from troth.audit import AuditTable, audit_pairs, estimates_of_run, mixture_of
from troth.data import CaptionAssignment, Source, atomic_path, caption_owner, carries_vectors, check_source
from troth.embed import Embedder, FeatureCache, FrozenEncoders
from troth.encoders import ContrastiveModel, export_flat, export_open_clip, has_open_clip_form
from troth.errors import UserError
from troth.evaluate import TaskResult, mean_point
from troth.recipe import Recipe
from troth.run.arguments import data_argument
from troth.run.build import build
from troth.run.checks import at
from troth.run.opened import OpenedRun, open_run
from troth.train import MismatchEstimates

EVALUATION_NAME = "evaluation.json"


def run_tasks(
    recipe: Recipe,
    model: ContrastiveModel,
    *,
    frozen: FrozenEncoders | None = None,
    cache: FeatureCache | None = None,
) -> list[TaskResult]:
    """Score a model on its recipe's tasks.

    Args:
        recipe: names the tasks.
        model: in any mode, on any device.
        frozen: for heads, what was computed already.
        cache: keeps the points of towers; None (weights that will change) keeps nothing.
    """
    embedder = Embedder(model, cache, frozen=frozen, num_workers=recipe.train.num_workers or None)
    results = []
    for number, task in enumerate(recipe.evaluation.tasks):
        with at(f"evaluation.tasks.{number}"):
            unreadable = len(embedder.ledger)
            result = task.run(embedder)
            if len(embedder.ledger) > unreadable:
                note = f"{len(embedder.ledger) - unreadable} pictures could not be read and were left out"
                result = replace(result, notes=(*result.notes, note))
            results.append(result)
    return results


def flatten(results: Sequence[TaskResult]) -> dict[str, float]:
    """Return every metric as ``task/metric``."""
    return {f"{result.task}/{name}": value for result in results for name, value in result.metrics.items()}


def save_results(folder: Path, results: Sequence[TaskResult]) -> Path:
    """Write ``evaluation.json``: metrics by name, their standard errors where known, query counts and notes."""
    record = {
        "metrics": flatten(results),
        "standard_errors": {
            f"{result.task}/{name}": value for result in results for name, value in result.standard_errors.items()
        },
        "num_queries": {result.task: result.num_queries for result in results},
        "notes": {result.task: list(result.notes) for result in results if result.notes},
    }
    path = folder / EVALUATION_NAME
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return path


def evaluate(
    folder: Path, which: str = "best", settings: Sequence[str] = (), weights: str | None = None
) -> list[TaskResult]:
    """Score a run on its recipe's tasks, print a table and write ``evaluation.json`` beside it."""
    run = open_run(folder, which, settings, weights)
    if not run.recipe.evaluation.tasks:
        raise UserError(
            "the recipe has no tasks", where="evaluation.tasks", remedy="add some with --set or in the file"
        )
    results = run_tasks(run.recipe, run.model, cache=FeatureCache())
    path = save_results(folder, results)
    table = Table(title=f"{folder} at step {run.step}{_of_average(run)}")
    for heading in ("task", "metric"):
        table.add_column(heading)
    for heading in ("value", "± standard error"):
        table.add_column(heading, justify="right")
    for result in results:
        for name, value in result.metrics.items():
            error = result.standard_errors.get(name)
            table.add_row(result.task, name, f"{value:.4f}", "" if error is None else f"{error:.4f}")
        table.add_section()
    console = Console()
    console.print(table)
    for result in results:
        for note in result.notes:
            console.print(f"{result.task}: {note}", highlight=False)
    console.print(f"written to {path}", highlight=False)
    return results


def _of_average(run: OpenedRun) -> str:
    return ", averaged weights" if run.weights == "average" else ""


def embed(folder: Path, which: str, data: str, out: Path, weights: str | None = None) -> None:
    """Write the points of a data set under a run: ``index (Q,)``, ``image (Q, D)``, ``text (Q, D)``.

    A sample's text point is that of all its captions, or of the first (:func:`caption_points`).
    """
    if out.suffix != ".safetensors":
        raise UserError(f"writes .safetensors, not {out.suffix or 'a folder'}", where="--out", remedy="out.safetensors")
    run = open_run(folder, which, weights=weights)
    with at("data"):
        source = data_argument(data).open()
    embedder = Embedder(run.model, FeatureCache())
    index, image = embedder.images(source)
    text = caption_points(embedder, [source.captions(i) for i in index.tolist()])
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(out) as temporary:
        tensors = {"index": index, "image": image.contiguous(), "text": text.contiguous()}
        save_file(tensors, temporary, metadata={"fingerprint": source.fingerprint, "run": str(folder)})
    console = Console()
    _say_unreadable(embedder, console)
    console.print(f"{len(index):,} samples, {image.shape[1]} dimensions, written to {out}", highlight=False)


def _say_unreadable(embedder: Embedder, console: Console) -> None:
    for reason, count in embedder.ledger.counts().items():
        example = next(entry for entry in embedder.ledger if entry.reason == reason)
        console.print(f"left out: {count} {reason}, for example {example.key}: {example.detail}", highlight=False)


def caption_points(embedder: Embedder, captions: Sequence[Sequence[str]]) -> Float[Tensor, "N D"]:
    """Return one point for each sample's captions.

    It is their mean as the geometry averages (:func:`troth.evaluate.mean_point`): projected again on the sphere; not so
    with the oblique inner product, where its similarity is then the mean of the captions' own. On other geometries no
    point has that mean, and one put back onto them would score samples with many captions by how much these differ:
    there it is the first caption's point, which is also the caption that an audit names.
    """
    distinct = list(dict.fromkeys(caption for group in captions for caption in group))
    points = embedder.texts(distinct)
    row = {caption: number for number, caption in enumerate(distinct)}
    owner = torch.tensor([number for number, group in enumerate(captions) for _ in group])
    rows = torch.tensor([row[caption] for group in captions for caption in group])
    total = points.new_zeros(len(captions), points.shape[1]).index_add_(0, owner, points[rows])
    counts = torch.bincount(owner, minlength=len(captions)).unsqueeze(1)
    mean = mean_point(total / counts, embedder.geometry)
    if mean is not None:
        return mean
    return points[torch.tensor([row[group[0]] for group in captions], dtype=torch.int64)]


def audit_source(
    embedder: Embedder,
    source: Source,
    noise: CaptionAssignment | None = None,
    reserve: Source | None = None,
    judged: MismatchEstimates | None = None,
) -> AuditTable:
    """Score every readable pair of a source, with the captions it was trained with.

    Args:
        embedder: of the trained model.
        source: the pairs.
        noise: whose captions they were given; None for their own.
        reserve: where foreign captions came from, if any did.
        judged: what a judge thought of these pairs before training. If it says how likely they are wrong, that stands
            in the table, in place of a mixture's probabilities; similarities and suggestions are the model's.
    """
    if reserve is not None:
        embedder.meet(reserve)
    index, image = embedder.images(source)
    owners = index.tolist() if noise is None else [int(noise.caption_of[i]) for i in index.tolist()]
    places = [caption_owner(owner, source, reserve) for owner in owners]
    captions = [place.captions(sample) for place, sample in places]
    keys = [place.key(sample) for place, sample in places]
    return audit_pairs(
        image,
        caption_points(embedder, captions),
        embedder.geometry,
        ids=index.numpy(),
        keys=[source.key(i) for i in index.tolist()],
        captions=[group[0] for group in captions],
        caption_keys=keys,
        mixture=None if judged is None else mixture_of(judged, index.numpy()),
    )


def audit(folder: Path, which: str, out: Path, weights: str | None = None) -> None:
    """Write the audit table of a run's own training pairs, and print its most suspicious ones."""
    run = open_run(folder, which, weights=weights)
    built = build(run.recipe)
    noise = built.noise if isinstance(built.noise, CaptionAssignment) else None
    embedder = Embedder(run.model, FeatureCache())
    judged = None if noise is None else estimates_of_run(folder, len(built.source))
    table = audit_source(embedder, built.source, noise, built.reserve, judged)
    table.write(out)
    console = Console()
    _say_unreadable(embedder, console)
    if noise is None:
        console.print("The run's noise was drawn anew in every batch: the pairs are audited with their own captions.")
    shown = Table(title="Most suspicious pairs")
    for heading, width in (("key", None), ("given caption", None), ("score", 6), ("decision", 8)):
        shown.add_column(heading, overflow="ellipsis", no_wrap=True, min_width=width)
    for row in table.most_suspicious(10).tolist():
        shown.add_row(
            escape(table.key[row]), escape(table.caption[row]), f"{table.score[row]:.3f}", table.decision[row]
        )
    console.print(shown)
    counts = {decision: table.decision.count(decision) for decision in ("keep", "review", "drop")}
    summary = ", ".join(f"{count:,} {decision}" for decision, count in counts.items())
    console.print(f"{len(table):,} pairs: {summary}; written to {out}", highlight=False)


def export(folder: Path, which: str, out: Path, weights: str | None = None) -> None:
    """Write a run as a folder for open_clip's ``local-dir:`` names, or for :func:`troth.encoders.load_export`."""
    run = open_run(folder, which, weights=weights)
    if has_open_clip_form(run.model):
        path = export_open_clip(run.model, out)
        how = f'open_clip.create_model_and_transforms("local-dir:{path}")'
    else:
        path = export_flat(run.model, run.recipe.model, out)
        how = f'troth.encoders.load_export("{path}")'
    Console().print(f"written to {path}; load it with {how}", highlight=False)


def check_data(data: str, ledger_path: Path | None = None) -> None:
    """Decode every image once (vectors have none), print what cannot be used and why, and optionally write it."""
    with at("data"):
        source = data_argument(data).open()
    ledger = check_source(source)
    console = Console()
    if ledger_path is not None:
        ledger.write(ledger_path)
    console.print(f"{len(source):,} samples with captions in {source.name}", highlight=False)
    if not len(ledger):
        good = "every vector is finite" if carries_vectors(source) else "every image can be read"
        console.print(f"{good}; nothing was skipped")
        return
    table = Table(title="What cannot be used")
    table.add_column("reason")
    table.add_column("count", justify="right")
    table.add_column("for example", overflow="ellipsis", no_wrap=True)
    for reason, count in ledger.counts().items():
        example = next(entry for entry in ledger if entry.reason == reason)
        table.add_row(reason, f"{count:,}", escape(f"{example.key}: {example.detail}"))
    console.print(table)
