"""What limits the judge: its order of the pairs, or what it makes of that order? The map alone, four kinds of weights.

    python -m benchmarks.judge_limits RUNS [--quick] [--save]

RUNS is a folder of the yardstick (``troth bench robustness --out RUNS``); its noisy pairs are taken from there, or
written and judged. The judge's linear map, beside heads that are not trained, is fitted to all pairs with

* ``alike``: the same weight for every pair, as if there were no judge;
* ``judged``: the probability of being right that the judge gives, which is what ``robust`` does;
* ``calibrated``: the share of right pairs among those of about the judge's score, by the answers (isotonic
  regression), one way of weighing by that score that is right on average;
* ``answers``: 1 for right pairs and 0 for wrong ones.

The last two see the answers: they are oracles. Printed for each setting and kind: the three tests of the yardstick and
the mean weight of right and of wrong pairs, means over three seeds with standard errors. ``--quick``: one seed of
uniform-40.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.isotonic import IsotonicRegression
from torch import Tensor

from benchmarks.table import Record, arguments, report, save
from troth.bench.data import pairs_source, prepare, share_features
from troth.bench.methods import method_named, run_recipe
from troth.bench.results import Mean
from troth.bench.scores import TESTS
from troth.bench.settings import Place, Setting
from troth.data import CaptionAssignment
from troth.embed import FrozenEncoders
from troth.encoders.heads import HeadsEncoder, SpectralHead
from troth.judge import SpectralAlignment, Whitened
from troth.recipe import EvaluationConfig
from troth.run import build, run_tasks
from troth.run.build import Built
from troth.run.scoring import flatten

NOISE = ("uniform-20", "uniform-40", "uniform-60", "foreign-40", "same-category-40")
KINDS = ("alike", "judged", "calibrated", "answers")


def weights(kind: str, score: np.ndarray, p_mismatch: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """Return how much each pair counts, by the kinds above and those of :mod:`benchmarks.judge_errors`."""
    judged = 1 - p_mismatch
    if kind == "alike":
        return np.ones(len(wrong))
    if kind == "judged":
        return judged
    if kind == "wrong out":
        return np.where(wrong, 0.0, judged)
    if kind == "right whole":
        return np.where(wrong, judged, 1.0)
    if kind == "answers":
        return 1.0 - wrong
    return np.asarray(IsotonicRegression(out_of_bounds="clip").fit_transform(score, 1.0 - wrong))


def install(built: Built, alignment: SpectralAlignment) -> None:
    """Put a map beside the heads, which are not trained and add nothing to it."""
    encoder = built.model.encoder
    assert isinstance(encoder, HeadsEncoder)
    for head, side in ((encoder.image_head, alignment.image), (encoder.text_head, alignment.text)):
        assert isinstance(head, SpectralHead)
        head.install(side.mean, side.matrix)


def scores(place: Place, frozen: FrozenEncoders) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield each kind of weights with the tests and the mean weights."""
    prepare(place)
    recipe = replace(run_recipe(method_named("robust"), "heads", place), evaluation=EvaluationConfig())
    share_features(frozen, (pairs_source(place.pairs),), stages=True)
    built = build(recipe, frozen=frozen)
    judged = built.judged
    assert judged is not None, "the recipe has a judge"
    assert bool(judged.valid.all()), "every embedded picture can be read"
    wrong = CaptionAssignment.load(place.answers).mismatched
    score, probability = judged.judgement.score.numpy(), judged.judgement.p_mismatch.numpy()
    whitened = Whitened(F.normalize(judged.image_features.float(), dim=-1), judged.text_features.float())
    assert recipe.judge is not None
    for kind in KINDS:
        weight = weights(kind, score, probability, wrong)
        given: Tensor = torch.from_numpy(weight).float().clamp(min=1e-6)
        install(built, whitened.align(given, recipe.judge.procedure.dim, recipe.judge.procedure.shrinkage))
        metrics = flatten(run_tasks(recipe, built.model, frozen=frozen))
        found = {name: 100 * metrics[metric] for name, metric in TESTS.items()}
        masses = {"weight of right pairs": weight[~wrong].mean(), "weight of wrong pairs": weight[wrong].mean()}
        yield kind, found | {name: 100 * float(mass) for name, mass in masses.items()}


def measure(runs: Path, noise: tuple[str, ...], seeds: int) -> list[Record]:
    """Score all kinds of weights in all settings."""
    records = []
    for name in noise:
        found: dict[tuple[str, str], list[float]] = {}
        for seed in range(seeds):
            place = Place(runs, Setting.parse(name), seed)
            recipe = run_recipe(method_named("robust"), "heads", place)
            for kind, values in scores(place, FrozenEncoders(recipe.model)):
                for metric, value in values.items():
                    found.setdefault((kind, metric), []).append(value)
        for (kind, metric), values in found.items():
            mean = Mean.of(values)
            records.append(Record(f"{name}: {kind}", f"{metric} %", mean.value))
            if mean.error is not None:
                records.append(Record(f"{name}: {kind}", f"{metric} %, standard error", mean.error))
    return records


def main() -> None:
    """Print and perhaps keep what was measured."""
    parser = arguments(__doc__ or "")
    parser.add_argument("runs", type=Path, metavar="RUNS")
    chosen = parser.parse_args()
    records = measure(chosen.runs, ("uniform-40",) if chosen.quick else NOISE, 1 if chosen.quick else 3)
    report("The map alone, by the weights of the pairs", records)
    if chosen.save:
        save("judge_limits", "python -m benchmarks.judge_limits RUNS", chosen.save, records)


if __name__ == "__main__":
    main()
