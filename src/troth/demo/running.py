"""The demo from its first line to its page."""

from __future__ import annotations

import shlex
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from troth.data import CaptionAssignment
from troth.demo.methods import METHODS, recipe_of
from troth.demo.outcome import train_and_test
from troth.demo.page import report_data
from troth.embed import FrozenEncoders
from troth.encoders import Heads
from troth.errors import UserError
from troth.report import ReportData, render_report, render_table
from troth.run import build, run_tasks
from troth.run.build import build_model
from troth.run.training import feature_progress

MARK = ".troth-demo"


def run_demo(out: Path, *, noise: float = 0.3, seed: int = 0, settings: Sequence[str] = ()) -> ReportData:
    """Train, evaluate and audit the demo's methods; print the table and write ``report.html`` into ``out``.

    Args:
        out: the demo's folder; an earlier demo in it is replaced.
        noise: share of the training captions that is shuffled.
        seed: of noise, weights and order.
        settings: ``field=value`` overrides of all its recipes, such as ``train.epochs=5``.

    Raises:
        UserError: for a folder with other things in it, or a noise rate that cannot be.
    """
    started = time.monotonic()
    if not 0 < noise < 1:
        raise UserError(f"must lie between 0 and 1, not {noise:g}", where="--noise", remedy="such as 0.3")
    chosen = [recipe_of(method, noise, seed, settings) for method in METHODS]
    _clear(out)
    console = Console()
    if not console.is_terminal:
        console = Console(width=100)  # a file or a pipe has no width of its own
    console.print(f"Training pairs with {noise:.0%} of the captions shuffled (seed {seed})", highlight=False)
    model = chosen[0].model
    assert isinstance(model, Heads), "the demo's recipes are heads"
    console.print("[bold]Frozen features of all pictures and captions[/] (once; then from the cache)")
    with feature_progress(True) as on_progress:
        frozen = FrozenEncoders(model, on_progress=on_progress, num_workers=2)
        # Before any training, so that these are in no method's time.
        build(chosen[0], frozen=frozen).stream()
        run_tasks(chosen[0], build_model(chosen[0]), frozen=frozen)
    console.print(f"  {time.monotonic() - started:.0f} s", highlight=False)
    outcomes = []
    for method, recipe in zip(METHODS, chosen, strict=True):
        console.print(f"[bold]{method.label}[/]")
        outcomes.append(train_and_test(method, recipe, out / method.name, frozen))
    built = build(chosen[0], frozen=frozen)
    assert isinstance(built.noise, CaptionAssignment)
    data = report_data(
        outcomes, built.source, built.noise, _command(noise, seed, settings), seed, time.monotonic() - started
    )
    data.save(out / "report")
    page = render_report(data, out)
    console.print()
    render_table(data, console)
    console.print(f"\nReport: {page}", highlight=False)
    return data


def _clear(out: Path) -> None:
    """Make room for a new demo: in a new or empty folder, or in one that bears an earlier demo's mark."""
    if out.exists() and any(out.iterdir()):
        if not (out / MARK).is_file():
            raise UserError("the folder holds something else", where=str(out), remedy="choose another --out")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARK).write_text("A demo of Troth wrote this folder, and the next one may replace it.\n", encoding="utf-8")


def _command(noise: float, seed: int, settings: Sequence[str]) -> str:
    changed = [part for setting in settings for part in ("--set", setting)]
    return shlex.join(["troth", "demo", "--noise", f"{noise:g}", "--seed", str(seed), *changed])
