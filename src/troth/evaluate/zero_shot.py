"""Zero-shot classification: the class whose name's embedding is closest to the picture's."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from troth.evaluate.averages import class_embedding, class_similarity
from troth.evaluate.checks import check_labels, check_points, usable_cutoffs
from troth.evaluate.result import TaskResult
from troth.evaluate.uncertainty import Float64, mean_influence, standard_error
from troth.geometry import Geometry
from troth.similarity import TILE


@torch.no_grad()
def zero_shot(
    image_embeddings: Float[Tensor, "Q D"],
    labels: Int64[Tensor, " Q"],
    class_embeddings: Float[Tensor, "C *T D"],
    geometry: Geometry,
    topk: tuple[int, ...] = (1, 5),
    *,
    task: str = "zero-shot",
) -> TaskResult:
    """Score zero-shot classification.

    A picture is right at ``k`` if fewer than ``k`` classes are closer than its own. Equally close classes count half,
    so that a model which puts everything in one place scores chance, not luck.

    Args:
        image_embeddings: one point a picture.
        labels: the row of ``class_embeddings`` each picture belongs to.
        class_embeddings: ``(C, D)`` one point a class, or ``(C, T, D)`` the points of its T prompts, which
            :func:`~troth.evaluate.class_embedding` makes one point of where the geometry has one; elsewhere a class's
            similarity is the mean of its prompts'.
        geometry: of the points.
        topk: cut-offs; those >= C are left out with a note, as every picture would be right.
        task: name of the result.

    Returns:
        metrics ``top{k}`` and ``mean_class_accuracy`` (the mean over the classes present of top-1; its standard error
        takes classes as the independent units, so it includes the luck of which classes were asked). Details:
        ``rank`` (Q,) classes closer than the right one, ``prediction`` (Q,), ``query/label`` (Q,).

    Raises:
        UserError: for empty, non-finite or mismatched tensors, and labels out of range.
    """
    classes = class_embedding(class_embeddings, geometry) if class_embeddings.ndim == 3 else class_embeddings
    prompts = classes.flatten(0, -2) if classes.ndim == 3 else classes
    check_points(geometry, image_embeddings=image_embeddings, class_embeddings=prompts)
    num_classes = int(class_embeddings.shape[0])
    label = check_labels("labels", labels, int(image_embeddings.shape[0]), num_classes)
    cutoffs, notes = usable_cutoffs(topk, num_classes, "classes")
    ranks, predictions = [], []
    own = label.to(image_embeddings.device)
    for images, truth in zip(torch.split(image_embeddings, TILE[0]), torch.split(own, TILE[0]), strict=True):
        similarity = class_similarity(images, classes, geometry)
        right = similarity.gather(1, truth.unsqueeze(1))
        # As in troth.similarity.best_rank: half of the others that are exactly as close, rounded up.
        tied = (similarity == right).sum(dim=1) - 1
        ranks.append((similarity > right).sum(dim=1) + (tied + 1) // 2)
        predictions.append(torch.topk(similarity, 1, dim=1).indices[:, 0])
    return classification_result(
        task,
        rank=torch.cat(ranks).cpu(),
        prediction=torch.cat(predictions).cpu(),
        label=label,
        cutoffs=cutoffs,
        notes=notes,
    )


def classification_result(
    task: str,
    *,
    rank: Int64[Tensor, " Q"],
    prediction: Int64[Tensor, " Q"],
    label: Int64[Tensor, " Q"],
    cutoffs: tuple[int, ...],
    notes: tuple[str, ...] = (),
) -> TaskResult:
    """Turn each picture's rank of the right class into the metrics of :func:`zero_shot`."""
    ranks, labels = rank.numpy(), label.numpy()
    metrics: dict[str, float] = {}
    influences: dict[str, Float64] = {}
    for k in cutoffs:
        right = (ranks < k).astype(np.float64)
        metrics[f"top{k}"] = float(right.mean())
        influences[f"top{k}"] = mean_influence(right)
    accuracy = per_class_mean((ranks < 1).astype(np.float64), labels)
    metrics["mean_class_accuracy"] = float(accuracy.mean())
    influences["mean_class_accuracy"] = mean_influence(accuracy)
    return TaskResult(
        task=task,
        metrics=metrics,
        standard_errors=errors_of(influences),
        num_queries=len(ranks),
        influences=influences,
        details={"rank": ranks, "prediction": prediction.numpy(), "query/label": labels},
        notes=notes,
    )


def per_class_mean(values: Float64, labels: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> Float64:
    """Return the mean of ``values`` over each class that is present, in the order of the labels."""
    _, which, count = np.unique(labels, return_inverse=True, return_counts=True)
    means: Float64 = np.bincount(which, weights=values) / count
    return means


def errors_of(influences: dict[str, Float64]) -> dict[str, float]:
    """Return the standard errors of the metrics whose influences are known, leaving out those of a single unit."""
    errors = {name: standard_error(influence) for name, influence in influences.items()}
    return {name: error for name, error in errors.items() if error is not None}
