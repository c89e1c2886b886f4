"""Which images and captions belong together, found from their similarities alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from troth.errors import UserError

Matching = Literal["top", "argmax", "mutual", "hungarian"]


@dataclass(frozen=True, slots=True)
class Detected:
    """What a step pulls together and what it pushes apart; leading dimensions are independent batches.

    Attributes:
        edges: ``(..., m, m)`` weights of the detected pairs; they sum to ``m``.
        rows: ``(..., m)`` or 1: how much each image's partition sum counts.
        columns: ``(..., m)`` or 1: how much each caption's counts.
    """

    edges: Tensor
    rows: Tensor | float = 1.0
    columns: Tensor | float = 1.0


def detect(similarity: Tensor, matching: Matching) -> Detected:
    """Return the detected pairs of ``m`` images and ``m`` captions, none of which was given.

    ========== ==================================================================================================
    matching   edges
    ========== ==================================================================================================
    top        the m largest of all similarities; an image or caption may have several, or none (variant A)
    argmax     for every caption the image most similar to it, and the reverse, half a weight each (variant B)
    mutual     those that are each other's most similar, weighted up to m; partition sums of these alone
    hungarian  the one-to-one assignment with the largest sum of similarities; ``O(m^3)`` in Python
    ========== ==================================================================================================

    ``top`` and ``argmax`` are the published ones; nothing depends on which image and caption share a row.

    Source: Nakada et al. 2023, public notebooks; ``mutual`` and ``hungarian`` are this package's.

    Args:
        similarity: ``(..., m, m)`` images by captions, of the model that judges.
        matching: which edges.

    Raises:
        UserError: for an unknown matching.
    """
    if matching not in get_args(Matching):
        raise UserError(f"unknown {matching!r}", where="matching", remedy=f"one of: {', '.join(get_args(Matching))}")
    count = similarity.shape[-1]
    edges = similarity.new_zeros(similarity.shape)  # contiguous even where the similarities are not
    if matching == "top":
        places = similarity.flatten(-2).topk(count, dim=-1, sorted=False).indices
        edges.flatten(-2).scatter_(-1, places, 1.0)
        return Detected(edges)
    if matching == "hungarian":
        flat = similarity.detach().cpu().double().numpy().reshape(-1, count, count)
        places = torch.from_numpy(np.stack([assign(each) for each in flat])).to(similarity.device)
        return Detected(edges.scatter_(-1, places.view(similarity.shape[:-1])[..., None], 1.0))
    captions = edges.scatter(-1, similarity.argmax(-1, keepdim=True), 1.0)
    images = edges.scatter(-2, similarity.argmax(-2, keepdim=True), 1.0)
    if matching == "argmax":
        return Detected(0.5 * (captions + images))
    both = captions * images
    both = both * (count / both.sum((-2, -1), keepdim=True))  # the largest similarity of all is always mutual
    return Detected(both, both.sum(-1), both.sum(-2))


def assign(similarity: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Return the one-to-one assignment with the largest sum: ``(m,)`` the column of each row of ``(m, m)``.

    Shortest augmenting paths with dual prices, a row at a time.

    Source: Kuhn 1955, "The Hungarian method for the assignment problem"; in the ``O(m^3)`` form of Jonker and Volgenant
    1987.
    """
    size = len(similarity)
    row_price, column_price = np.zeros(size), np.zeros(size + 1)
    owner = np.full(size + 1, -1)  # the row that a column belongs to; the last column is where each path begins
    for new in range(size):
        owner[size], column = new, size
        shortest, before = np.full(size, np.inf), np.full(size, size)
        done = np.zeros(size + 1, dtype=bool)
        while owner[column] >= 0:
            done[column] = True
            row = owner[column]
            reduced = -similarity[row] - row_price[row] - column_price[:size]
            better = ~done[:size] & (reduced < shortest)
            shortest[better], before[better] = reduced[better], column
            column = int(np.where(done[:size], np.inf, shortest).argmin())
            step = shortest[column]
            row_price[owner[done]] += step
            column_price[done] -= step
            shortest[~done[:size]] -= step
        while column != size:
            owner[column] = owner[before[column]]
            column = int(before[column])
    found = np.empty(size, dtype=np.int64)
    found[owner[:size]] = np.arange(size)
    return found
