"""The only room that forms a block of similarities; streaming lives here and nowhere else.

Everything an objective wants to know about the ``N x N`` matrix of logits

.. code-block:: text

    logits[i, j] = scale * similarity(image_i, text_j) + bias

it asks of :class:`Pairs`, which forms the matrix one tile at a time, reduces it, and forgets it. Memory is
``O(B * (D + tile))`` instead of ``O(B * N)``; values and gradients are those of the whole matrix, to rounding.

Ways through the matrix:

* a *fused pass* reduces every row and every column in one sweep, with the gradient written out by hand
  (:meth:`Pairs.cross_entropy` and all its like): two products forward in the dense way become one, and with several
  ranks each forms only its own rows against all columns, yet every column is reduced completely. What is folded is a
  ``Reduction``: ``LogPartition``, ``TargetCrossEntropy`` and ``BinaryCrossEntropy``, ``SoftCrossEntropy``,
  ``MarginSum``;
* :mod:`~troth.similarity.gram` compares the affinities *within* each modality;
* :mod:`~troth.similarity.prototypes` scores samples over the centroids of a clustering, some rows at a time;
* :meth:`Pairs.row_losses` hands *complete rows* to any function of the objective's and recomputes them in the
  backward pass;
* :func:`different_pairs` hands out the similarities of what does not belong together;
* :func:`detect` finds which images and captions belong together where no pairs are given.
"""

from __future__ import annotations

from troth.similarity.block import TILE, Block
from troth.similarity.detection import Edges, Matching, detect, edge_sums, has_edge
from troth.similarity.distribution import different_pairs
from troth.similarity.logsumexp import LogWeights
from troth.similarity.matches import DenseMatches, GroupMatches, ListedMatches, Matches
from troth.similarity.pairs import Pairs, TwoWay
from troth.similarity.pairwise import MarginFunction
from troth.similarity.prototypes import Clustered, ClusterTargets, PrototypePairs, prototype_cross_entropy
from troth.similarity.ranking import best_rank, topk
from troth.similarity.targets import KnownMatches

__all__ = [
    "TILE",
    "Block",
    "ClusterTargets",
    "Clustered",
    "DenseMatches",
    "Edges",
    "GroupMatches",
    "KnownMatches",
    "ListedMatches",
    "LogWeights",
    "MarginFunction",
    "Matches",
    "Matching",
    "Pairs",
    "PrototypePairs",
    "TwoWay",
    "best_rank",
    "detect",
    "different_pairs",
    "edge_sums",
    "has_edge",
    "prototype_cross_entropy",
    "topk",
]
