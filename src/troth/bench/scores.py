"""What a finished run is worth, measured after it has ended and not by the process that trained it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from troth.audit import against_truth, estimates_by_similarity, estimates_of_run, pair_scores
from troth.bench.data import pairs_source
from troth.bench.settings import Place
from troth.data import CaptionAssignment, Source, atomic_path
from troth.embed import Embedder, FrozenEncoders
from troth.encoders import Heads
from troth.errors import UserError
from troth.evaluate.result import TaskResult
from troth.recipe import EvaluationConfig
from troth.run.opened import OpenedRun, open_run
from troth.run.scoring import caption_points, flatten, run_tasks
from troth.train import MismatchEstimates

SCORE_NAME = "score.json"

#: The metrics of the tests, by their names in the results.
TESTS = {
    "zero_shot": "style-shift/top1",
    "new_concepts": "concept/held_out/top1",
    "retrieval": "retrieval/mean_recall",
}


@dataclass(frozen=True)
class Score:
    """A row of ``results.parquet``.

    Attributes:
        regime: ``heads`` or ``small``.
        method: the row.
        noise: name of the setting.
        rate: its share of wrong pairs as asked for.
        seed: of noise and run.
        zero_shot: top-1 of the unseen style, in percent.
        new_concepts: top-1 among held-out names, in percent.
        retrieval: mean recall of unseen clip art, in percent.
        auroc: that a wrong pair scores lower than a right one, 0 to 1; None where no pair is wrong.
        average_precision: of the list of pairs, most suspicious first, 0 to 1; None where no pair is wrong.
        estimated_rate: share of wrong pairs as estimated without the answers, 0 to 1; None if no estimate was possible.
        true_rate: share of wrong pairs.
        judged_by: whose scores of pairs these are, the ``model``'s similarity or the method's own ``judgement``.
        seconds: wall time of the training; None if it was taken up where it had stopped.
        steps: of the optimiser.
    """

    regime: str
    method: str
    noise: str
    rate: float
    seed: int
    zero_shot: float
    new_concepts: float
    retrieval: float
    auroc: float | None
    average_precision: float | None
    estimated_rate: float | None
    true_rate: float
    judged_by: str
    seconds: float | None
    steps: int

    def write(self, path: Path) -> None:
        """Write as JSON, atomically."""
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Score:
        """Read what :meth:`write` wrote. Raises UserError for a file that is not that."""
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise UserError(f"not a score: {error}", where=str(path), remedy="remove it") from None


def score_run(
    regime: str, method: str, place: Place, folder: Path, seconds: float | None, *, of_right_pairs: bool = False
) -> Score:
    """Score the last weights of a run on the default tasks, and its scores of the given pairs against the answers.

    The pairs are those given, all of them, whatever pairs the run was trained on. A run on the right pairs alone has
    judged these only, so that its model has to say what it thinks of the others.
    """
    run = open_run(folder, "last")
    frozen = FrozenEncoders(run.recipe.model) if isinstance(run.recipe.model, Heads) else None
    metrics = flatten(_tests(run, frozen))
    source = pairs_source(place.pairs).open()
    mismatched = CaptionAssignment.load(place.answers).mismatched
    own = None if of_right_pairs else estimates_of_run(folder, len(source))
    judged = _similarities(run, source, frozen) if own is None else own
    truth = against_truth(judged.score, mismatched[judged.id], estimated_rate=judged.noise_rate)
    return Score(
        regime=regime,
        method=method,
        noise=place.setting.name,
        rate=place.setting.rate,
        seed=place.seed,
        **{name: 100 * metrics[metric] for name, metric in TESTS.items()},
        auroc=truth.auroc,
        average_precision=truth.average_precision,
        estimated_rate=truth.estimated_rate,
        true_rate=float(mismatched.mean()),
        judged_by="model" if own is None else "judgement",
        seconds=seconds,
        steps=run.step,
    )


def _similarities(run: OpenedRun, source: Source, frozen: FrozenEncoders | None) -> MismatchEstimates:
    """Judge the given pairs by the model's similarities."""
    embedder = Embedder(run.model, frozen=frozen, num_workers=0)
    index, image = embedder.images(source)
    text = caption_points(embedder, [source.captions(i) for i in index.tolist()])
    return estimates_by_similarity(index.numpy(), pair_scores(image, text, embedder.geometry))


def _tests(run: OpenedRun, frozen: FrozenEncoders | None) -> list[TaskResult]:
    return run_tasks(replace(run.recipe, evaluation=EvaluationConfig()), run.model, frozen=frozen)
