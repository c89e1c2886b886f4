"""The ``troth`` command: its verbs, and nothing heavy until one of them runs."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

# Plain help: rich's would take half of the time that `troth --help` may.
app = typer.Typer(
    help="Contrastive vision-language learning from image-text pairs that cannot be trusted.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
recipe_app = typer.Typer(help="Look at recipes.", no_args_is_help=True, rich_markup_mode=None)
data_app = typer.Typer(help="Look at data.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(recipe_app, name="recipe")
app.add_typer(data_app, name="data")
bench_app = typer.Typer(help="Measure methods on noisy pairs.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(bench_app, name="bench")

Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Override a field, such as train.epochs=3.")
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")]
Which = Annotated[str, typer.Option("--checkpoint", help="best, last, or the number of a step.")]
Weights = Annotated[
    str | None, typer.Option("--weights", help="trained or average; by default the average, if the run keeps one.")
]
#: What ``troth train`` trains if it is told nothing.
DEFAULT_RECIPE = "robust"
DATA_HELP = (
    "A folder, a .csv, .tsv, .parquet or .jsonl file, .tar shards (braces allowed), or embedded:SPLIT, "
    "or a recipe's name or file with recipe:NAME."
)
THEORY_HELP = (
    "all, or one of heterogeneity, wrong-pairs, convergence, rate, unpaired, affinity-simulation, gamma-histograms."
)


@app.command()
def train(
    recipe: Annotated[
        str | None,
        typer.Argument(metavar="[RECIPE]", help="A .toml file or a shipped recipe's name; by default robust."),
    ] = None,
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder; runs/RECIPE by default.")] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Continue the run in this folder, exactly where it stopped.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Build everything, make two steps, say the cost.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
) -> None:
    """Train a model, or continue a run."""
    from troth import recipe as recipes
    from troth import run
    from troth.errors import UserError

    if resume is not None:
        if recipe is not None or settings or out is not None or dry_run:
            raise UserError(
                "--resume continues a run as it began",
                where="troth train",
                remedy="leave out RECIPE, --set, --out and --dry-run",
            )
        run.resume(resume, progress=not quiet)
        return
    recipe = recipe or DEFAULT_RECIPE
    chosen = recipes.load(recipe, settings or ())
    if dry_run:
        run.show_dry_run(chosen)
    else:
        run.train(chosen, out or Path("runs") / Path(recipe).stem, progress=not quiet)


@app.command()
def evaluate(folder: RunFolder, which: Which = "best", settings: Settings = None, weights: Weights = None) -> None:
    """Score a trained run on its recipe's tasks, print a table, and write RUN/evaluation.json."""
    from troth import run

    run.evaluate(folder, which, settings or (), weights)


@app.command()
def embed(
    folder: RunFolder,
    data: Annotated[str, typer.Argument(help=DATA_HELP)],
    out: Annotated[Path, typer.Option(help="Where to write: .safetensors with image, text and index.")],
    which: Which = "best",
    weights: Weights = None,
) -> None:
    """Embed a data set with a trained run."""
    from troth import run

    run.embed(folder, which, data, out, weights)


@app.command()
def audit(
    folder: RunFolder,
    out: Annotated[Path | None, typer.Option(help="Where to write; RUN/audit.parquet by default.")] = None,
    which: Which = "best",
    weights: Weights = None,
) -> None:
    """Score the run's own training pairs, worst first, and write a table of all of them."""
    from troth import run

    run.audit(folder, which, out or folder / "audit.parquet", weights)


@app.command()
def diagnose(
    folder: RunFolder,
    out: Annotated[Path | None, typer.Option(metavar="FOLDER", help="RUN/diagnostics by default.")] = None,
    which: Which = "best",
    settings: Settings = None,
    weights: Weights = None,
    pairs: Annotated[int, typer.Option(help="How many pairs of each data set to measure, at most.")] = 2000,
) -> None:
    """Measure how a run's points lie and how its scale got there; print it, save it, and draw an HTML page of it."""
    from troth import report, run

    saved = run.diagnose(folder, which, settings or (), weights, out, pairs=pairs)
    report.show_diagnostics(saved)


@app.command()
def explain(
    folder: RunFolder,
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="A picture's file.")],
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What it might show.")],
    out: Annotated[Path, typer.Option(metavar="FILE.png", help="Where the overlay goes.")] = Path("explanation.png"),
    spheres: Annotated[
        str, typer.Option(help="Pairs of spheres to explain one by one: all, or numbers such as 0,3.")
    ] = "",
    arrays: Annotated[
        Path | None, typer.Option(metavar="FILE.npz", help="Also write maps and weights as arrays.")
    ] = None,
    which: Which = "best",
    settings: Settings = None,
    weights: Weights = None,
) -> None:
    """Show where in a picture and on which words their similarity rests (Grad-CAM)."""
    from troth import run

    run.explain(
        folder, image, text, out, which, spheres=spheres, arrays=arrays, settings=settings or (), weights=weights
    )


@app.command()
def export(
    folder: RunFolder,
    out: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new folder.")],
    which: Which = "best",
    weights: Weights = None,
) -> None:
    """Write a trained run as a folder: one that open_clip loads, or for an oblique manifold a flat model's."""
    from troth import run

    run.export(folder, which, out, weights)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where runs, table and report go.")] = Path("runs/demo"),
    noise: Annotated[float, typer.Option(help="The share of training captions to shuffle.")] = 0.3,
    seed: Annotated[int, typer.Option(help="Of the noise, the weights and the order of the data.")] = 0,
    settings: Settings = None,
) -> None:
    """Train on real pairs with wrong captions, plainly and robustly; evaluate, audit, and write an HTML report."""
    from troth.demo import run_demo

    run_demo(out, noise=noise, seed=seed, settings=settings or ())


@app.command()
def theory(
    name: Annotated[str, typer.Argument(metavar="NAME", help=THEORY_HELP)],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where NAME.csv and NAME.png go.")] = Path("runs/theory"),
    seeds: Annotated[int | None, typer.Option(help="Runs of each case; each experiment has its own default.")] = None,
) -> None:
    """Run an experiment of the linear theory; write what it measured and a figure."""
    from troth import experiments

    experiments.run(name, out, seeds, typer.echo)


@recipe_app.command("list")
def recipe_list() -> None:
    """List the shipped recipes."""
    from troth import recipe as recipes

    for name in recipes.shipped():
        typer.echo(f"{name:24} {recipes.load(name).description}")


@recipe_app.command("show")
def recipe_show(name: Annotated[str, typer.Argument(metavar="RECIPE")], settings: Settings = None) -> None:
    """Print a recipe with every default written out."""
    from troth import recipe as recipes

    typer.echo(recipes.to_toml(recipes.load(name, settings or ())), nl=False)


@recipe_app.command("check")
def recipe_check(name: Annotated[str, typer.Argument(metavar="RECIPE")], settings: Settings = None) -> None:
    """Validate a recipe without building anything."""
    from troth import recipe as recipes

    recipes.load(name, settings or ())
    typer.echo(f"{name}: valid")


@data_app.command("check")
def data_check(
    data: Annotated[str, typer.Argument(help=DATA_HELP)],
    ledger: Annotated[Path | None, typer.Option(help="Also write what cannot be used, with reasons, as JSONL.")] = None,
) -> None:
    """Read every caption and decode every image once; say what cannot be used and why."""
    from troth import run

    run.check_data(data, ledger)


Yardstick = Annotated[Path, typer.Option(help="Where data, answers, runs and results are kept.")]
Jobs = Annotated[int, typer.Option(help="Runs at a time, of one thread each.")]
RegimeName = Annotated[str | None, typer.Option("--regime", help="heads or small; by default both.")]


@bench_app.command("robustness")
def bench_robustness(
    quick: Annotated[
        bool, typer.Option("--quick", help="Some methods on heads, no noise and 40%, one seed: minutes.")
    ] = False,
    regime: RegimeName = None,
    only: Annotated[list[str] | None, typer.Option(metavar="NAME", help="This method only; may be repeated.")] = None,
    noise: Annotated[
        list[str] | None, typer.Option(metavar="KIND-PERCENT", help="This setting only, as uniform-40; repeatable.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Runs of each method and setting.")] = 3,
    out: Yardstick = Path("runs/robustness"),
    jobs: Jobs = 2,
) -> None:
    """Train every method on the same noisy pairs, the answers out of reach; print and keep what each is worth.

    Runs are kept and taken up where they stopped; results.parquet is written after each.
    """
    from troth.bench import Order, run_robustness
    from troth.bench.methods import regimes_named

    chosen = regimes_named(regime or ("heads" if quick else None))
    run_robustness(Order(out, quick, chosen, tuple(only or ()), tuple(noise or ()), seeds, jobs))


@bench_app.command("select")
def bench_select(
    method: Annotated[str, typer.Argument(metavar="METHOD", help="A row of the yardstick.")],
    grid: Annotated[
        list[str] | None, typer.Option(metavar="FIELD=VALUE,...", help="Values to try, as objective.q=0.3,0.5,0.7.")
    ] = None,
    noise: Annotated[str, typer.Option(metavar="KIND-PERCENT", help="The setting.")] = "uniform-40",
    seed: Annotated[int, typer.Option(help="Of noise and runs.")] = 100,
    regime: Annotated[str, typer.Option(help="heads or small.")] = "heads",
    out: Yardstick = Path("runs/robustness"),
    jobs: Jobs = 2,
) -> None:
    """Choose a method's settings by retrieval among noisy pairs left out: no answers, no tests.

    What earlier calls tried on the same pairs counts too, and may win.
    """
    from troth.bench import run_select
    from troth.bench.methods import regimes_named

    chosen = regimes_named(regime)[0]
    run_select(method, grid or (), out=out, noise=noise, seed=seed, regime=chosen, jobs=jobs)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a user's mistake is one line and exit code 2, a traceback is for our own bugs."""
    from troth.errors import NonFiniteLossError, UserError

    try:
        code = app(arguments, prog_name="troth", standalone_mode=False)
    except (UserError, NonFiniteLossError) as error:
        code = _say(str(error), 2)
    except typer.Abort:
        code = 130
    except BrokenPipeError:
        # Whoever read our output has had enough, as `head` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:
        if error.filename is None:
            raise
        code = _say(f"{error.filename}: {error.strerror}", 2)
    except Exception as error:
        if not hasattr(error, "format_message"):  # what typer raises for a wrong option or argument
            raise
        error.show()  # type: ignore[attr-defined]
        code = int(getattr(error, "exit_code", 2))
    if code == 130:
        _say("interrupted; a run that has checkpoints continues with `troth train --resume RUN`", 130)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from troth import distributed

        distributed.leave(code or 0)
    raise SystemExit(code or 0)


def _say(text: str, code: int) -> int:
    print(f"troth: {' '.join(text.split())}", file=sys.stderr)
    return code
