"""Which reading of Gamma pair weights trains, and which collapses: aligned heads on the embedded data.

    python -m benchmarks.gamma_readings [--quick] [--save]

Each method trains the ``heads-infonce`` recipe with its own objective, nothing else changed or tuned, without and with
40% of the captions moved to other pictures, over three seeds; ``--quick`` takes one seed and 3 epochs. The first run
computes the frozen features (about two minutes); they are cached. Printed and saved are zero-shot top-1 on the unseen
style with its standard error over seeds, the mean loss of the last epoch, InfoNCE's value where it is the loss or noted
beside it, and the scale.
"""

from __future__ import annotations

import json
import math
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.table import Record, arguments, report, save
from troth.objectives import MMCL, GammaWeights, InfoNCE, Objective
from troth.recipe import Recipe, from_dict, load, to_dict
from troth.run.training import train

METRIC = "style-shift/top1"

METHODS: dict[str, Objective] = {
    "infonce": InfoNCE(),
    "gamma, cosine": GammaWeights(),
    "gamma, logits (literal)": GammaWeights(similarity="logits"),
    "gamma, logits, b = 1": GammaWeights(similarity="logits", b_plus=1.0, b_minus=1.0),
    "mmcl, linear": MMCL.linear(),
}


def recipe_of(objective: Objective, noise: float, seed: int, epochs: int | None) -> Recipe:
    """The heads recipe with another objective."""
    from pydantic import TypeAdapter

    tree = to_dict(load("heads-infonce"))
    tree["seed"] = seed
    tree["objective"] = TypeAdapter(type(objective)).dump_python(objective, mode="json")
    tree["data"]["noise"]["fraction"] = noise
    if epochs is not None:
        tree["train"]["epochs"] = tree["train"]["evaluate_every_epochs"] = epochs
    return from_dict(tree)


def run(objective: Objective, noise: float, seed: int, epochs: int | None) -> dict[str, float]:
    """Train once; return what is reported."""
    with tempfile.TemporaryDirectory() as folder:
        result = train(recipe_of(objective, noise, seed, epochs), Path(folder) / "run", progress=False)
        lines = [json.loads(line) for line in (Path(folder) / "run" / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line.get("event") == "train"]
    last = [line for line in steps if line["epoch"] == steps[-1]["epoch"]]
    infonce = [line["loss"] if isinstance(objective, InfoNCE) else line.get("infonce") for line in last]
    values = {
        "top1_percent": 100 * result.metrics[METRIC],
        "loss": statistics.fmean(line["loss"] for line in last),
        "scale": steps[-1]["scale"],
    }
    return values if None in infonce else {**values, "infonce": statistics.fmean(infonce)}


def summary(name: str, noise: float, runs: Sequence[dict[str, float]]) -> list[Record]:
    """Means over seeds, and the standard error of the accuracy."""
    case = f"{name}, {noise:.0%} wrong"
    records = [Record(case, key, statistics.fmean(each[key] for each in runs)) for key in runs[0]]
    if len(runs) > 1:
        error = statistics.stdev(each["top1_percent"] for each in runs) / math.sqrt(len(runs))
        records.append(Record(case, "top1_standard_error", error))
    return records


def main() -> None:
    options = arguments(__doc__ or "").parse_args()
    seeds, epochs = ((0,), 3) if options.quick else ((0, 1, 2), None)
    records: list[Record] = []
    for noise in (0.0, 0.4):
        for name, objective in METHODS.items():
            records += summary(name, noise, [run(objective, noise, seed, epochs) for seed in seeds])
            if options.save:
                save("gamma_readings", "python -m benchmarks.gamma_readings", options.save, records)
    report(f"Aligned heads, zero-shot top-1 on the unseen style, {len(seeds)} seed(s)", records)


if __name__ == "__main__":
    main()
