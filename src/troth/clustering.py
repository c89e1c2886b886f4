"""Groups of points: k-means and principal components by faiss, and means of groups."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass as plain_dataclass
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Float, Int64
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from troth.errors import UserError
from troth.types import STRICT

_Count = Annotated[int, Field(gt=0)]


@plain_dataclass(frozen=True, slots=True)
class Clusters:
    """A set of points, divided.

    Attributes:
        labels: ``(N,)`` the cluster of each point, the one whose centroid is nearest.
        centroids: ``(K, D)`` float32 means of the clusters, as the last iteration left them: of spherical k-means of
            unit length, else not normalised, whatever the points are.
    """

    labels: Int64[Tensor, " N"]
    centroids: Float[Tensor, "K D"]


@dataclass(frozen=True, config=STRICT)
class KMeans:
    """Lloyd's k-means from random points, as faiss has it; float32 on the CPU.

    An empty cluster takes half of another, which is chosen at random in proportion to its size. The same seed gives
    the same clusters. The number of threads has no part in it where the BLAS's products do not depend on it, which is
    tested for that of faiss's own wheels.

    Source: of 20 iterations and plain Euclidean distances between points of the sphere: Chen et al. 2022,
    "Prototypical contrastive language image pretraining" (ProtoCLIP), and its released code.

    Attributes:
        iterations: assignments followed by an update of the centroids.
        restarts: times it is run in all, from other points; the run of least squared distances is kept.
        max_points_per_centroid: of more points than that many times K, a random sample is clustered; all are labelled.
        spherical: whether centroids are normalised after each update; for points of unit length.
    """

    iterations: _Count = 20
    restarts: _Count = 1
    max_points_per_centroid: _Count = 256
    spherical: bool = False

    def fit(self, features: Float[Tensor, "N D"], num_clusters: int, seed: int) -> Clusters:
        """Divide points into ``num_clusters`` groups.

        Args:
            features: the points; NaN counts as 0, as in the released code of the source.
            num_clusters: K, at least 1 and at most N.
            seed: any integer.

        Returns:
            labels and centroids, on the CPU. Of equally near centroids the first counts.

        Raises:
            UserError: for anything but a non-empty matrix without infinities, and for K outside 1 to N.
        """
        import faiss  # takes a while to import, and few runs cluster

        points = _matrix(features)
        if not 1 <= num_clusters <= len(points):
            raise UserError(
                f"{len(points)} points cannot be divided into {num_clusters} clusters",
                where="num_clusters",
                remedy=f"a number from 1 to {len(points)}",
            )
        kmeans = faiss.Kmeans(
            points.shape[1],
            num_clusters,
            niter=self.iterations,
            nredo=self.restarts,
            spherical=self.spherical,
            seed=_seed(seed),
            max_points_per_centroid=self.max_points_per_centroid,
            min_points_per_centroid=1,  # else faiss warns below 39, and prototypes of 10 points are meant
        )
        kmeans.train(points)
        # A search of its own: with the inner products of faiss's spherical k-means a point's length would not matter,
        # nor should it, and its nearest centroid by distance is the same.
        centroids = np.array(kmeans.centroids, dtype=np.float32)
        index = faiss.IndexFlatL2(points.shape[1])
        index.add(centroids)
        _, nearest = index.search(points, 1)
        return Clusters(torch.from_numpy(nearest[:, 0].copy()), torch.from_numpy(centroids))


def pca(features: Float[Tensor, "N D"], dims: int) -> Float[Tensor, "N d"]:
    """Return the first ``dims`` principal components of points: centred, neither whitened nor normalised again.

    With ``dims >= D`` nothing is to be left out, and all D dimensions are returned, centred but not turned: to
    distances, and so to k-means, the same as their principal components.

    Components are found by faiss in float32, from a random sample of a fixed seed if there are more than 1000 D points.

    Args:
        features: the points; NaN counts as 0.
        dims: how many components, at least 1.

    Raises:
        UserError: for anything but a non-empty matrix without infinities, a ``dims`` below 1, and fewer points than
            components.
    """
    import faiss  # takes a while to import

    points = _matrix(features)
    if dims < 1:
        raise UserError(f"expected at least one principal component, got {dims}", where="dims")
    # Before faiss does: its covariance, products of the points less that of their mean, would lose a far mean's digits.
    points = (points - points.mean(axis=0, dtype=np.float64)).astype(np.float32)
    if dims >= points.shape[1]:
        return torch.from_numpy(points)
    if len(points) < dims:
        raise UserError(
            f"{len(points)} points have no {dims} principal components",
            where="dims",
            remedy=f"at most {len(points)}",
        )
    transform = faiss.PCAMatrix(points.shape[1], dims)
    transform.train(points)
    return torch.from_numpy(transform.apply(points))


def group_means(features: Float[Tensor, "N D"], labels: Int64[Tensor, " N"], num_groups: int) -> Float[Tensor, "K D"]:
    """Return the mean of each group's points, not normalised; zeros for a group without points.

    .. code-block:: text

        mean_k = 1/|S_k| sum over i in S_k of features_i,    S_k = {i: labels_i = k}

    With the labels of the other modality's clusters these are the prototypes that "prototypical back translation"
    teaches with. Summed in float64.

    Source: Chen et al. 2022, "Prototypical contrastive language image pretraining" (ProtoCLIP), equation 7.

    Args:
        features: one point a row.
        labels: each row's group, 0 to ``num_groups - 1``, on the device of ``features``.
        num_groups: K.

    Raises:
        UserError: for labels out of range, or of another number.
    """
    if labels.shape != features.shape[:1]:
        raise UserError(f"{len(features)} points and {len(labels)} labels", where="labels")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_groups:
        raise UserError(
            f"labels from {int(labels.min())} to {int(labels.max())} of {num_groups} groups", where="labels"
        )
    total = features.new_zeros(num_groups, features.shape[1], dtype=torch.float64)
    total.index_add_(0, labels, features.double())
    counts = torch.bincount(labels, minlength=num_groups).clamp_(min=1)
    return (total / counts.unsqueeze(1)).to(features.dtype)


def _matrix(features: Tensor) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Return points as faiss takes them, NaN as 0."""
    if features.ndim != 2 or 0 in features.shape:
        raise UserError(
            f"expected a non-empty (count, dimensions) tensor, got shape {tuple(features.shape)}", where="features"
        )
    points = features.detach().to("cpu", torch.float32).nan_to_num(nan=0.0, posinf=torch.inf, neginf=-torch.inf)
    if not bool(torch.isfinite(points).all()):
        raise UserError(
            "holds infinite values", where="features", remedy="the model diverged or overflowed; see its loss"
        )
    return points.contiguous().numpy()


def _seed(seed: int) -> int:
    """Return 31 bits of any integer, which is what faiss takes."""
    return int.from_bytes(hashlib.sha256(repr(int(seed)).encode()).digest()[:4], "little") >> 1
