"""Training what a recipe says, continuing it, and saying beforehand what it would cost."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from troth import distributed
from troth import recipe as recipes
from troth.data import BatchStream, CaptionAssignment, Ledger, UnpairedStream
from troth.embed import FrozenEncoders
from troth.embed.features import Progress as OnProgress
from troth.encoders import ContrastiveModel
from troth.errors import UserError
from troth.recipe import Recipe
from troth.run.build import Built, build
from troth.run.checks import at
from troth.run.opened import RECIPE_NAME, check_not_discarded, read_recipe
from troth.run.scoring import flatten, run_tasks, save_results
from troth.run.start import start
from troth.run.vectors import check_task_sources
from troth.train import JUDGEMENT_NAME, Checkpoints, Episodes, Trainer, TrainResult, UnpairedTrainer, dry_run
from troth.train.hardware import resolve_device
from troth.train.resume import holds_run

NOISE_NAME = "noise.npz"


def train(recipe: Recipe, folder: Path, *, frozen: FrozenEncoders | None = None, progress: bool = True) -> TrainResult:
    """Train a recipe in a new folder: recipe, noise, log, ledger, checkpoints and evaluation go there.

    Args:
        recipe: the run.
        folder: where to; it may not hold a run yet.
        frozen: for heads, frozen encoders that another run of the same process has loaded already.
        progress: show bars if there is a terminal.

    Raises:
        UserError: if the folder holds a run already, or the recipe cannot be built.
        NonFiniteLossError: if the loss stops being finite.
    """
    with _process_group(recipe):
        if distributed.broadcast_object(holds_run(folder)):
            raise UserError(
                "this folder holds a run already",
                where=str(folder),
                remedy=f"troth train --resume {folder}, or choose another --out",
            )
        # Everything that a user may have got wrong is built before the folder is made.
        with feature_progress(progress) as on_progress:
            built = build(recipe, frozen=frozen, on_progress=on_progress)
            built = replace(built, recipe=start(built.recipe, built.model))
            trainer = _trainer(built, folder, progress=progress)
            recipe.objective.prepare(trainer.state)  # reads the files it names
        if distributed.is_main():
            folder.mkdir(parents=True, exist_ok=True)
            recipes.save(built.recipe, folder / RECIPE_NAME)
            if isinstance(built.noise, CaptionAssignment) and built.noise.mismatched.any():
                built.noise.save(folder / NOISE_NAME)
            if built.judged is not None:
                built.judged.save(folder / JUDGEMENT_NAME)
                Console().print(f"{built.judged} (see {folder / JUDGEMENT_NAME})", highlight=False)
        return _finish(trainer, folder, resume=False)


def resume(folder: Path, *, progress: bool = True) -> TrainResult:
    """Continue the run in ``folder`` exactly where its newest checkpoint left it.

    Raises:
        UserError: if there is no run, its data changed since, or its weights were removed.
    """
    recipe = read_recipe(folder)
    check_not_discarded(Checkpoints(folder / "checkpoints"))
    with _process_group(recipe):
        with feature_progress(progress) as on_progress:
            built = build(recipe, on_progress=on_progress)
            if (folder / JUDGEMENT_NAME).exists():
                built = replace(built, judgement=folder / JUDGEMENT_NAME)
            elif built.judged is not None and distributed.is_main():
                built.judged.save(folder / JUDGEMENT_NAME)
            if Checkpoints(folder / "checkpoints").latest() is None:  # the run ended before it had weights of its own
                start(recipe, built.model)
            trainer = _trainer(built, folder, progress=progress)
        return _finish(trainer, folder, resume=True)


def _trainer(built: Built, folder: Path, *, progress: bool) -> Trainer:
    recipe = built.recipe
    ledger = Ledger(built.source.ledger)
    _open_tasks(built)
    stream = built.stream(ledger)
    built.begin()

    def evaluate(model: ContrastiveModel, epoch: int) -> dict[str, float]:
        results = run_tasks(recipe, model, frozen=built.frozen)
        save_results(folder, results)
        return flatten(results)

    arguments: dict[str, Any] = {
        "config": recipe.train,
        "folder": folder,
        "seed": recipe.seed,
        "evaluate": evaluate if recipe.evaluation.tasks else None,
        "best_metric": recipe.evaluation.best,
        "ledger": ledger,
        "progress": progress,
    }
    if isinstance(stream, UnpairedStream):
        assert recipe.unpaired is not None
        return UnpairedTrainer(built.model, recipe.objective, stream, recipe.unpaired, **arguments)
    return Trainer(built.model, recipe.objective, stream, episodes=built.episodes(stream, ledger), **arguments)


def _open_tasks(built: Built) -> None:
    """Open what the tasks will need, so that a missing test set is found before training and not after it."""
    for number, task in enumerate(built.recipe.evaluation.tasks):
        with at(f"evaluation.tasks.{number}"):
            check_task_sources(task, built.model.encoder, built.source)
            task.check()


def _finish(trainer: Trainer, folder: Path, *, resume: bool) -> TrainResult:
    result = trainer.run(resume=resume)
    if distributed.is_main():
        console = Console()
        skipped = ", ".join(f"{count} {reason}" for reason, count in trainer.ledger.counts().items())
        if skipped:
            console.print(f"Skipped samples (see {folder / 'ledger.jsonl'}): {skipped}", highlight=False)
        for name in _worth_printing(result.metrics):
            console.print(f"  {name:36} {result.metrics[name]:.4f}", highlight=False)
        console.print(f"{result.step} steps in {result.seconds:.0f} s; run in {folder}", highlight=False)
    return result


def _worth_printing(metrics: dict[str, float]) -> list[str]:
    return [name for name in metrics if name.endswith(("top1", "mean_recall"))]


def _episode_rows(episodes: Episodes, epochs: int) -> dict[str, str]:
    rows = {"episodes": f"{episodes.plan.episodes(epochs):,} of {episodes.num_samples:,} samples"}
    if not episodes.with_prototypes:
        return rows
    return rows | {
        "prototypes": f"{episodes.num_prototypes:,} a clustering",
        "not in these times": "encoding and clustering each episode",
    }


def show_dry_run(recipe: Recipe) -> None:
    """Build everything, make two steps that change nothing, and print what the run would cost."""
    with _process_group(recipe):
        with feature_progress(True) as on_progress:
            built = build(recipe, on_progress=on_progress)
            start(recipe, built.model)
            _open_tasks(built)
            stream = built.stream()
            built.begin()
        episodes = built.episodes(stream)
        report = dry_run(
            built.model,
            recipe.objective,
            stream,
            recipe.train,
            seed=recipe.seed,
            unpaired=recipe.unpaired,
            episodes=episodes,
        )
        if not distributed.is_main():
            return
    wrong = f", {int(built.noise.mismatched.sum()):,} wrong" if isinstance(built.noise, CaptionAssignment) else ""
    rows = {
        "training pairs": f"{len(built.source):,}{wrong}; {len(built.source.ledger)} unusable",
        "image tower": f"{report.image_tower.total:,} parameters, {report.image_tower.trainable:,} trainable",
        "text tower": f"{report.text_tower.total:,} parameters, {report.text_tower.trainable:,} trainable",
        "scale, bias, shared": f"{report.other.total:,} parameters",
        "device, precision": f"{report.device}, {report.precision}",
        "steps": f"{report.total_steps:,} of {recipe.train.batch_size:,} pairs",
        **({} if recipe.unpaired is None else {"of which unpaired": _unpaired_steps(stream, recipe)}),
        "loss of the first batch": f"{report.loss:.4f} nats",
        "one step": f"{report.step_seconds:.3f} s ({report.samples_per_second:,.0f} pairs/s)",
        "all steps": _duration(report.total_seconds),
        "peak memory": f"{report.peak_mib:,.0f} MiB",
    }
    if episodes is not None:
        rows |= _episode_rows(episodes, recipe.train.epochs)
    table = Table(title="Dry run: no run was begun", show_header=False)
    for name, value in rows.items():
        table.add_row(name, value)
    Console().print(table)


def _unpaired_steps(stream: BatchStream, recipe: Recipe) -> str:
    assert isinstance(stream, UnpairedStream)
    assert recipe.unpaired is not None
    steps = stream.total_steps(recipe.train.epochs) - stream.paired_steps
    pairs = ", with pairs" if recipe.unpaired.paired_weight > 0 else ""
    return f"{steps:,} of {recipe.unpaired.batch_size:,} images and captions{pairs}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"about {hours} h {minutes} min" if hours else f"about {minutes} min {rest} s"


@contextlib.contextmanager
def _process_group(recipe: Recipe) -> Iterator[None]:
    distributed.initialise(resolve_device(recipe.train.device))
    try:
        yield
    finally:
        distributed.shutdown()


@contextlib.contextmanager
def feature_progress(shown: bool) -> Iterator[OnProgress | None]:
    """Show a bar while frozen features are computed, which a cached run never does."""
    console = Console(stderr=True)
    if not shown or not distributed.is_main() or not console.is_terminal:
        yield None
        return
    columns = (TextColumn("frozen features"), BarColumn(), TextColumn("{task.completed:,} of {task.total:,}"))
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task("", total=None, visible=False)

        def update(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, visible=True)

        yield update
