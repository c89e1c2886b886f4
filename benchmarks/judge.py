"""What each kind of evidence adds to the judge, and what judging costs: wrong captions on the embedded data.

    python -m benchmarks.judge [--quick] [--save] [--only KIND ...]

20%, 40% and 60% of the training pairs' captions are moved (seed 100) and judged by the heads' frozen features, with

* ``fit``: only how well a picture and a caption fit each other in each view;
* ``fit, rivals``: also what the best others reach with the picture and with the caption;
* ``fit, rivals, words``: also the captions' words;
* ``fit, rivals, words, stages``: also alignments of the image encoder's intermediate features;
* ``fit, rivals, words, stages, near``: also what pictures near by these predict;
* ``fit, rivals, words, stages, near, alike``: the same, with wrong captions among like ones as a kind of their own, as
  the judge does unless told not to.

After two rounds and after five, two areas under curves are printed: ``given`` tells given pairs from those re-paired at
random, out of fold, and needs no answers, so that it may choose; ``wrong`` tells wrong pairs from right ones by the
answers, and may not. If given wrong pairs scored exactly as re-paired ones, ``given`` would be (1 - e) ``wrong`` + e /
2 for a share e. Also the wall time of these rounds; features and words come before them, the final alignment after.
``--only``: these kinds; what was kept of the others stays. ``--quick``: 40% of a fifth of the pairs, two rounds.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from sklearn.metrics import roc_auc_score
from torch import Tensor

from benchmarks.table import Record, arguments, kept, report, save
from troth.data import EmbeddedSource, Noise, PartSource
from troth.embed import FrozenEncoders
from troth.embed.features import CaptionTable
from troth.encoders import Heads
from troth.judge import Evidence, Procedure, caption_words
from troth.judge.judgement import rounds
from troth.train.external_teacher import given_captions, mean_captions
from troth.train.teacher import encode_pictures
from troth.train.teacher_tower import FrozenTower, load_stages

SEED = 100
KINDS = (
    "fit",
    "fit, rivals",
    "fit, rivals, words",
    "fit, rivals, words, stages",
    "fit, rivals, words, stages, near",
    "fit, rivals, words, stages, near, alike",
)


@dataclass(frozen=True)
class NoisyPairs:
    """Pairs with wrong captions among them.

    Attributes:
        image: ``(N, F)`` unit features of the pictures.
        text: ``(N, G)`` mean unit features of the captions given.
        words: ``(N, W)`` of these captions.
        stages: ``(N, S)`` of the pictures.
        wrong: ``(N,)`` the answers.
    """

    image: Float[Tensor, "N F"]
    text: Float[Tensor, "N G"]
    words: Float[Tensor, "N W"]
    stages: Float[Tensor, "N S"]
    wrong: np.ndarray


def pairs(rate: float, part: float) -> NoisyPairs:
    """Return the first part of the embedded training pairs, a share of the captions moved."""
    source = PartSource(EmbeddedSource(), stop=part).open()
    noise = Noise(fraction=rate).bind(source, SEED)
    features = FrozenEncoders(Heads()).features(source)
    captions = given_captions(source, noise)
    distinct = CaptionTable(tuple(dict.fromkeys(caption for group in captions for caption in group)))
    text = mean_captions(captions, distinct, features.text_features[features.rows(distinct.captions)])
    assert bool(features.valid.all()), "every embedded picture can be read"
    image = F.normalize(features.image_features.float(), dim=-1)
    words = caption_words(captions, SEED)
    tower = load_stages(FrozenTower(), "float32", torch.device("cpu"))
    assert words is not None
    assert tower is not None
    stages = encode_pictures(tower, source).tensors["features"]
    return NoisyPairs(image, text, words, stages, noise.mismatched)


class OnlyFit(Evidence):
    """Evidence without what others reach."""

    def gather(self, *arguments: Any) -> list[np.ndarray]:
        """Return of the three numbers of each view the first."""
        return [each[:, ::3] for each in super().gather(*arguments)]


def areas(data: NoisyPairs, kind: str, count: int) -> dict[int, tuple[float, float]]:
    """Return the two areas after the second round and the last."""
    procedure = Procedure(rounds=count) if "alike" in kind else Procedure(rounds=count, cluster_size=0)
    words = data.words if "words" in kind else None
    stages = data.stages if "stages" in kind else None
    evidence = (OnlyFit if kind == "fit" else Evidence).of(
        data.image, data.text, words, procedure.neighbours, stages, "near" in kind
    )
    found = {}
    for number, each in enumerate(rounds(evidence, procedure, SEED), start=1):
        if number in (2, count):
            random = each.at_random
            labels = np.repeat([1, 0], [len(random.given), len(random.repaired)])
            of_given = roc_auc_score(labels, np.concatenate([random.given, random.repaired]))
            found[number] = (float(of_given), float(roc_auc_score(data.wrong, -each.score)))
    return found


def measure(rate: float, part: float, count: int, kinds: Sequence[str]) -> list[Record]:
    """Judge the pairs by each of some kinds of evidence."""
    data, records = pairs(rate, part), []
    for kind in kinds:
        began = time.perf_counter()
        found = areas(data, kind, count)
        seconds = time.perf_counter() - began
        case = f"{rate:.0%} of {len(data.image):,} wrong: {kind}"
        for number, (of_given, of_wrong) in found.items():
            records.append(Record(case, f"given, {number} rounds", of_given))
            records.append(Record(case, f"wrong, {number} rounds", of_wrong))
        records.append(Record(case, f"seconds, {count} rounds", seconds))
    return records


def main() -> None:
    """Print and perhaps keep what was measured."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--only", nargs="+", choices=KINDS, metavar="KIND", default=KINDS, help="these kinds only")
    chosen = parser.parse_args()
    rates, part, count = ((0.4,), 0.2, 2) if chosen.quick else ((0.2, 0.4, 0.6), 1.0, Procedure().rounds)
    records = [record for rate in rates for record in measure(rate, part, count, chosen.only)]
    report("The judge's evidence: areas under curves, and its cost", records)
    if chosen.save:
        again = {record.case for record in records}
        others = [] if chosen.only == KINDS else kept("judge", again.__contains__)
        save("judge", "python -m benchmarks.judge", chosen.save, others + records)


if __name__ == "__main__":
    main()
