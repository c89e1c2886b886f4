"""Choosing a method's settings on noisy pairs alone, as someone without clean ones has to."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

from rich.table import Table
from rich.text import Text

from troth.bench.candidates import CANDIDATE_NAME, Candidate, kept_in
from troth.bench.data import pairs_source, prepare, share_features
from troth.bench.guard import forbidden, guarded_worker, plain_worker
from troth.bench.methods import Method, Regime, base_recipe, method_named
from troth.bench.results import wide_console
from troth.bench.runs import discard_checkpoints, sees_stages, takes_features, train_kept
from troth.bench.settings import Place, Setting
from troth.data import PartSource, atomic_path
from troth.embed import FrozenEncoders
from troth.encoders import Heads
from troth.errors import UserError
from troth.evaluate.tasks import RetrievalTask
from troth.recipe import EvaluationConfig, Recipe, to_toml
from troth.train import Checkpoints, read_position

SELECTION_NAME = "selection.json"
#: The part of the noisy pairs that is trained on; retrieval among the rest decides.
TRAINED = 0.9
_TASK = "selection"


def run_select(
    name: str,
    grid: Sequence[str],
    *,
    out: Path,
    noise: str = "uniform-40",
    seed: int = 100,
    regime: Regime = "heads",
    jobs: int = 2,
) -> list[Candidate]:
    """Train every combination of a grid on a part of noisy pairs; print the table, write the selection, return it.

    Neither answers nor tests take part: trainings and scores run in processes that cannot read them. What an earlier
    call tried on the same pairs, with the recipe that the method still has, is a candidate too and is not run again: it
    may win. Runs of an older version of the package are kept likewise; remove the folder to have them anew.

    Args:
        name: the method.
        grid: ``field=value,value,...`` for each field.
        out: the yardstick's folder.
        noise: the setting.
        seed: of noise and runs; not one of the yardstick's own.
        regime: which regime.
        jobs: runs at a time.

    Returns:
        The candidates, best first; of equals those of this grid, and its first.

    Raises:
        UserError: for an unknown method or setting, a grid that cannot be, an oracle, a field no recipe has, or a kept
            candidate that cannot be read.
    """
    method, place = method_named(name), Place(out, Setting.parse(noise), seed)
    if method.data != "given":
        raise UserError("an oracle knows which pairs are right: it selects nothing", where=name)
    home = out / "selections" / f"{regime}-{method.slug}" / place.name
    runs: dict[Path, tuple[tuple[str, ...], Recipe]] = {}
    for settings in combined(grid):
        recipe = selection_recipe(method, regime, place, settings)
        runs.setdefault(home / run_name(recipe), (settings, recipe))  # 0.5 and 0.50 are one
    spawn = get_context("spawn")
    taking = [recipe for _, recipe in runs.values() if takes_features(recipe)]
    if taking or not place.pairs.is_file():
        # Only here are the captions as they were read, in a process that chooses nothing.
        with ProcessPoolExecutor(1, spawn, plain_worker) as pool:
            pool.submit(prepare_selection, place, bool(taking), any(map(sees_stages, taking))).result()
    pairs = pairs_source(place.pairs).open().fingerprint

    def is_still_one(folder: Path, each: Candidate) -> bool:
        return each.pairs == pairs and folder.name == _name_now(method, regime, place, each.settings)

    earlier = [each for folder, each in kept_in(home) if folder not in runs and is_still_one(folder, each)]
    with ProcessPoolExecutor(jobs, spawn, guarded_worker, (forbidden(out),)) as pool:
        found = list(pool.map(candidate, *zip(*runs.values(), strict=True), runs, itertools.repeat(pairs)))
    found = sorted(found + earlier, key=lambda each: -round(each.mean_recall, 6))  # sums in another order are equal
    path = home / SELECTION_NAME
    save(path, method.name, regime, place, found)
    show(method.name, place, found, path)
    return found


def combined(grid: Sequence[str]) -> list[tuple[str, ...]]:
    """Return every combination of a grid's values as settings; of no grid, none at all: the recipe as it is.

    Raises:
        UserError: for a field without values.
    """
    fields = []
    for line in grid:
        field, _, values = line.partition("=")
        found = split_values(values)
        if not field.strip() or not all(found):
            raise UserError("not a grid", where=f"--grid {line}", remedy="FIELD=VALUE,VALUE,... as objective.q=0.3,0.5")
        fields.append([f"{field.strip()}={value}" for value in found])
    return list(itertools.product(*fields))


def split_values(text: str) -> list[str]:
    """Split at the commas that stand in no bracket and no quotes."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        depth += 0 if quote else (letter in "[{") - (letter in "]}")
        if letter == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def selection_recipe(method: Method, regime: Regime, place: Place, settings: Sequence[str]) -> Recipe:
    """Return a candidate's recipe: its method's epochs on the first part of the pairs, scored once on the rest."""
    recipe = base_recipe(method, regime, place.seed, settings)
    given = pairs_source(place.pairs)
    task = RetrievalTask(name=_TASK, source=PartSource(given, start=TRAINED))
    return replace(
        recipe,
        data=replace(recipe.data, source=PartSource(given, stop=TRAINED)),
        train=replace(recipe.train, evaluate_every_epochs=recipe.train.epochs),
        evaluation=EvaluationConfig(tasks=(task,)),
    )


def prepare_selection(place: Place, features: bool, stages: bool) -> None:
    """Write the noisy pairs, unless they are there, and compute their parts' frozen features, and stages, if asked."""
    if not place.pairs.is_file():
        prepare(place)
    if features:
        given = pairs_source(place.pairs)
        parts = (PartSource(given, stop=TRAINED), PartSource(given, start=TRAINED))
        share_features(FrozenEncoders(Heads(), num_workers=2), parts, stages=stages)


def run_name(recipe: Recipe) -> str:
    """Return what the folder of a candidate's run is called: the same recipe, however described, has the same."""
    return hashlib.sha256(to_toml(replace(recipe, description="")).encode()).hexdigest()[:12]


def _name_now(method: Method, regime: Regime, place: Place, settings: Sequence[str]) -> str | None:
    """Return the name that settings lead to with the recipe that the method has now; None if they do not fit it."""
    try:
        return run_name(selection_recipe(method, regime, place, settings))
    except UserError:
        return None


def candidate(settings: tuple[str, ...], recipe: Recipe, folder: Path, pairs: str) -> Candidate:
    """Train a candidate, or take it up, and return its score. Its process is under the guard."""
    kept = folder / CANDIDATE_NAME
    if kept.is_file():
        if (known := Candidate.read(kept)).pairs == pairs:
            discard_checkpoints(folder)
            return replace(known, settings=settings)
        shutil.rmtree(folder)  # of other pairs: nothing of it can be taken up
    seconds = train_kept(recipe, folder)
    path = Checkpoints(folder / "checkpoints").latest()
    assert path is not None, "a finished run has a checkpoint"
    metrics = read_position(path).metrics
    found = Candidate(settings, 100 * metrics[f"{_TASK}/mean_recall"], seconds, pairs)
    found.write(kept)
    discard_checkpoints(folder)
    return found


def save(path: Path, method: str, regime: str, place: Place, found: Sequence[Candidate]) -> None:
    """Write the selection as JSON, atomically: the winner's settings, and all candidates, best first."""
    record = {
        "method": method,
        "regime": regime,
        "noise": place.setting.name,
        "seed": place.seed,
        "metric": f"mean recall among the noisy pairs from {TRAINED:g} to 1, captions as given, in percent",
        "winner": list(found[0].settings),
        "candidates": [each.public() for each in found],
    }
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def show(method: str, place: Place, found: Sequence[Candidate], path: Path) -> None:
    """Print the candidates, best first."""
    table = Table(title=f"{method} on {place.name}, scored on noisy pairs it was not trained on", show_lines=True)
    table.add_column("settings", overflow="fold")
    table.add_column("mean recall %", justify="right")
    table.add_column("seconds", justify="right")
    for each in found:
        settings = Text("\n".join(each.settings) or "as shipped")  # brackets are no markup here
        table.add_row(settings, f"{each.mean_recall:.2f}", "–" if each.seconds is None else f"{each.seconds:.0f}")
    console = wide_console()
    console.print(table)
    winner = " ".join(found[0].settings) or "as shipped"
    console.print(f"winner: {winner}; written to {path}", highlight=False, markup=False)
