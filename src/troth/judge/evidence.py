"""Evidence on pairs: how well a caption fits a picture, and whether others fit better, by what other pairs show."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from troth.judge.neighbours import NeighbourPredictions
from troth.judge.spectral import Whitened
from troth.similarity.block import TILE, tiles

#: Alignments that give evidence: (directions, shrinkage, power). Coarse and fine ones see different things.
_ALIGNMENTS = ((128, 3.0, 1.0), (128, 1.0, 1.0), (128, 0.3, 0.0))
_WORD_ALIGNMENT = (256, 1.0, 1.0)
#: Of the stages with the sentences; with the words as the features are.
_STAGE_ALIGNMENT = (128, 1.0, 1.0)
#: Of the stages' whitening before neighbours are sought by them.
_STAGE_SHRINKAGE = 0.3
#: A feature deviates by less than this share of its size only by rounding.
_CONSTANT = 1e-6
#: How many of the best others a pair is held against.
_RIVALS = 10
#: Others among which rivals are looked for, at most: beyond some thousands the best ten say nothing new.
_CROWD = 2048

Rows = Int64[Tensor, " n"]


class View(NamedTuple):
    """Vectors of the pictures and the captions of a fold whose products say how well any of them fit each other."""

    image: Float[Tensor, "n d"]
    text: Float[Tensor, "n d"]


@dataclass(frozen=True)
class Evidence:
    """What is known of pairs beforehand, from which weights of them make evidence.

    Attributes:
        whitened: both modalities' statistics.
        near: neighbours of each sample in each.
        words: statistics of the pictures and of what else is known of the captions, if anything.
        neighbours: how many of them predict; by features a third of them do so once more.
        stages: statistics of the pictures' further features with the captions' features, and with their words.
        near_stages: neighbours, those of pictures by their whitened further features; None if these do not predict.
    """

    whitened: Whitened
    near: NeighbourPredictions
    words: Whitened | None
    neighbours: int
    stages: tuple[Whitened, ...] = ()
    near_stages: NeighbourPredictions | None = None

    @classmethod
    def of(
        cls,
        image_features: Float[Tensor, "N F"],
        text_features: Float[Tensor, "N G"],
        words: Float[Tensor, "N W"] | None,
        neighbours: int,
        stages: Float[Tensor, "N S"] | None = None,
        stage_neighbours: bool = True,
    ) -> Evidence:
        """Find neighbours and statistics of pairs: unit features of images, mean unit features of captions.

        Args:
            image_features: ``(N, F)``.
            text_features: ``(N, G)``.
            words: ``(N, W)`` of the captions, if known.
            neighbours: how many of them predict.
            stages: ``(N, S)`` further features of the pictures, if known, each of any scale.
            stage_neighbours: whether pictures that are near by these predict too.
        """
        captions = [text_features] if words is None else [text_features, words.float()]
        seen = None if stages is None else standardized(stages)
        near = NeighbourPredictions.of(image_features, text_features, min(neighbours, len(image_features) - 1))
        staged = () if seen is None else tuple(Whitened(seen, each) for each in captions)
        return cls(
            whitened=Whitened(image_features, text_features),
            near=near,
            words=None if words is None else Whitened(image_features, words.float()),
            neighbours=neighbours,
            stages=staged,
            near_stages=(
                near.by_other_images(staged[0].whitened_images(_STAGE_SHRINKAGE))
                if staged and stage_neighbours
                else None
            ),
        )

    def gather(
        self,
        weights: Float[Tensor, " N"],
        fold: Int64[np.ndarray, " N"],
        pairings: list[Int64[np.ndarray, " N"]],
    ) -> list[np.ndarray]:
        """Return ``(N, E)`` float64 evidence on sample ``i`` with the captions of ``pairing[i]``, for every pairing.

        Every fold is judged by what the other folds' pairs say: alignments fitted to them, and those of a sample's
        neighbours that are among them. Each view gives three numbers on picture ``i`` and caption ``j``,

        .. code-block:: text

            c       = <image_i, text_j>
            c - mean of the 10 largest <image_i, text_l>, l != i         do other captions fit this picture better?
            c - mean of the 10 largest <image_l, text_j>, l != j         does this caption fit other pictures better?

        for at most 2,048 others ``l`` of the fold. What ``i`` and ``j`` were given is left out of the comparison: a
        re-paired sample's rivals are then, as a given one's, what it was not given. The one difference is that a
        re-paired caption may be its own rival; it is one of a fold, which is why folds must not be small.

        Args:
            weights: ``(N,)`` how much each pair counts; positive.
            fold: the part each is in.
            pairings: whose captions each sample has, within its fold.

        Source: similarity against that of the nearest others is the CSLS of Conneau et al. 2018, "Word translation
        without parallel data", here one number for either side.
        """
        position = torch.empty(len(fold), dtype=torch.int64)
        found: list[list[Tensor]] = [[] for _ in pairings]
        order = []
        for number in np.unique(fold):
            inside = torch.from_numpy(fold == number)
            rows = inside.nonzero()[:, 0]
            position[rows] = torch.arange(len(rows))
            owners = [position[torch.from_numpy(pairing)[rows]] for pairing in pairings]
            columns: list[list[Tensor]] = [[] for _ in pairings]
            for view in self._views(rows, weights * ~inside):
                for column, numbers in zip(columns, held_against_others(view, owners), strict=True):
                    column.append(numbers)
            order.append(rows)
            for each, column in zip(found, columns, strict=True):
                each.append(torch.cat(column, dim=1))
        back = torch.cat(order).argsort()
        return [torch.cat(each)[back].double().numpy() for each in found]

    def _views(self, rows: Rows, weights: Float[Tensor, " N"]) -> Iterator[View]:
        """Yield what the pairs of positive weight say of the others in ``rows``."""
        near, whitened = self.near, self.whitened
        for k in sorted({max(3, self.neighbours // 3), self.neighbours}):
            caption_of_image, image_of_caption = near.predict(weights, k, rows)
            yield View(caption_of_image, near.text[rows])
            yield View(near.image[rows], image_of_caption)
        for modalities, settings in ((whitened, _ALIGNMENTS), (self.words, (_WORD_ALIGNMENT,))):
            if modalities is None:
                continue
            moments = modalities.cross_covariance(weights)
            for each in settings:
                yield _aligned(modalities, moments, each, rows)
        if self.words is not None:
            yield self._by_words(near, rows, weights)
        for seen, chosen in zip(self.stages, (_STAGE_ALIGNMENT, _WORD_ALIGNMENT), strict=False):
            yield _aligned(seen, seen.cross_covariance(weights), chosen, rows)
        if self.near_stages is not None:
            caption_of_image, image_of_caption = self.near_stages.predict(weights, self.neighbours, rows)
            yield View(caption_of_image, near.text[rows])
            yield View(self.near_stages.image[rows], image_of_caption)
            if self.words is not None:
                yield self._by_words(self.near_stages, rows, weights)

    def _by_words(self, near: NeighbourPredictions, rows: Rows, weights: Float[Tensor, " N"]) -> View:
        """Return the words that a picture's neighbours have, and those of the captions."""
        assert self.words is not None
        words = self.words.text_features
        return View(near.mean_of_near_images(words, weights, self.neighbours, rows) - words.mean(dim=0), words[rows])


def standardized(features: Float[Tensor, "N S"]) -> Float[Tensor, "N S"]:
    """Return unit rows of features that have been brought to mean 0 and deviation 1; one that is constant is 0."""
    exact = features.double()
    deviation = exact.std(dim=0)
    varies = deviation > _CONSTANT * exact.abs().amax(dim=0)
    centred = torch.where(varies, (exact - exact.mean(dim=0)) / deviation, 0.0)
    return F.normalize(centred, dim=1).float()


def _aligned(
    modalities: Whitened, moments: tuple[Tensor, Tensor, Tensor], settings: tuple[int, float, float], rows: Rows
) -> View:
    alignment = modalities.aligned(moments, *settings)
    return View(alignment.image(modalities.image_features[rows]), alignment.text(modalities.text_features[rows]))


def held_against_others(view: View, owners: list[Rows]) -> list[Float[Tensor, "n 3"]]:
    """Return the three numbers of :meth:`Evidence.gather`, for every pairing.

    Args:
        view: of ``n`` samples, each picture in the row of the captions it was given.
        owners: ``(n,)`` the row of the captions that each picture has in each pairing.
    """
    image_level, text_level = _rivals_of_both(view)
    numbers = []
    for owner in owners:
        fit = (view.image * view.text[owner]).sum(dim=1)
        numbers.append(torch.stack([fit, fit - image_level, fit - text_level[owner]], dim=1))
    return numbers


def _rivals_of_both(view: View) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Return the mean of the largest products with the others of the other side, of the pictures and of the captions.

    Of few, one matrix of products serves both: at most 2,048 rows square, 16 MB, whatever the data.
    """
    if len(view.image) > _CROWD:
        return _rivals_in_crowd(view.image, view.text), _rivals_in_crowd(view.text, view.image)
    products = (view.image @ view.text.T).fill_diagonal_(-torch.inf)
    k = min(_RIVALS, len(products) - 1)
    of_image, of_text = (each.topk(k, dim=1).values.mean(dim=1) for each in (products, products.T))
    return of_image, of_text


def _rivals_in_crowd(queries: Float[Tensor, "n d"], candidates: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """Return the mean of the largest products with some candidates, the one in the query's own row left out.

    Candidates at even steps are taken: rows are in the order of the data, which may mean something.
    """
    crowd = torch.linspace(0, len(candidates) - 1, _CROWD).long()
    levels = []
    for part in tiles(len(queries), TILE[0]):
        products = queries[part] @ candidates[crowd].T
        own = torch.arange(len(queries))[part].unsqueeze(1) == crowd
        levels.append(products.masked_fill_(own, -torch.inf).topk(_RIVALS, dim=1).values.mean(dim=1))
    return torch.cat(levels)
