"""Diagnostics with everything in them."""

from __future__ import annotations

import dataclasses

import torch

from troth.evaluate import Diagnostics, pair_distances, token_subset_accuracy
from troth.evaluate.diagnostics import DataDiagnostics, ScaleCourse
from troth.geometry import Oblique

GEOMETRY = Oblique(sub_dim=4, num_spheres=4)
MEASURES = {"modality_gap": 0.5, "alignment": 1.25, "image_uniformity": -2.5, "text_uniformity": -2.25}


def points(seed: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return GEOMETRY.project(torch.randn(30, 16, generator=draw))


def diagnosed(run: str = "runs/one", note: str = "A note.") -> Diagnostics:
    images, texts = points(0), GEOMETRY.project(points(0) + 0.5 * points(1))
    steps = tuple(range(0, 200, 5))
    return Diagnostics(
        run=run,
        step=200,
        weights="average",
        geometry="oblique, 4 spheres of 4 dimensions, inner product",
        distance="−Σₖ ⟨uₖ, vₖ⟩, from −4 to 4",
        scale=ScaleCourse(steps, tuple(10 + min(step, 100) / 10 for step in steps), 20.0, 95, 100),
        data=(
            DataDiagnostics("training data", True, pair_distances(images, texts, GEOMETRY, limits=(-4, 4)), MEASURES),
            DataDiagnostics("other", False, pair_distances(images, points(2), GEOMETRY, limits=(-4, 4)), MEASURES),
        ),
        subsets=(token_subset_accuracy(images, torch.arange(30), texts, GEOMETRY, draws=3, task="names"),),
        notes=(note,),
    )


def plain() -> Diagnostics:
    """The same of one sphere: no subsets, and of a scale that nobody knows."""
    return dataclasses.replace(diagnosed(), scale=ScaleCourse(), subsets=(), weights="trained")
