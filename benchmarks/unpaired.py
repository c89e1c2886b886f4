"""The published notebook experiments with unpaired data: a synthetic model, and codes of digits and garments.

    python -m benchmarks.unpaired [--quick] [--save] [--seeds N]

Synthetic (``spiked-unpaired``): 300 pairs, then N unpaired vectors of each side, top-1 matching among 10,000 held-out
pairs. The two sides are read in one order, as published, in independent orders with the same batches of 50, or in one
batch of all (``WHOLE``). Each seed draws data, first weights and orders anew. Digits and garments
(``digits-unpaired``): ``oracle`` has the unpaired file's true pairs in the second stage, ``oracle from scratch`` learns
from them alone with the first stage's learning rate; the data are the same for all seeds.

Every other setting is the shipped recipe's. Nothing was chosen on test data. Accuracies come with their standard errors
over seeds, beside the published numbers, each of one run; the results are drawn in docs/figures/unpaired.png. Steps of
models as small as these are mostly the training loop's overhead: the time says nothing about larger ones.
"""

from __future__ import annotations

import json
import math
import statistics
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.table import RESULTS, Record, arguments, report, save

FIGURE = Path(__file__).resolve().parent.parent / "docs" / "figures" / "unpaired.png"
DIGITS = Path(__file__).parent / "data" / "digits"

#: Top-1 percent by number of unpaired samples, as the published notebook shows it: one run.
PUBLISHED = {500: 44.8, 1000: 52.1, 1500: 56.7, 2000: 57.7, 2500: 59.2, 3000: 58.7, 3500: 59.6, 4000: 60.1, 5000: 59.6}
PUBLISHED_DIGITS = {"paired": 58.0, "+ unpaired": 63.6, "oracle": 72.0}

#: Settings of each order. One batch of all: see ``docs/unpaired.md`` for how the number of steps was chosen.
WHOLE = ("unpaired.order=independent", "unpaired.epochs=400")
ORDERS = {
    "aligned, batches of 50": ("unpaired.order=aligned", "unpaired.batch_size=50"),
    "independent, batches of 50": ("unpaired.order=independent", "unpaired.batch_size=50"),
    "independent, one batch": WHOLE,
}
GRIDS = {
    "aligned, batches of 50": (500, 1000, 2000, 3000, 5000),
    "independent, batches of 50": (500, 1000, 2000),
    "independent, one batch": (500, 1000, 2000),
}

Values = dict[str, float]


def trained(name: str, settings: Sequence[str], folder: Path, test: dict[str, Any]) -> Values:
    """Train a recipe; return the test's top-1, and what was detected in the last pass."""
    from troth.recipe import from_dict, load, to_dict
    from troth.run.opened import open_run
    from troth.run.scoring import flatten, run_tasks
    from troth.run.training import train
    from troth.train import read_log

    recipe = load(name, [*settings, "train.tensorboard=false"])
    train(recipe, folder, progress=False)
    tree = to_dict(recipe)
    tree["evaluation"]["tasks"] = [test]
    tasks = from_dict(tree).evaluation.tasks
    run = open_run(folder, "last")
    evaluation = replace(run.recipe.evaluation, tasks=tasks)
    metrics = flatten(run_tasks(replace(run.recipe, evaluation=evaluation), run.model))
    values = {"top1_percent": 100 * metrics["test/image_to_text/top1"]}
    lines = read_log(folder, "train")
    last = [line for line in lines if line["epoch"] == lines[-1]["epoch"]]
    for note in ("detected_right", "detectable"):
        if note in lines[-1]:
            values[f"{note}_percent"] = 100 * statistics.fmean(line[note] for line in last)
    return values


def spiked(order: str | None, samples: int, quick: bool, seed: int) -> Values:
    """One run on the synthetic model; on its pairs alone without an order."""
    settings = [f"seed={seed}", f"data.source.seed={seed}", "evaluation.tasks=[]"]
    if quick:
        settings += ["train.epochs=5"]
    if order is not None:
        sides = ("unpaired.images", "unpaired.texts")
        settings += [f"{side}.{field}" for side in sides for field in (f"seed={seed}", f"num_samples={samples}")]
        settings += ORDERS[order]
        if order == "independent, one batch":
            settings.append(f"unpaired.batch_size={samples}")
        if quick:
            settings += ["unpaired.epochs=2"]
    source = {"kind": "spiked", "split": "test", "num_samples": 500 if quick else 10_000, "seed": seed}
    with tempfile.TemporaryDirectory() as folder:
        name = "spiked-paired" if order is None else "spiked-unpaired"
        return trained(name, settings, Path(folder) / "run", {"kind": "matching", "name": "test", "source": source})


def digits(which: str, quick: bool, seed: int) -> Values:
    """One run on the codes of digits and garments."""
    test = {
        "kind": "class-matching",
        "name": "test",
        "source": {"kind": "vectors", "path": str(DIGITS / ("validation.npz" if quick else "test.npz"))},
    }
    validation = f'[{{kind="class-matching", name="validation", source={_vectors("validation")}}}]'
    common = [f"seed={seed}", f"evaluation.tasks={validation}", *(["train.epochs=5"] if quick else [])]
    pairs = [*common, f"data.source={_vectors('paired')}"]
    sides = [f"unpaired.{side}={_vectors('unpaired')}" for side in ("images", "texts")]
    true_pairs = [*common, f"data.source={_vectors('unpaired')}", *(["train.epochs=1"] if quick else [])]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        if which == "+ unpaired":
            short = ["unpaired.epochs=1"] if quick else []
            return trained("digits-unpaired", [*pairs, *sides, *short], path, test)
        if which == "oracle from scratch":
            return trained("digits-paired", true_pairs, path, test)
        values = trained("digits-paired", pairs, path, test)
        if which == "oracle":
            slow = ["train.optimizer.learning_rate=2e-5", f"start_from={path}@last"]
            values = trained("digits-paired", [*true_pairs, *slow], Path(folder) / "oracle", test)
        return values


def _vectors(part: str) -> str:
    return f'{{kind="vectors", path="{DIGITS / part}.npz"}}'


def cases(quick: bool) -> Iterable[tuple[str, Callable[[int], Values], float | None]]:
    """Every case: its name, what runs it with a seed, and the published number."""
    yield "spiked: paired", partial(spiked, None, 0, quick), None
    for order, grid in GRIDS.items():
        for samples in grid[:1] if quick else grid:
            published = PUBLISHED[samples] if order.startswith("aligned") else None
            yield f"spiked: {order}, N = {samples}", partial(spiked, order, samples, quick), published
    for which in ("paired", "+ unpaired", "oracle", "oracle from scratch"):
        yield f"digits: {which}", partial(digits, which, quick), PUBLISHED_DIGITS.get(which)


def summary(case: str, runs: Sequence[Values], published: float | None) -> list[Record]:
    """Means over seeds, and the standard error of the accuracy."""
    records = [Record(case, key, statistics.fmean(each[key] for each in runs)) for key in runs[0]]
    if published is not None:
        records[0] = replace(records[0], peer=published, peer_name="published, one run")
    if len(runs) > 1:
        error = statistics.stdev(each["top1_percent"] for each in runs) / math.sqrt(len(runs))
        records.append(Record(case, "top1_standard_error", error))
    return records


def draw(content: dict[str, Any], path: Path) -> None:
    """Draw accuracy against the number of unpaired samples."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    values = {(each["case"], each["metric"]): each["ours"] for each in content["records"]}
    figure = Figure(figsize=(7, 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for order, colour in zip(ORDERS, ("#0072b2", "#d55e00", "#009e73"), strict=True):
        names = {samples: f"spiked: {order}, N = {samples}" for samples in GRIDS[order]}
        found = [samples for samples, name in names.items() if (name, "top1_percent") in values]
        if not found:
            continue
        means, errors = (
            [values[names[samples], metric] for samples in found] for metric in ("top1_percent", "top1_standard_error")
        )
        axes.errorbar(found, means, yerr=errors, color=colour, marker="o", markersize=4, capsize=3, label=order)
    paired, error = (values["spiked: paired", metric] for metric in ("top1_percent", "top1_standard_error"))
    axes.axhline(paired, color="0.35", linestyle="--", linewidth=1, label="300 pairs alone")
    axes.axhspan(paired - error, paired + error, color="0.35", alpha=0.15, linewidth=0)
    axes.plot(*zip(*PUBLISHED.items(), strict=True), "x", color="black", markersize=6, label="published, one run")
    axes.set(xlabel="unpaired samples of each side", ylabel="top-1 % among 10,000 pairs", ylim=(0, None), xlim=(0, 5200))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=2, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each case")
    options = parser.parse_args()
    seeds = range(1 if options.quick else options.seeds)
    records: list[Record] = []
    for name, run, published in cases(options.quick):
        records += summary(name, [run(seed) for seed in seeds], published)
        print(f"{name}: {records[-1].ours:.2f}" if len(seeds) < 2 else name, flush=True)
        if options.save:
            save("unpaired", f"python -m benchmarks.unpaired --seeds {len(seeds)}", options.save, records)
    report(f"Unpaired data, {len(seeds)} seed(s)", records)
    if options.save and len(seeds) > 1:
        draw(json.loads((RESULTS / "unpaired.json").read_text(encoding="utf-8")), FIGURE)


if __name__ == "__main__":
    main()
