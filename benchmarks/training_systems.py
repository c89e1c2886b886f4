"""What each training system is worth: ProtoCLIP, SaCo and unpaired data beside plain InfoNCE, over seeds.

    python -m benchmarks.training_systems [--quick] [--save] [--regime heads|small] [--only NAME ...]
                                          [--runs FOLDER] [--jobs N]

Every system is a shipped recipe, run as it is (``heads``) or with smaller towers and fewer epochs than it says
(``small``: see ``troth.bench.methods.SMALL``), three seeds each; ``--quick`` takes one seed and two epochs. Printed and
saved are, of the last step, with standard errors over seeds: zero-shot top-1 on the unseen style, top-1 among held-out
concepts, mean recall of retrieval, and on the emoji's categories linear probing, nearest neighbours (k = 20), and the
agreement of k-means with them (ARI, AMI); for systems with episodes the k-means' share of their time, for unpaired data
the share of detected pairs that are right at the end. Runs are kept in ``--runs`` and taken up where they stopped: the
whole table takes hours on two cores.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.seeds import REGIMES, Job, add_arguments, cut_recipe, table, with_tasks
from benchmarks.table import arguments
from troth.recipe import Recipe, from_dict, load, to_dict
from troth.run.opened import OpenedRun
from troth.run.scoring import flatten, run_tasks
from troth.train import read_log

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


#: What the recipe of small towers does not do any more, since they hardly learn by it.
FULL_WEIGHT = "SaCo, full weight from the start"

SYSTEMS: dict[str, System] = {
    "CLIP": System("infonce"),
    "ProtoCLIP": System("protoclip"),
    "ProtoCLIP + external teacher": System("protoclip-external"),
    "ProtoCLIP, no back translation": System("protoclip-no-pbt"),
    "ProtoCLIP, hard targets": System("protoclip", ("objective.terms.1.1.target_temperature=none",), ("heads",)),
    "ProtoCLIP, one k-means iteration": System("protoclip", ("episodes.kmeans.iterations=1",), ("heads",)),
    "prototypes alone": System("protoclip", ("objective.terms.0.0=0.0", "episodes.warmup_episodes=0"), ("heads",)),
    "SaCo": System("saco"),
    FULL_WEIGHT: System("saco", ("objective.terms.1.0=2.5", "objective.terms.1.1.strategy=constant"), ("small",)),
    "SaCo + mimic": System("saco-mimic"),
    "mimic alone": System("saco-mimic", ("objective.terms.1.0=0.0",), ("heads",)),
    "CLIP, a quarter of the pairs": System("unpaired-argmax", ("unpaired=none",)),
    "unpaired A: top": System("unpaired-top"),
    "unpaired B: argmax of the best": System("unpaired-argmax"),
    "ProtoCLIP, no augmentation": System("protoclip", ("data.augmentation=none",), ("small",)),
}


def recipe_of(job: Job) -> Recipe:
    """Return the recipe of one run. Only what the run itself goes by is evaluated on the way: a judge's metric."""
    system = SYSTEMS[job.name]
    tree = cut_recipe(job, system.recipe, system.settings)
    if tree["unpaired"] != "none":
        if job.regime == "small":
            tree["unpaired"]["epochs"] = tree["train"]["epochs"]
        tasks = to_dict(load(f"{job.regime}-{system.recipe}"))["evaluation"]["tasks"]
        tree["evaluation"]["tasks"] = [
            task for task in tasks if tree["unpaired"]["refresh_metric"].startswith(f"{task['name']}/")
        ]
    return from_dict(tree)


def score(job: Job, opened: OpenedRun) -> dict[str, float]:
    """Return what is reported of a run's last step."""
    metrics = flatten(run_tasks(with_tasks(opened.recipe, CATEGORY_TASKS), opened.model))
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


def main() -> None:
    parser = arguments(__doc__ or "")
    add_arguments(parser, "training_systems", tuple(SYSTEMS))
    cases = [(regime, name) for regime in REGIMES for name, system in SYSTEMS.items() if regime in system.regimes]
    table("training_systems", "Training systems", cases, recipe_of, score, parser.parse_args())


if __name__ == "__main__":
    main()
