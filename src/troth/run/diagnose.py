"""How a run's points lie and how its scale got where it is: measured and saved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from troth.data import IndexedSource, SourceConfig, VectorSource
from troth.data.part import rows_of, sample_rows
from troth.embed import Embedder, FeatureCache
from troth.encoders import OpenClipEncoder
from troth.errors import UserError
from troth.evaluate import (
    Diagnostics,
    SubsetAccuracy,
    alignment,
    converge_step,
    distance_limits,
    modality_gap,
    pair_distances,
    token_subset_accuracy,
    uniformity,
)
from troth.evaluate.diagnostics import DataDiagnostics, ScaleCourse
from troth.evaluate.tasks import MatchingTask, RetrievalTask, ZeroShotTask
from troth.evaluate.token_subsets import has_subsets
from troth.geometry import FILIP, Euclidean, Geometry, Oblique
from troth.recipe import Recipe
from troth.run.checks import at
from troth.run.opened import OpenedRun, open_run, read_recipe
from troth.train import read_log, read_position

#: How many pairs of a data set are measured, if it has more: four million negatives.
PAIRS = 2000
#: How many subsets of spheres of each size.
DRAWS = 20
#: Of the samples and subsets, one for all runs: models are compared on the same pairs.
_SEED = 0

_TRAINING = "training data"

#: What an oblique point's distance is, by its name.
_OBLIQUE = {
    "inner_product": "−Σₖ ⟨uₖ, vₖ⟩, from −{m} to {m}",
    "geodesic": "√(Σₖ angle(uₖ, vₖ)²), radians, from 0 to √{m} π",
    "geodesic_sum": "Σₖ angle(uₖ, vₖ), radians, from 0 to {m} π",
}


@dataclass(frozen=True)
class _Points:
    """The pairs of a data set under the model: points, and which pairs have the same caption."""

    name: str
    in_domain: bool
    image: Float[Tensor, "N D"]
    text: Float[Tensor, "N E"]
    group: Int64[Tensor, " N"]
    where: str


def diagnose(
    folder: Path,
    which: str = "best",
    settings: Sequence[str] = (),
    weights: str | None = None,
    out: Path | None = None,
    *,
    pairs: int = PAIRS,
    draws: int = DRAWS,
) -> Path:
    """Measure a run's scale and points, and save :class:`~troth.evaluate.Diagnostics`.

    In the domain are the run's training pictures with the captions their source gives them, not those that injected
    noise gave them: a known wrong pair is not a positive one. Out of it are the data of the recipe's zero-shot,
    retrieval and matching tasks. Of each, ``pairs`` samples are measured, chosen by their keys, with their first
    caption; samples with one caption are no negatives of each other.

    Args:
        folder: the run.
        which: ``best``, ``last``, or a step.
        settings: ``field=value`` overrides of the recipe, such as other tasks.
        weights: ``trained`` or ``average``; None: the average if the run keeps one.
        out: where to; ``diagnostics`` in the run's folder if None.
        pairs: of each data set, at most.
        draws: subsets of spheres of each size.

    Returns:
        the folder written.

    Raises:
        UserError: if there is no such run, or a data set has fewer than two captions.
    """
    if pairs < 2:
        raise UserError(f"{pairs} pairs have no negatives", where="--pairs", remedy="at least 2")
    run = open_run(folder, which, settings, weights)
    embedder = Embedder(run.model, FeatureCache(), num_workers=run.recipe.train.num_workers or None)
    notes: list[str] = []
    with torch.no_grad():
        data = _measured(_data_sets(run.recipe, embedder, pairs, notes), embedder.geometry, notes)
        subsets = _subsets(run.recipe, embedder, draws)
    if len(embedder.ledger):
        notes.append(f"{len(embedder.ledger)} pictures could not be read and were left out.")
    diagnostics = Diagnostics(
        run=str(folder),
        step=run.step,
        weights=run.weights,
        geometry=geometry_in_words(embedder.geometry),
        distance=distance_in_words(embedder.geometry),
        scale=_scale(folder, run, notes),
        data=data,
        subsets=subsets,
        seed=_SEED,
        notes=tuple(notes),
    )
    out = out or folder / "diagnostics"
    diagnostics.save(out)
    return out


def _data_sets(recipe: Recipe, embedder: Embedder, pairs: int, notes: list[str]) -> list[_Points]:
    with at("data.source"):
        training = recipe.data.source.open()
    found = [_points(_TRAINING, True, training, embedder, pairs, "data.source")]
    noise = recipe.data.noise.fraction
    notes.append(
        f"The run was trained with {noise:.0%} wrong captions; its training pictures are measured with their own."
        if noise
        else "Training pairs are measured as they are: wrong ones among them, if there are any, count as positives."
    )
    seen = {training.fingerprint}
    for number, task in enumerate(recipe.evaluation.tasks):
        if not isinstance(task, ZeroShotTask | RetrievalTask | MatchingTask):
            continue
        where = f"evaluation.tasks.{number}.source"
        source = _opened(task.source, where)
        if source.fingerprint == training.fingerprint:
            notes.append(f"The data of {task.name} are the training data: they say nothing of other data.")
        if source.fingerprint not in seen:
            seen.add(source.fingerprint)
            found.append(_points(task.name, False, source, embedder, pairs, where))
    if len(found) == 1:
        notes.append("The recipe's tasks name no other data to compare with; --set evaluation.tasks=... does.")
    return found


def _opened(config: SourceConfig, where: str) -> IndexedSource | VectorSource:
    with at(where):
        return config.open()


def _points(
    name: str, in_domain: bool, source: IndexedSource | VectorSource, embedder: Embedder, pairs: int, where: str
) -> _Points:
    """Embed a sample of a source.

    What frozen encoders make of a whole source is in the cache, or soon will be; towers encode the sample alone.
    """
    chosen = sample_rows(source, pairs, _SEED)
    if isinstance(embedder.model.encoder, OpenClipEncoder) and len(chosen) < len(source):
        source = rows_of(source, chosen, f"{source.name}, {len(chosen)} samples")
        chosen = np.arange(len(chosen))
    index, image = embedder.images(source)
    kept = torch.isin(index, torch.from_numpy(chosen))
    captions = [source.captions(sample)[0] for sample in index[kept].tolist()]
    numbers = {caption: number for number, caption in enumerate(dict.fromkeys(captions))}
    group = torch.tensor([numbers[caption] for caption in captions], dtype=torch.int64)
    if len(numbers) < 2:
        raise UserError(
            f"{len(captions)} readable pairs of {source.name} with {len(numbers)} captions have no negatives",
            where=where,
            remedy="more samples, of different captions",
        )
    return _Points(name, in_domain, image[kept], embedder.texts(captions), group, where)


def _measured(sets: Sequence[_Points], geometry: Geometry, notes: list[str]) -> tuple[DataDiagnostics, ...]:
    """Measure all data sets, with histograms over one range."""
    ranges = []
    for points in sets:
        with at(points.where):
            ranges.append(distance_limits(points.image, points.text, geometry, points.group))
    limits = min(low for low, _ in ranges), max(high for _, high in ranges)
    if isinstance(geometry, FILIP):
        notes.append("Sets of tokens have no direction: modality gap, alignment and uniformity are not defined.")
    elif isinstance(geometry, Euclidean):
        notes.append(
            "Modality gap, alignment and uniformity are those of the points' directions, not of their lengths."
        )
    return tuple(
        DataDiagnostics(
            points.name,
            points.in_domain,
            pair_distances(points.image, points.text, geometry, points.group, limits=limits),
            _measures(points, geometry),
        )
        for points in sets
    )


def _measures(points: _Points, geometry: Geometry) -> dict[str, float]:
    if isinstance(geometry, FILIP):
        return {}
    return {
        "modality_gap": modality_gap(points.image, points.text, geometry),
        "alignment": alignment(points.image, points.text, geometry),
        "image_uniformity": uniformity(points.image, geometry, points.group),
        "text_uniformity": uniformity(points.text, geometry, points.group),
    }


def _subsets(recipe: Recipe, embedder: Embedder, draws: int) -> tuple[SubsetAccuracy, ...]:
    geometry, found = embedder.geometry, []
    if not has_subsets(geometry):
        return ()
    assert isinstance(geometry, Oblique)
    for number, task in enumerate(recipe.evaluation.tasks):
        if isinstance(task, ZeroShotTask):
            with at(f"evaluation.tasks.{number}"):
                points = task.points(embedder)
                found.append(token_subset_accuracy(*points, geometry, draws=draws, seed=_SEED, task=task.name))
    return tuple(found)


def _scale(folder: Path, run: OpenedRun, notes: list[str]) -> ScaleCourse:
    """Read the scale's course from the log of the run as it was trained, whatever was overridden to look at it."""
    recipe = read_recipe(folder)
    records = [record for record in read_log(folder, "train") if record.get("scale")]
    step = tuple(int(record["step"]) for record in records)
    scale = tuple(float(record["scale"]) for record in records)
    if not recipe.scale.learnable:
        notes.append("The scale was not trained.")
        return ScaleCourse(step, scale, learnable=False)
    if not records:
        notes.append("The run's log says nothing of the scale.")
        return ScaleCourse()
    for bound in (recipe.scale.largest(recipe.geometry.num_spheres), 1.0):
        held = 0 if bound is None else sum(abs(value / bound - 1) < 1e-6 for value in scale)
        if held:
            notes.append(
                f"The scale was at its bound of {bound:g} in {held:,} of {len(scale):,} logged steps: that it keeps "
                "still there says little."
            )
    epoch = _steps_per_epoch(recipe, read_position(run.checkpoint).total_steps, records)
    if epoch is None:
        return ScaleCourse(step, scale)
    return ScaleCourse(
        step, scale, epoch, converge_step(step, scale, epoch), converge_step(step, scale, epoch, lasting=True)
    )


def _steps_per_epoch(recipe: Recipe, total_steps: int, records: Sequence[dict[str, int]]) -> float | None:
    """Return how many steps a pass over the pairs had.

    A second stage's epochs are of another length, and a run with a limit of steps may end within one. There the log
    tells, to the steps between its lines: the epoch ``e`` of a step ``s`` is ``ceil(s / steps)``, so that there are at
    least ``s / e`` steps.
    """
    if recipe.unpaired is None and recipe.train.max_steps is None:
        return total_steps / recipe.train.epochs if recipe.train.epochs else None
    known = [record["step"] / record["epoch"] for record in records if 1 <= record["epoch"] <= recipe.train.epochs]
    return float(np.ceil(max(known))) if known else None


def geometry_in_words(geometry: Geometry) -> str:
    """Return what a reader calls the geometry."""
    if isinstance(geometry, Oblique):
        distance = geometry.distance.replace("_", " ")
        return f"oblique, {geometry.num_spheres} spheres of {geometry.sub_dim} dimensions, {distance}"
    return {"filip": "FILIP", "euclidean": "Euclidean"}.get(geometry.kind, geometry.kind)


def distance_in_words(geometry: Geometry) -> str:
    """Return what the negative similarity of two points is, with its range or unit."""
    if isinstance(geometry, Oblique):
        return _OBLIQUE[geometry.distance].format(m=geometry.num_spheres)
    if isinstance(geometry, Euclidean):
        return "‖u − v‖, in the features' own unit"
    if isinstance(geometry, FILIP):
        return "−mean of each token's best cosine, from −1 to 1"
    return "−⟨u, v⟩, from −1 to 1"
