"""What the choice of geometry and of the first temperature is worth: the layout of the topology paper's tables 3, 4, 6.

    python -m benchmarks.topology [--quick] [--save] [--regime heads|small] [--only NAME ...] [--runs FOLDER] [--jobs N]

"Design of the topology for contrastive visual-textual alignment" (submission to TMLR) compares the sphere, the
Euclidean space and oblique manifolds from three first multipliers, e^0, e^2.64 and e^5.31, learnable and (table 3: e^0
only) fixed, and oblique manifolds of one dimension in all but different numbers of spheres, of one token and of several
(table 4). Here every geometry meets every start, learnable and fixed. The recipes are ``heads-infonce`` as it is and
``small-infonce`` cut further than any other benchmark cuts it (``SMALLEST``: towers of one layer and 128 dimensions,
captions of 12 tokens, two epochs of batches of 64), because there are ninety runs of it: one takes 30 to 40 seconds of
a core on a busy machine, and its figures are low. There are 256 dimensions in all where the paper has 512, and no cap
on the multiplier, which could not have been active in the paper's ablations; nothing else differs between rows, and
nothing was tuned. Three seeds; ``--quick`` takes one and two epochs.

Printed and saved are, of the last step, with standard errors over seeds: recall at 1 of retrieval in both directions,
zero-shot top-1 on the unseen style, top-1 among held-out concepts, the linear probe of the embeddings on the emoji's
categories, the logarithm of the last multiplier, and the epoch from which it changes by less than 2% an epoch (left out
where it never does in one of the runs).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from benchmarks.seeds import REGIMES, SMALL, Job, add_arguments, cut_recipe, table, with_tasks
from benchmarks.table import arguments
from troth.evaluate import converge_step
from troth.recipe import Recipe, from_dict
from troth.run.opened import OpenedRun
from troth.run.scoring import flatten, run_tasks
from troth.train import read_log

METRICS = {
    "retrieval/image_to_text/recall@1": "image to text",
    "retrieval/text_to_image/recall@1": "text to image",
    "style-shift/top1": "zero-shot",
    "concept/held_out/top1": "concept",
    "linear-probe/accuracy": "linear probe",
}

#: What the small towers are cut to: there are ninety runs.
SMALLEST = (
    *SMALL,
    "model.vision_width=128",
    "model.vision_layers=1",
    "model.text_width=128",
    "model.text_layers=1",
    "model.context_length=12",
    "train.batch_size=64",
    "train.epochs=2",
    "train.evaluate_every_epochs=2",
)

#: Dimensions of all embeddings.
DIMENSIONS = 256


def _oblique(sub_dim: int, distance: str = "inner_product") -> tuple[str, ...]:
    spheres = DIMENSIONS // sub_dim
    fields = {"kind": "oblique", "sub_dim": sub_dim, "num_spheres": spheres, "distance": distance}
    return tuple(f"geometry.{name}={value}" for name, value in fields.items())


def _multi(sub_dim: int) -> tuple[str, ...]:
    tokens = DIMENSIONS // sub_dim
    return (*_oblique(sub_dim), f"model.multi.num_tokens={tokens}", f"model.multi.sub_dim={sub_dim}")


GEOMETRIES: dict[str, tuple[str, ...]] = {
    "sphere": (),
    "Euclidean": ("geometry.kind=euclidean",),
    "Ob(32, 8), geodesic": _oblique(32, "geodesic"),
    "Ob(32, 8)": _oblique(32),
    "Multi(32, 8)": _multi(32),
}
STARTS = ("e^2.64", "e^5.31", "e^0")

#: Table 4's: other structures, from e^2.64.
STRUCTURES: dict[str, tuple[str, ...]] = {
    "Ob(128, 2)": _oblique(128),
    "Ob(8, 32)": _oblique(8),
    "Ob(2, 128)": _oblique(2),
    "Multi(128, 2)": _multi(128),
    "Multi(8, 32)": _multi(8),
}


@dataclass(frozen=True)
class Row:
    """A row of the table: what it changes in the recipe, and the scale it starts from."""

    settings: tuple[str, ...]
    init: str
    learnable: bool

    def all_settings(self) -> tuple[str, ...]:
        """Return the settings, the scale's among them."""
        scale = (f"scale.init={self.init}", "scale.cap=none", f"scale.learnable={str(self.learnable).lower()}")
        return (*self.settings, *scale)


ROWS: dict[str, Row] = {
    **{
        f"{name}, {init} {'learnable' if learnable else 'fixed'}": Row(settings, init, learnable)
        for learnable, init, (name, settings) in product((True, False), STARTS, GEOMETRIES.items())
    },
    **{f"{name}, e^2.64 learnable": Row(settings, "e^2.64", True) for name, settings in STRUCTURES.items()},
}


def recipe_of(job: Job) -> Recipe:
    """Return the recipe of one run."""
    return from_dict(cut_recipe(job, "infonce", ROWS[job.name].all_settings(), SMALLEST))


def score(job: Job, opened: OpenedRun) -> dict[str, float]:
    """Return what is reported of a run's last step."""
    metrics = flatten(run_tasks(with_tasks(opened.recipe, [{"kind": "linear-probe"}]), opened.model))
    values = {label: 100 * metrics[metric] for metric, label in METRICS.items()}
    values["log scale"] = float(opened.model.log_scale.detach())
    if ROWS[job.name].learnable:
        log = read_log(job.folder, "train")
        per_epoch = opened.step / opened.recipe.train.epochs
        found = converge_step([line["step"] for line in log], [line["scale"] for line in log], per_epoch)
        if found is not None:
            values["converged at epoch"] = found / per_epoch
    return values


def main() -> None:
    parser = arguments(__doc__ or "")
    add_arguments(parser, "topology", tuple(ROWS))
    cases = [(regime, name) for regime in REGIMES for name in ROWS]
    table("topology", "Topologies", cases, recipe_of, score, parser.parse_args())


if __name__ == "__main__":
    main()
