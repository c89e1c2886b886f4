"""Run under torchrun by tests/objectives/test_detection.py: every rank writes its losses and gradients."""

import sys
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from tests.objectives.instances import GEOMETRIES, features
from troth import distributed
from troth.geometry import Geometry, Sphere
from troth.objectives.detection import detection_losses
from troth.similarity import Matching, Pairs, detect

SIZE = 8


def losses_of(matching: Matching, image: Tensor, text: Tensor, geometry: Geometry) -> tuple[Tensor, list[Tensor]]:
    leaves = [distributed.own_rows(points).clone().requires_grad_() for points in (image, text)]
    scale, bias = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (5.0, -1.5))
    edges = detect(leaves[0], leaves[1], geometry, matching, tile=(3, 2))
    pairs = Pairs(leaves[0], leaves[1], scale, bias, geometry=geometry, tile=(3, 2))
    losses = detection_losses(pairs, edges, matching)
    return losses.detach(), list(torch.autograd.grad(losses.mean(), [*leaves, scale, bias]))


def compute(folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.initialise()
    results = {}
    for matching in get_args(Matching):
        image, text = features(SIZE, seed=4)
        # The captions' order must not be the images', nor the ranks share what belongs together.
        results[matching] = losses_of(matching, image, text[torch.randperm(SIZE, generator=_generator())], Sphere())
        if matching != "hungarian":  # for which any assignment is then as good
            # Of equals the first counts, whatever the rank; the other rank then has no edge of "mutual".
            results[f"{matching}, collapsed"] = losses_of(matching, *_collapsed(), Sphere())
        geometry, image_width, text_width = GEOMETRIES["filip, unequal"]
        raw = [
            torch.randn(SIZE, width, generator=_generator(), dtype=torch.float64) for width in (image_width, text_width)
        ]
        results[f"{matching}, filip"] = losses_of(matching, *map(geometry.project, raw), geometry)
    torch.save({"results": results}, folder / f"{distributed.rank()}.pt")
    distributed.barrier()
    distributed.shutdown()


def _collapsed() -> tuple[Tensor, Tensor]:
    """One image and two captions over and over, whose similarities are exact."""
    image, text = torch.zeros(2, SIZE, 6, dtype=torch.float64)
    image[:, 0] = 1
    text[:, :2] = torch.tensor([0.6, 0.8])
    text[::3, :2] = torch.tensor([0.8, 0.6])
    return image, text


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(6)


if __name__ == "__main__":
    compute(Path(sys.argv[1]))
