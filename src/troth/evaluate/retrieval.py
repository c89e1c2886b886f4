"""Retrieval: find a picture's captions among all captions, and a caption's pictures among all pictures."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from troth.errors import UserError
from troth.evaluate.checks import check_ids, check_points, usable_cutoffs
from troth.evaluate.result import Array, TaskResult
from troth.evaluate.uncertainty import Float64, mean_influence, median_standard_error
from troth.evaluate.zero_shot import errors_of
from troth.geometry import Geometry
from troth.similarity import best_rank


@torch.no_grad()
def retrieval(
    image_embeddings: Float[Tensor, "I D"],
    text_embeddings: Float[Tensor, "T D"],
    image_group: Int64[Tensor, " I"],
    text_group: Int64[Tensor, " T"],
    geometry: Geometry,
    k: tuple[int, ...] = (1, 5, 10),
    *,
    task: str = "retrieval",
) -> TaskResult:
    """Score retrieval both ways. A picture and a caption fit iff their groups are equal.

    Groups let a picture have several captions and a caption several pictures; a query is right at ``k`` if the best
    of its fitting candidates is among the ``k`` closest. Equally close candidates that do not fit count half. Memory
    is that of :func:`troth.similarity.best_rank`: a tile, never I x T.

    Args:
        image_embeddings: one point a picture.
        text_embeddings: one point a caption.
        image_group: each picture's group.
        text_group: each caption's group.
        geometry: of the points.
        k: cut-offs; those not below the number of candidates of a direction are left out of it, with a note.
        task: name of the result.

    Returns:
        for both directions ``image_to_text`` and ``text_to_image``: ``{direction}/recall@{k}``, ``.../median_rank``
        (from 1) and ``.../mrr`` (mean of 1 / rank); and ``mean_recall``, the mean of all recalls. Standard errors take
        groups as the independent units; the median rank's takes queries. Details: ``{direction}/rank`` (from 0),
        ``query/image_group``, ``query/text_group``.

    Raises:
        UserError: for empty, non-finite or mismatched tensors, and groups with a picture but no caption or the
            reverse.
    """
    check_points(geometry, image_embeddings=image_embeddings, text_embeddings=text_embeddings)
    images = check_ids("image_group", image_group, int(image_embeddings.shape[0]))
    texts = check_ids("text_group", text_group, int(text_embeddings.shape[0]))
    _check_answerable(images, texts)
    device = image_embeddings.device
    directions = {
        "image_to_text": (image_embeddings, text_embeddings, images, texts, "captions"),
        "text_to_image": (text_embeddings, image_embeddings, texts, images, "pictures"),
    }
    metrics: dict[str, float] = {}
    errors: dict[str, float] = {}
    influences: dict[str, Float64] = {}
    details: dict[str, Array] = {"query/image_group": images.numpy(), "query/text_group": texts.numpy()}
    notes: list[str] = []
    for name, (queries, candidates, query_group, candidate_group, what) in directions.items():
        ranks = best_rank(queries, candidates, query_group.to(device), candidate_group.to(device), geometry=geometry)
        rank = ranks.cpu().numpy()
        cutoffs, dropped = usable_cutoffs(k, int(candidates.shape[0]), what)
        notes += [f"{name}: {note}" for note in dropped]
        values = {f"recall@{cutoff}": (rank < cutoff).astype(np.float64) for cutoff in cutoffs}
        values["mrr"] = 1.0 / (1.0 + rank)
        for metric, value in values.items():
            metrics[f"{name}/{metric}"] = float(value.mean())
            influences[f"{name}/{metric}"] = mean_influence(value, query_group.numpy())
        metrics[f"{name}/median_rank"] = float(np.median(rank)) + 1.0
        median_error = median_standard_error(rank)
        if median_error is not None:
            errors[f"{name}/median_rank"] = median_error
        details[f"{name}/rank"] = rank
    recalls = [metric for metric in metrics if "/recall@" in metric]
    metrics["mean_recall"] = float(np.mean([metrics[recall] for recall in recalls]))
    influences["mean_recall"] = np.mean([influences[recall] for recall in recalls], axis=0)
    return TaskResult(
        task=task,
        metrics=metrics,
        standard_errors=errors | errors_of(influences),
        num_queries=len(images) + len(texts),
        influences=influences,
        details=details,
        notes=tuple(notes),
    )


def _check_answerable(images: Tensor, texts: Tensor) -> None:
    for one, other, have, lack, name in (
        (images, texts, "pictures", "caption", "image_group"),
        (texts, images, "captions", "picture", "text_group"),
    ):
        lonely = ~torch.isin(one, other)
        if bool(lonely.any()):
            first = int(one[lonely][0])
            raise UserError(
                f"{int(lonely.sum())} {have} have no {lack} of their group, first: group {first}",
                where=name,
                remedy="leave out queries that have no answer",
            )
