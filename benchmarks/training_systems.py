"""What each training system is worth: ProtoCLIP, SaCo and unpaired data beside plain InfoNCE, over seeds.

    python -m benchmarks.training_systems [--quick] [--save] [--regime heads|small] [--only NAME ...]
                                          [--runs FOLDER] [--jobs N]

Every system is a shipped recipe, run as it is (``heads``) or with smaller towers and fewer epochs than it says
(``small``: see ``SMALL``), three seeds each; ``--quick`` takes one seed and two epochs. Printed and saved are, of the
last step, with standard errors over seeds: zero-shot top-1 on the unseen style, top-1 among held-out concepts, mean
recall of retrieval, and on the emoji's categories linear probing, nearest neighbours (k = 20), and the agreement of
k-means with them (ARI, AMI); for systems with episodes the k-means' share of their time, for unpaired data the share of
detected pairs that are right at the end. Runs are kept in ``--runs`` and taken up where they stopped: the whole table
takes hours on two cores.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.table import RESULTS, Record, arguments, report, save
from troth.recipe import Recipe, from_dict, load, to_dict
from troth.run.opened import open_run
from troth.run.scoring import flatten, run_tasks
from troth.run.training import resume, train
from troth.train import read_log
from troth.train.resume import holds_run

#: What the small towers are cut to, so that a run takes minutes on one core.
SMALL = (
    "model.vision_layers=4",
    "model.text_layers=2",
    "model.context_length=16",
    "train.epochs=6",
    "train.evaluate_every_epochs=6",
    "train.num_workers=0",
)

METRICS = {
    "style-shift/top1": "zero-shot",
    "concept/held_out/top1": "concept",
    "retrieval/mean_recall": "retrieval",
    "linear-probe/accuracy": "linear probe",
    "knn/accuracy": "knn",
    "clustering/adjusted_rand_index": "ari",
    "clustering/adjusted_mutual_information": "ami",
}

#: Categories of emoji: what pictures are grouped by, which no caption names.
CATEGORY_TASKS = ({"kind": "linear-probe"}, {"kind": "knn"}, {"kind": "clustering"})


@dataclass(frozen=True)
class System:
    """A row of the table.

    Attributes:
        recipe: the shipped recipe, without its regime's prefix.
        settings: what is changed in it.
        regimes: where it is run.
    """

    recipe: str
    settings: tuple[str, ...] = ()
    regimes: tuple[str, ...] = ("heads", "small")


SYSTEMS: dict[str, System] = {
    "CLIP": System("infonce"),
    "ProtoCLIP": System("protoclip"),
    "ProtoCLIP + external teacher": System("protoclip-external"),
    "ProtoCLIP, no back translation": System("protoclip-no-pbt"),
    "ProtoCLIP, hard targets": System("protoclip", ("objective.terms.1.1.target_temperature=none",), ("heads",)),
    "ProtoCLIP, one k-means iteration": System("protoclip", ("episodes.kmeans.iterations=1",), ("heads",)),
    "prototypes alone": System("protoclip", ("objective.terms.0.0=0.0", "episodes.warmup_episodes=0"), ("heads",)),
    "SaCo": System("saco"),
    "SaCo + mimic": System("saco-mimic"),
    "mimic alone": System("saco-mimic", ("objective.terms.1.0=0.0",), ("heads",)),
    "CLIP, a quarter of the pairs": System("unpaired-argmax", ("unpaired=none",)),
    "unpaired A: top": System("unpaired-top"),
    "unpaired B: argmax of the best": System("unpaired-argmax"),
    "ProtoCLIP, no augmentation": System("protoclip", ("data.augmentation=none",), ("small",)),
}


@dataclass(frozen=True)
class Job:
    """One run."""

    regime: str
    name: str
    seed: int
    quick: bool
    folder: Path


def recipe_of(job: Job) -> Recipe:
    """The recipe of one run. Only what the run itself goes by is evaluated on the way: a judge's metric."""
    system = SYSTEMS[job.name]
    settings = [*system.settings, f"seed={job.seed}", *(SMALL if job.regime == "small" else ())]
    tree = to_dict(load(f"{job.regime}-{system.recipe}", settings))
    if job.regime == "small" and tree["unpaired"] != "none":
        tree["unpaired"]["epochs"] = tree["train"]["epochs"]
    tree["evaluation"] = {"best": "none", "tasks": _validation(tree)}
    if job.quick:
        tree["train"] |= {"epochs": 2, "evaluate_every_epochs": 2}
    return from_dict(tree)


def _validation(tree: dict[str, Any]) -> list[dict[str, Any]]:
    metric = "none" if tree["unpaired"] == "none" else tree["unpaired"]["refresh_metric"]
    return [task for task in tree["evaluation"]["tasks"] if metric.startswith(f"{task['name']}/")]


def run(job: Job) -> dict[str, float]:
    """Train once, or take up a run that stopped; return what is reported of its last step."""
    torch.set_num_threads(1)
    if holds_run(job.folder):
        resume(job.folder, progress=False)
    else:
        train(recipe_of(job), job.folder, progress=False)
    opened = open_run(job.folder, "last")
    tree = to_dict(opened.recipe)
    tree["evaluation"] = {"tasks": [*to_dict(from_dict({}))["evaluation"]["tasks"], *CATEGORY_TASKS]}
    metrics = flatten(run_tasks(from_dict(tree), opened.model))
    values = {label: 100 * metrics[metric] for metric, label in METRICS.items()}
    episodes = [line for line in read_log(job.folder, "episode") if line["phase"] == "prototypes"]
    if episodes:
        spent = {
            part: sum(line[f"{part}_seconds"] for line in episodes) for part in ("features", "clustering", "training")
        }
        values["k-means share %"] = 100 * spent["clustering"] / sum(spent.values())
        values["features share %"] = 100 * spent["features"] / sum(spent.values())
    right = [line["detected_right"] for line in read_log(job.folder, "train") if "detected_right" in line]
    if right:
        values["detected right %"] = 100 * right[-1]
    return values


def summary(regime: str, name: str, runs: Sequence[dict[str, float]]) -> Iterator[Record]:
    """Means over seeds, and their standard errors."""
    for label in runs[0]:
        values = [each[label] for each in runs]
        yield Record(f"{regime}: {name}", label, statistics.fmean(values))
        if len(values) > 1:
            error = statistics.stdev(values) / math.sqrt(len(values))
            yield Record(f"{regime}: {name}", f"{label} standard error", error)


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--regime", choices=("heads", "small"), help="one regime only")
    parser.add_argument("--only", nargs="+", choices=tuple(SYSTEMS), metavar="NAME", help="these systems only")
    parser.add_argument("--runs", type=Path, default=Path("runs/training_systems"), help="where runs are kept")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, of one thread each")
    options = parser.parse_args()
    seeds = (0,) if options.quick else (0, 1, 2)
    cases = [
        (regime, name)
        for regime in ("heads", "small")
        for name, system in SYSTEMS.items()
        if regime in system.regimes and options.regime in (None, regime) and (not options.only or name in options.only)
    ]
    kept = _kept(cases) if options.save else []
    records: list[Record] = []
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        waiting = [
            [pool.submit(run, Job(*case, seed, options.quick, _folder(options, *case, seed))) for seed in seeds]
            for case in cases
        ]
        for case, futures in zip(cases, waiting, strict=True):
            records += summary(*case, [future.result() for future in futures])
            print(f"{case[0]}: {case[1]} done", flush=True)
            if options.save:
                save("training_systems", "python -m benchmarks.training_systems", options.save, kept + records)
    report(f"Training systems, {len(seeds)} seed(s)", records)


def _folder(options: Any, regime: str, name: str, seed: int) -> Path:
    slug = "".join(letter if letter.isalnum() else "-" for letter in name.lower())
    return Path(options.runs) / ("quick" if options.quick else "full") / f"{regime}-{slug}-{seed}"


def _kept(cases: Sequence[tuple[str, str]]) -> list[Record]:
    """The saved records of other cases."""
    path = RESULTS / "training_systems.json"
    if not path.exists():
        return []
    again = {f"{regime}: {name}" for regime, name in cases}
    records = json.loads(path.read_text(encoding="utf-8"))["records"]
    return [Record(each["case"], each["metric"], each["ours"]) for each in records if each["case"] not in again]


if __name__ == "__main__":
    main()
