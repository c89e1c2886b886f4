"""Which of a batch's images and captions, none of which was given as a pair, belong together.

Images and captions are two sets: image ``i`` and caption ``i`` share a row of a tensor, and nothing else. What is found
is a list of edges between them, the same on every rank. Scores are similarities of a frozen or detached model: nothing
here is differentiable but :func:`edge_sums`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from troth import distributed
from troth.geometry import Geometry
from troth.similarity.block import TILE, tiles
from troth.similarity.pairs import Pairs, TwoWay

#: How edges are chosen; see :func:`detect`.
Matching = Literal["top", "argmax", "mutual", "hungarian"]

#: Takes the place of a similarity that is not a number.
_NO_NUMBER = -1e30


@dataclass(frozen=True, slots=True)
class Edges:
    """Images and captions that were found to belong together; places in the whole batch, over all ranks.

    Attributes:
        image: ``(E,)`` the image of each edge.
        text: ``(E,)`` its caption.
        row: ``(E,)`` the row in whose loss it is counted: its image, or its caption if that one chose.
    """

    image: Int64[Tensor, " E"]
    text: Int64[Tensor, " E"]
    row: Int64[Tensor, " E"]

    def __len__(self) -> int:
        return len(self.image)


def detect(
    image: Float[Tensor, "B D"],
    text: Float[Tensor, "B D"],
    geometry: Geometry,
    matching: Matching,
    tile: tuple[int, int] = TILE,
) -> Edges:
    """Return the edges among the ``N`` images and ``N`` captions of the whole batch, the same on every rank.

    ========== ====== ================================================================================================
    matching   edges  which
    ========== ====== ================================================================================================
    top        N      the N largest of all N x N similarities; an image or caption may have several, or none
    argmax     2 N    for every caption the image most similar to it, and for every image the most similar caption
    mutual     1..N   those that are each other's most similar
    hungarian  N      the one-to-one assignment with the largest sum of similarities
    ========== ====== ================================================================================================

    Of equal similarities the first counts: the lower row, then the lower column. Memory is ``O(N + tile)``, but for
    ``hungarian``, which one rank solves on the dense ``N x N`` block (scipy, ``O(N^3)`` in the worst case). A geometry
    whose directions differ is asked for both, and their mean is taken.

    Args:
        image: this rank's projected images.
        text: this rank's projected captions.
        geometry: how they are compared.
        matching: which edges.
        tile: rows and columns of a tile.
    """
    with torch.no_grad(), torch.autocast(image.device.type, enabled=False):
        block = _Block(image.detach(), distributed.gather(text.detach()), geometry, tile)
        if matching == "top":
            found, caption = block.top(len(block.all_text))
            return Edges(found, caption, found)
        if matching == "hungarian":
            found, caption = block.assignment()
            return Edges(found, caption, found)
        caption_of, image_of = block.best()
        everyone = torch.arange(len(image_of), device=image.device)
        if matching == "argmax":
            return Edges(torch.cat([image_of, everyone]), torch.cat([everyone, caption_of]), everyone.repeat(2))
        found = everyone[image_of[caption_of] == everyone]
        return Edges(found, caption_of[found], found)


def edge_sums(pairs: Pairs, edges: Edges) -> Float[Tensor, " B"]:
    """Return, for each of this rank's rows, the sum of ``scale * similarity + bias`` over its edges.

    Differentiable, also in other ranks' embeddings. Memory is ``O(E * D)``.

    Args:
        pairs: this rank's images and captions; which of them share a row does not matter.
        edges: among the images and captions of the whole batch.
    """
    with torch.autocast(pairs.image.device.type, enabled=False):
        rows, own = _own(edges.row, len(pairs))
        image = distributed.gather_with_gradient(pairs.image)[edges.image[own]]
        text = distributed.gather_with_gradient(pairs.text)[edges.text[own]]
        similarity = torch.stack([view.paired_similarity(image, text) for view in _views(pairs.geometry)]).mean(dim=0)
        logits = similarity * pairs.scale.to(similarity)
        if pairs.bias is not None:
            logits = logits + pairs.bias.to(similarity)
        return logits.new_zeros(len(pairs)).index_add(0, rows, logits)


def has_edge(pairs: Pairs, edges: Edges) -> TwoWay:
    """Return 1 for each of this rank's images (and captions) that has an edge, and 0 for the others."""
    marks = []
    for place in (edges.image, edges.text):
        rows, _ = _own(place, len(pairs))
        marks.append(pairs.image.new_zeros(len(pairs)).index_fill(0, rows, 1.0))
    return TwoWay(*marks)


def _own(places: Int64[Tensor, " E"], size: int) -> tuple[Int64[Tensor, " e"], Bool[Tensor, " E"]]:
    """Return which of this rank's ``size`` rows some places in the whole batch are, and which places are its own."""
    rows = places - distributed.rank() * size
    own = (rows >= 0) & (rows < size)
    return rows[own], own


def _views(geometry: Geometry) -> tuple[Geometry, ...]:
    return geometry.views() or (geometry,)


@dataclass(frozen=True, slots=True)
class _Block:
    """This rank's rows of the similarities of the whole batch, one tile at a time."""

    image: Tensor
    all_text: Tensor
    geometry: Geometry
    tile: tuple[int, int]

    @property
    def offset(self) -> int:
        """The place in the whole batch of this rank's first image."""
        return distributed.rank() * len(self.image)

    def similarity(self, row: slice, column: slice) -> Float[Tensor, "b n"]:
        """Return a tile, whose numbers that are none are smaller than any: the loss, none either, ends the step."""
        parts = [view.similarity(self.image[row], self.all_text[column]) for view in _views(self.geometry)]
        similarity = parts[0] if len(parts) == 1 else torch.stack(parts).mean(dim=0)
        return similarity.nan_to_num_(nan=_NO_NUMBER)

    def best(self) -> tuple[Int64[Tensor, " N"], Int64[Tensor, " N"]]:
        """Return the most similar caption of every image, and the most similar image of every caption."""
        like, count = self.image, len(self.all_text)
        row_value, row_place = like.new_full((len(like),), -torch.inf), _places(len(like), like)
        column_value, column_place = like.new_full((count,), -torch.inf), _places(count, like)
        for row in tiles(len(self.image), self.tile[0]):
            for column in tiles(count, self.tile[1]):
                similarity = self.similarity(row, column)
                _keep_larger(row_value[row], row_place[row], *similarity.max(dim=1), column.start)
                _keep_larger(column_value[column], column_place[column], *similarity.max(dim=0), row.start)
        # Ranks in order, so that of equal images the first counts: max takes the first of several largest.
        ranks = distributed.gather(column_value[None]).max(dim=0).indices
        places = distributed.gather((column_place + self.offset)[None])
        image_of = places.gather(0, ranks[None])[0]
        return distributed.gather(row_place), image_of

    def top(self, count: int) -> tuple[Int64[Tensor, " k"], Int64[Tensor, " k"]]:
        """Return image and caption of the ``count`` largest similarities of the whole batch, largest first."""
        width = len(self.all_text)
        values, places = self.image.new_empty(0), _places(0, self.image)
        for row in tiles(len(self.image), self.tile[0]):
            for column in tiles(width, self.tile[1]):
                similarity = self.similarity(row, column)
                least = similarity.flatten().topk(min(count, similarity.numel())).values[-1]
                # All that equal the least: which of them count is decided by their places, not by the tile.
                i, j = torch.nonzero(similarity >= least, as_tuple=True)
                flat = (i + row.start + self.offset) * width + j + column.start
                values, places = _largest(
                    torch.cat([values, similarity[i, j]]), torch.cat([places, flat]), min(count, len(places) + len(i))
                )
        values, places = _largest(distributed.gather(values), distributed.gather(places), count)
        return places // width, places % width

    def assignment(self) -> tuple[Int64[Tensor, " N"], Int64[Tensor, " N"]]:
        """Return every image and the caption assigned to it. Solved by the first rank, for all."""
        rows = torch.cat([self.similarity(row, slice(None)) for row in tiles(len(self.image), self.tile[0])])
        dense = distributed.gather(rows)
        chosen: np.ndarray[tuple[int], np.dtype[np.int64]] | None = None
        if distributed.is_main():
            chosen = linear_sum_assignment(dense.double().cpu().numpy(), maximize=True)[1]
        chosen = distributed.broadcast_object(chosen)
        return torch.arange(len(dense), device=dense.device), torch.as_tensor(chosen, device=dense.device)


def _places(length: int, like: Tensor) -> Int64[Tensor, " n"]:
    return torch.zeros(length, dtype=torch.int64, device=like.device)


def _keep_larger(value: Tensor, place: Tensor, new: Tensor, where: Tensor, start: int) -> None:
    """Put what is larger than ``value``, and its place, into their place; of equals the earlier stays."""
    larger = new > value
    value.copy_(torch.where(larger, new, value))
    place.copy_(torch.where(larger, where + start, place))


def _largest(values: Tensor, places: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the ``count`` largest values and their places; of equals those whose places come first."""
    places, order = places.sort()
    values, chosen = values[order].sort(descending=True, stable=True)
    return values[:count], places[chosen][:count]
