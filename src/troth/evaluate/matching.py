"""Matching: is the most similar text the right one, or one of the right class?"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from troth.evaluate.checks import check_ids, check_points, usable_cutoffs
from troth.evaluate.result import Array, TaskResult
from troth.evaluate.uncertainty import Float64, mean_influence
from troth.evaluate.zero_shot import errors_of
from troth.geometry import Geometry
from troth.similarity import best_rank


@torch.no_grad()
def class_matching(
    image_embeddings: Float[Tensor, "I D"],
    text_embeddings: Float[Tensor, "T D"],
    image_class: Int64[Tensor, " I"],
    text_class: Int64[Tensor, " T"],
    geometry: Geometry,
    k: tuple[int, ...] = (1,),
    *,
    task: str = "class-matching",
) -> TaskResult:
    """Score how often one of the ``k`` most similar candidates is of the query's class.

    Equally close candidates of another class count half against the query (:func:`troth.similarity.best_rank`). Unlike
    groups of :func:`~troth.evaluate.retrieval`, classes are many queries' and may lack candidates: such a query is
    wrong.

    Args:
        image_embeddings: one point an image.
        text_embeddings: one point a text.
        image_class: each image's class.
        text_class: each text's class.
        geometry: of the points.
        k: cut-offs; those not below the number of candidates of a direction are left out of it, with a note.
        task: name of the result.

    Returns:
        ``image_to_text/top{k}`` and ``text_to_image/top{k}``. Standard errors take queries as the independent units
        and the candidates as given. Details: ``{direction}/rank`` (from 0), ``query/image_class``,
        ``query/text_class``.

    Raises:
        UserError: for empty, non-finite or mismatched tensors.
    """
    check_points(geometry, image_embeddings=image_embeddings, text_embeddings=text_embeddings)
    images = check_ids("image_class", image_class, int(image_embeddings.shape[0]))
    texts = check_ids("text_class", text_class, int(text_embeddings.shape[0]))
    device = image_embeddings.device
    directions = {
        "image_to_text": (image_embeddings, text_embeddings, images, texts, "texts"),
        "text_to_image": (text_embeddings, image_embeddings, texts, images, "images"),
    }
    metrics: dict[str, float] = {}
    influences: dict[str, Float64] = {}
    details: dict[str, Array] = {"query/image_class": images.numpy(), "query/text_class": texts.numpy()}
    notes: list[str] = []
    for name, (queries, candidates, query_class, candidate_class, what) in directions.items():
        ranks = best_rank(queries, candidates, query_class.to(device), candidate_class.to(device), geometry=geometry)
        rank = ranks.cpu().numpy()
        cutoffs, dropped = usable_cutoffs(k, int(candidates.shape[0]), what)
        notes += [f"{name}: {note}" for note in dropped]
        for cutoff in cutoffs:
            right = (rank < cutoff).astype(np.float64)
            metrics[f"{name}/top{cutoff}"] = float(right.mean())
            influences[f"{name}/top{cutoff}"] = mean_influence(right)
        details[f"{name}/rank"] = rank
    return TaskResult(
        task=task,
        metrics=metrics,
        standard_errors=errors_of(influences),
        num_queries=len(images) + len(texts),
        influences=influences,
        details=details,
        notes=tuple(notes),
    )


def matching(result: TaskResult) -> TaskResult:
    """Return a retrieval result's recalls of both directions under the name that matching has for them, ``top{k}``."""
    names = {name: name.replace("recall@", "top") for name in result.metrics if "/recall@" in name}
    return replace(
        result,
        metrics={new: result.metrics[old] for old, new in names.items()},
        standard_errors={
            new: result.standard_errors[old] for old, new in names.items() if old in result.standard_errors
        },
        influences={new: result.influences[old] for old, new in names.items()},
    )
