"""The concept test: names never trained on, told from each other and from all the names the model did see."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from troth.errors import UserError
from troth.evaluate.averages import class_embedding
from troth.evaluate.checks import check_labels
from troth.evaluate.result import TaskResult
from troth.evaluate.zero_shot import zero_shot
from troth.geometry import Geometry


def concept_test(
    image_embeddings: Float[Tensor, "Q D"],
    labels: Int64[Tensor, " Q"],
    class_embeddings: Float[Tensor, "C *T D"],
    held_out: Bool[Tensor, " C"],
    geometry: Geometry,
    topk: tuple[int, ...] = (1, 5),
    *,
    task: str = "concept",
) -> TaskResult:
    """Score pictures of held-out concepts twice: among the held-out names only, and among all names.

    The second is harder and closer to use: a model that has learnt the training names by heart prefers them.

    Args:
        image_embeddings: pictures of held-out concepts.
        labels: the row of ``class_embeddings`` each belongs to.
        class_embeddings: one point for every name, seen or not, or the points of its prompts, as in
            :func:`~troth.evaluate.zero_shot.zero_shot`.
        held_out: which of the C names were never trained on.
        geometry: of the points.
        topk: cut-offs, as in :func:`~troth.evaluate.zero_shot.zero_shot`.
        task: name of the result.

    Returns:
        the metrics of :func:`~troth.evaluate.zero_shot.zero_shot` under ``held_out/`` and ``all/``; the same prefixes
        in the details, where ``held_out/prediction`` is numbered among all C names too.

    Raises:
        UserError: as :func:`~troth.evaluate.zero_shot.zero_shot`, and for a picture of a name that is not held out.
    """
    num_classes = int(class_embeddings.shape[0])
    if held_out.dtype != torch.bool or tuple(held_out.shape) != (num_classes,):
        raise UserError(
            f"expected ({num_classes},) of bool, got {tuple(held_out.shape)} of {held_out.dtype}",
            where="held_out",
        )
    label = check_labels("labels", labels, int(image_embeddings.shape[0]), num_classes)
    mask = held_out.cpu()
    seen = ~mask[label]
    if bool(seen.any()):
        raise UserError(
            f"{int(seen.sum())} pictures are of names that are not held out, first: row {int(seen.nonzero()[0])}",
            where="labels",
            remedy="keep only pictures of held-out concepts",
        )
    rows = mask.nonzero().flatten()
    classes = class_embedding(class_embeddings, geometry) if class_embeddings.ndim == 3 else class_embeddings
    renumbered = torch.cumsum(mask, dim=0) - 1
    narrow = zero_shot(
        image_embeddings,
        renumbered[label],
        classes[rows.to(classes.device)],
        geometry,
        topk,
    )
    wide = zero_shot(image_embeddings, label, classes, geometry, topk)
    details = {
        "held_out/rank": narrow.details["rank"],
        "held_out/prediction": rows.numpy()[narrow.details["prediction"]],
        "all/rank": wide.details["rank"],
        "all/prediction": wide.details["prediction"],
        "query/label": label.numpy(),
    }
    parts = {"held_out": narrow, "all": wide}
    return TaskResult(
        task=task,
        metrics={f"{p}/{name}": value for p, part in parts.items() for name, value in part.metrics.items()},
        standard_errors={
            f"{p}/{name}": error for p, part in parts.items() for name, error in part.standard_errors.items()
        },
        num_queries=wide.num_queries,
        influences={f"{p}/{name}": part for p, r in parts.items() for name, part in r.influences.items()},
        details=details,
        notes=tuple(f"{p}: {note}" for p, part in parts.items() for note in part.notes),
    )
