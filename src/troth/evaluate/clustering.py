"""Clustering: do groups that k-means finds among pictures agree with their classes?"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score
from sklearn.metrics.cluster import contingency_matrix, expected_mutual_information
from torch import Tensor

from troth.clustering import KMeans
from troth.errors import UserError
from troth.evaluate.checks import check_ids, check_points
from troth.evaluate.result import TaskResult
from troth.evaluate.uncertainty import Float64
from troth.evaluate.zero_shot import errors_of

Counts = npt.NDArray[np.float64]


@torch.no_grad()
def clustering_quality(
    embeddings: Float[Tensor, "Q D"],
    labels: Int64[Tensor, " Q"],
    num_clusters: int | None = None,
    *,
    seed: int = 0,
    iterations: int = 100,
    restarts: int = 5,
    task: str = "clustering",
) -> TaskResult:
    """Divide points by k-means and compare the division with the classes: 0 as good as chance, 1 the same.

    Points of any geometry are flattened and normalised. Which cluster belongs to which class plays no part.

    Standard errors are the jackknife's over pictures, of the clusters as found: another start of k-means may move the
    numbers by more. That of the mutual information holds the value expected by chance, which a single picture hardly
    moves, unless it is the only one of its class.

    Source: Chen et al. 2022, "Prototypical contrastive language image pretraining" (ProtoCLIP), section 4, and its
    released code (k-means of faiss, 100 iterations, best of 5).

    Args:
        embeddings: one point a picture.
        labels: their classes, at least two different ones.
        num_clusters: None for as many as there are classes.
        seed: of k-means.
        iterations: of k-means.
        restarts: times k-means is run; the run of least squared distances counts, which does not look at the classes.
        task: name of the result.

    Returns:
        metrics ``adjusted_rand_index`` and ``adjusted_mutual_information`` (arithmetic mean of the entropies, as
        scikit-learn has both); details ``cluster`` and ``query/label``.

    Raises:
        UserError: for empty, non-finite or mismatched tensors, a single class, and more clusters than pictures.
    """
    check_points(embeddings=embeddings)
    truth = check_ids("labels", labels, int(embeddings.shape[0])).numpy()
    num_classes = len(np.unique(truth))
    if num_classes < 2:
        raise UserError("one class cannot be divided rightly or wrongly", where="labels", remedy="at least two classes")
    kmeans = KMeans(iterations=iterations, restarts=restarts)
    found = kmeans.fit(F.normalize(embeddings.float(), dim=-1), num_clusters or num_classes, seed)
    cluster = found.labels.numpy()
    influences = agreement_influences(truth, cluster)
    return TaskResult(
        task=task,
        metrics={
            "adjusted_rand_index": float(adjusted_rand_score(truth, cluster)),
            "adjusted_mutual_information": float(adjusted_mutual_info_score(truth, cluster)),
        },
        standard_errors=errors_of(influences),
        num_queries=len(truth),
        influences=influences,
        details={"cluster": cluster, "query/label": truth},
    )


def agreement_influences(truth: npt.NDArray[np.int64], cluster: npt.NDArray[np.int64]) -> dict[str, Float64]:
    """Return each sample's influence on both metrics of :func:`clustering_quality`, by leaving it out.

    .. code-block:: text

        influence_i = (n - 1) / n * (mean over j of R_-j - R_-i)        R_-i: the metric without sample i

    so that their standard error (:mod:`troth.evaluate.uncertainty`) is the jackknife's. Only the count of one class in
    one cluster, and that class's and that cluster's size, change with a sample.
    """
    counts = contingency_matrix(truth, cluster).astype(np.float64)
    row = np.unique(truth, return_inverse=True)[1]
    column = np.unique(cluster, return_inverse=True)[1]
    total = len(truth)
    without = {
        "adjusted_rand_index": _rand_without(counts),
        "adjusted_mutual_information": _information_without(counts, expected_mutual_information(counts, total)),
    }
    influences: dict[str, Float64] = {}
    for name, table in without.items():
        left = table[row, column]
        influences[name] = (total - 1) / total * (left.mean() - left)
    return influences


def _rand_without(counts: Counts) -> Counts:
    """Return the adjusted Rand index without one sample of each cell; cells without a sample hold no number."""
    sizes, clusters, total = counts.sum(1, keepdims=True), counts.sum(0, keepdims=True), counts.sum()
    together = _pairs(counts).sum() - (counts - 1)
    same_class, same_cluster = _pairs(sizes).sum() - (sizes - 1), _pairs(clusters).sum() - (clusters - 1)
    by_chance = same_class * same_cluster / max(_pairs(total - 1), 1.0)
    best = (same_class + same_cluster) / 2 - by_chance
    # Two divisions that are both of one part, or both of single samples, agree.
    return np.where(best > 0, (together - by_chance) / np.where(best > 0, best, 1.0), 1.0)


def _information_without(counts: Counts, by_chance: float) -> Counts:
    """Return the adjusted mutual information without one sample of each cell, given what is expected by chance."""
    sizes, clusters, total = counts.sum(1, keepdims=True), counts.sum(0, keepdims=True), counts.sum()
    left = max(total - 1, 1.0)
    joint, of_class, of_cluster = (_without(table) for table in (counts, sizes, clusters))
    information = (joint - of_class - of_cluster) / left + np.log(left)
    entropy = np.log(left) - (of_class + of_cluster) / (2 * left)
    best = np.maximum(entropy - by_chance, np.finfo(np.float64).eps)
    adjusted: Counts = (information - by_chance) / best
    return adjusted


def _without(table: Counts) -> Counts:
    """Return the sum of x log x over a table, with one less in each place in turn."""
    terms = _x_log_x(table)
    changed: Counts = terms.sum() - terms + _x_log_x(table - 1)
    return changed


def _x_log_x(x: Counts) -> Counts:
    terms: Counts = np.where(x > 0, x * np.log(np.where(x > 0, x, 1.0)), 0.0)
    return terms


def _pairs(x: Counts) -> Counts:
    return x * (x - 1) / 2
