"""Run under torchrun by test_distributed_gram.py: every rank writes the gram objectives' losses and gradients."""

import sys
from pathlib import Path

import torch
from torch import Tensor

from tests.objectives.test_gram import CLOCK, EVERY, features, name
from troth import distributed
from troth.evaluate.affinity import affinity_consistency
from troth.objectives.affinity import Affinity
from troth.objectives.base import Objective
from troth.similarity import Pairs
from troth.state import State

#: Cosines of the pairs of ``batch()``: all of the first half are below it, so that one of two ranks keeps none.
APART = 0.2

LOPSIDED: dict[str, Objective] = {
    f"lopsided-{distance}": Affinity(distance=distance, strategy="mask", threshold=APART)
    for distance in ("l1", "l2", "pearson")
}


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Return 12 images, captions and teacher's features; the first 6 images point away from their captions."""
    image, text, teacher = features(12)
    image = torch.where(torch.arange(12)[:, None] < 6, -image, image)
    return image, text, teacher


def compute(folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.initialise()
    whole, weights = batch(), torch.linspace(0.2, 2.0, 12, dtype=torch.float64)
    results = {}
    for key, objective in {**{name(each): each for each in EVERY}, **LOPSIDED}.items():
        data = batch() if key in LOPSIDED else features(12)
        image, text, teacher = (distributed.own_rows(x).clone() for x in data)
        inputs = [image.requires_grad_(), text.requires_grad_()]
        state = State(12, "test")
        state.clock = CLOCK
        pairs = Pairs(*inputs, torch.tensor(5.0), teacher_image=teacher, tile=(4, 3))
        losses = objective(pairs, state)
        total = (distributed.own_rows(weights) * losses).mean()
        results[key] = (
            losses.detach(),
            torch.autograd.grad(total, inputs, allow_unused=True, materialize_grads=True),
        )
    consistency = affinity_consistency(*whole[:2]).metrics if distributed.is_main() else {}  # the others do not wait
    torch.save({"results": results, "consistency": consistency}, folder / f"{distributed.rank()}.pt")
    distributed.barrier()
    distributed.shutdown()


if __name__ == "__main__":
    compute(Path(sys.argv[1]))
