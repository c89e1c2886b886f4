"""Which of the judge's errors costs training what: wrong pairs that still count, or right pairs that count less?

    python -m benchmarks.judge_errors RUNS [--quick] [--save] [--runs FOLDER] [--jobs N]

RUNS is a folder of the yardstick (``troth bench robustness --out RUNS``) that has run ``robust`` on heads. Heads are
trained as ``robust`` trains them, on the same noisy pairs. Only what a pair counts is changed; in the contrastive loss
alone, beside the judge's map as it is:

* ``judged``: the probability of being right that the judge gives, which is ``robust`` itself;
* ``wrong out``: the same for right pairs, 0 for wrong ones;
* ``right whole``: the same for wrong pairs, 1 for right ones;
* ``answers``: 1 for right pairs and 0 for wrong ones;

and, by the answers, in more than that (``judge.file``):

* ``answers, map too``: in the map, where heads begin and which distillation teaches;
* ``answers, map and draw``: there, and wrong pairs are never drawn: the others are seen more often in as many steps.

All but the first see the answers: they are oracles. Printed are the three tests of the yardstick, means over three
seeds with standard errors. ``--quick``: one seed of uniform-40, two epochs.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.judge_limits import weights
from benchmarks.seeds import Job, add_arguments, table
from benchmarks.table import arguments
from troth.bench.data import pairs_source, prepare
from troth.bench.methods import method_named, run_recipe
from troth.bench.runs import Job as YardstickJob
from troth.bench.scores import TESTS
from troth.bench.settings import Place, Setting
from troth.data import CaptionAssignment
from troth.embed import FrozenEncoders
from troth.encoders import Heads
from troth.errors import UserError
from troth.recipe import EvaluationConfig, Recipe, from_dict, to_dict
from troth.run import run_tasks
from troth.run.opened import OpenedRun
from troth.run.scoring import flatten
from troth.train import MismatchEstimates
from troth.train.mismatch_estimates import JUDGEMENT_NAME

NOISE = ("uniform-40", "uniform-60")
#: Of the last two, the part after the comma says what goes by them beside the contrastive loss.
KINDS = ("judged", "wrong out", "right whole", "answers", "answers, map too", "answers, map and draw")
ROWS = tuple(f"{noise}: {kind}" for noise in NOISE for kind in KINDS)
SEEDS = (0, 1, 2)


def place_of(row: str, seed: int, yardstick: Path) -> tuple[Place, str]:
    """Return where a row's pairs are, and its kind of weights."""
    noise, kind = row.split(": ")
    return Place(yardstick, Setting.parse(noise), seed), kind


def weights_file(runs: Path, row: str, seed: int) -> Path:
    """Return where a row's weights are kept."""
    slug = row.replace(": ", "-").replace(", ", "-").replace(" ", "-")
    return runs.absolute() / "weights" / f"{slug}-{seed}.parquet"


def write_weights(row: str, seed: int, yardstick: Path, runs: Path) -> None:
    """Write what each pair of a row counts, by the judgement that the yardstick's run has kept.

    Raises:
        UserError: if the yardstick has kept none, or other weights were written there before.
    """
    place, kind = place_of(row, seed, yardstick)
    kept = YardstickJob("heads", method_named("robust"), place).folder
    remedy = f"run `troth bench robustness --only robust --regime heads --noise {place.setting.name}` first"
    if not (kept / JUDGEMENT_NAME).is_file():
        raise UserError("no judgement is kept there", where=str(kept), remedy=remedy)
    prepare(place)
    num_pairs = len(pairs_source(place.pairs).open())
    judged = MismatchEstimates.read(kept / JUDGEMENT_NAME, num_pairs, remedy=f"remove {kept}, and {remedy}")
    wrong = CaptionAssignment.load(place.answers).mismatched[judged.id]
    weight = weights(kind.partition(",")[0], judged.score, judged.p_mismatch, wrong)
    found = replace(judged, p_mismatch=1 - weight)
    path, other = weights_file(runs, row, seed), "choose another folder with --runs"
    if path.is_file():
        there = MismatchEstimates.read(path, num_pairs, remedy=other)
        if not all(np.array_equal(getattr(there, name), getattr(found, name)) for name in ("id", "p_mismatch")):
            raise UserError("weights of another judgement", where=str(path), remedy=other)
    found.write(path)


def recipe_of(job: Job, *, yardstick: Path, runs: Path) -> Recipe:
    """Return ``robust`` with a table of weights in the contrastive loss, and where else its row says."""
    place, kind = place_of(job.name, job.seed, yardstick)
    tree = to_dict(run_recipe(method_named("robust"), "heads", place))
    table = str(weights_file(runs, job.name, job.seed))
    if "map" in kind:  # pairs carry to the loss what their judgement says, or are drawn by it
        tree["judge"] |= {"file": table, "draw_wrong": 0.0 if "draw" in kind else 1.0}
    else:
        tree["objective"]["terms"][0][1]["by"] = {"kind": "given", "file": table}
    if job.quick:
        tree["train"] |= {"epochs": 2, "evaluate_every_epochs": 2, "max_steps": None}
    return from_dict(tree)


def score(job: Job, run: OpenedRun) -> dict[str, float]:
    """Return the yardstick's tests of a run."""
    assert isinstance(run.recipe.model, Heads)
    recipe = replace(run.recipe, evaluation=EvaluationConfig())
    metrics = flatten(run_tasks(recipe, run.model, frozen=FrozenEncoders(run.recipe.model)))
    return {f"{name} %": 100 * metrics[metric] for name, metric in TESTS.items()}


def main() -> None:
    """Write the weights, train, and print the table."""
    parser = arguments(__doc__ or "")
    parser.add_argument("yardstick", type=Path, metavar="RUNS")
    add_arguments(parser, "judge-errors", ROWS)
    options = parser.parse_args()
    rows = [row for row in ROWS if row in (options.only or ROWS) and (not options.quick or row.startswith(NOISE[0]))]
    yardstick = options.yardstick.absolute()
    try:
        for row in rows:
            for seed in SEEDS[:1] if options.quick else SEEDS:
                write_weights(row, seed, yardstick, options.runs)
    except UserError as error:
        sys.exit(str(error))
    table(
        "judge_errors",
        "Heads beside the judge's map, by what pairs count",
        [("heads", row) for row in rows],
        partial(recipe_of, yardstick=yardstick, runs=options.runs),
        score,
        options,
        SEEDS,
        command="python -m benchmarks.judge_errors RUNS",
    )


if __name__ == "__main__":
    main()
