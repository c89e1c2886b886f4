"""The judge: cross-fitted evidence on every pair, one score from it, and what the score says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import Field
from pydantic.dataclasses import dataclass as config_dataclass
from torch import Tensor

from troth.errors import UserError
from troth.judge.density import Float64, mismatch
from troth.judge.neighbours import NeighbourPredictions
from troth.judge.spectral import SpectralAlignment, Whitened
from troth.types import STRICT

#: Alignments that give evidence: (directions, shrinkage, power). Coarse and fine ones see different things.
_VIEWS = ((128, 3.0, 1.0), (128, 1.0, 1.0), (128, 0.3, 0.0))
_FEWEST = 200

Count = Annotated[int, Field(gt=0)]


@config_dataclass(frozen=True, config=STRICT)
class Procedure:
    """How pairs are judged.

    Attributes:
        folds: parts that are scored in turn by what the others have in common.
        rounds: how often; from the second on, pairs count as much as the round before found them right.
        neighbours: how many neighbours of each sample predict, in each modality; a third of them do so once more.
        repairings: random re-pairings that wrong pairs are learnt from.
        shrinkage: of the final alignment (:meth:`~troth.judge.Whitened.align`).
        dim: dimensions of the final alignment; None: all there are.
    """

    folds: Annotated[int, Field(ge=2)] = 5
    rounds: Count = 2
    neighbours: Annotated[int, Field(ge=3)] = 30
    repairings: Count = 3
    shrinkage: Annotated[float, Field(gt=0)] = 0.3
    dim: Count | None = None


@dataclass(frozen=True)
class Judgement:
    """What is thought of every pair.

    Attributes:
        score: ``(N,)`` how well each pair fits, the log-odds of being given and not drawn at random; never comparable
            between data sets.
        p_mismatch: ``(N,)`` the probability that it is wrong.
        noise_rate: the estimated share of wrong pairs.
        alignment: of both modalities, by all pairs as far as they are right.
    """

    score: Float[Tensor, " N"]
    p_mismatch: Float[Tensor, " N"]
    noise_rate: float
    alignment: SpectralAlignment


@torch.no_grad()
def judge(
    image_features: Float[Tensor, "N F"],
    text_features: Float[Tensor, "N G"],
    procedure: Procedure | None = None,
    seed: int = 0,
) -> Judgement:
    """Judge pairs of frozen features. Nothing is trained by gradients, and no label or noise rate is asked for.

    .. code-block:: text

        repeat:
            evidence of pair i  = cosines in alignments of the other folds, agreement with its neighbours
            evidence of wrong pairs = the same of re-paired samples, within the fold
            score_i             = log-odds given : re-paired, by boosted trees fitted to the other folds
            P(wrong | score_i)  = see mismatch();      weights = 1 - P(wrong)

    Alignments and trees do not score the pairs they were fitted to, so that a wrong pair is hardly learnt by heart:
    given wrong pairs score nearly as re-paired ones do, which is what the probability rests on. Nearly: trees are
    fitted to evidence whose alignments have seen the fold they score; a re-paired caption's owner may be among the
    neighbours, and its captions may fit after all, where many pairs share theirs. Above 10,000 rows scikit-learn stops
    the boosting early, by a tenth held out.

    Args:
        image_features: ``(N, F)`` of any scale; rows are normalised.
        text_features: ``(N, G)`` likewise, row ``i`` of the captions given with image ``i``.
        procedure: the defaults if None.
        seed: of folds, re-pairings and trees.

    Raises:
        UserError: for fewer than 200 pairs, features that are not finite, or one and the same feature everywhere.
    """
    chosen = procedure if procedure is not None else Procedure()
    if len(image_features) < _FEWEST:
        raise UserError(
            f"{len(image_features)} pairs are too few to judge",
            where="judge",
            remedy=f"at least {_FEWEST}, or train without a judge",
        )
    for name, features in (("image", image_features), ("text", text_features)):
        if not bool(torch.isfinite(features).all()):
            raise UserError(f"some {name} features are not finite", where="judge")
        if bool((features == features[0]).all()):
            raise UserError(f"all {name} features are the same: there is nothing to judge by", where="judge")
    image = F.normalize(image_features.float(), dim=-1)
    text = text_features.float()
    whitened = Whitened(image, text)
    near = NeighbourPredictions.of(image, text, min(chosen.neighbours, len(image) - 1))
    weights = torch.ones(len(image))
    rng = np.random.default_rng([seed, 20_000])
    for _ in range(chosen.rounds):
        fold = rng.permutation(np.arange(len(image)) % chosen.folds)
        pairings = [np.arange(len(image)), *(repaired(fold, rng) for _ in range(chosen.repairings))]
        evidence = gather_evidence(whitened, near, weights, fold, pairings, chosen)
        given, wrong = discriminate(evidence, fold, int(rng.integers(2**31)))
        found = mismatch(given, wrong)
        weights = torch.from_numpy(1 - found.p_mismatch).float()
    return Judgement(
        score=torch.from_numpy(given),
        p_mismatch=torch.from_numpy(found.p_mismatch),
        noise_rate=found.noise_rate,
        alignment=whitened.align(weights.clamp(min=1e-6), chosen.dim, chosen.shrinkage),
    )


def repaired(fold: Int64[np.ndarray, " N"], rng: np.random.Generator) -> Int64[np.ndarray, " N"]:
    """Return for each sample another one of its fold, whose captions it gets: a random cycle through every fold."""
    owner = np.arange(len(fold))
    for number in np.unique(fold):
        members = rng.permutation(np.flatnonzero(fold == number))
        owner[members] = np.roll(members, 1)
    return owner


def gather_evidence(
    whitened: Whitened,
    near: NeighbourPredictions,
    weights: Float[Tensor, " N"],
    fold: Int64[np.ndarray, " N"],
    pairings: list[Int64[np.ndarray, " N"]],
    procedure: Procedure,
) -> list[Float64]:
    """Return ``(N, E)`` evidence on sample ``i`` with the captions of ``pairing[i]``, for every pairing."""
    owners = [torch.from_numpy(pairing) for pairing in pairings]
    columns: list[list[Tensor]] = [[] for _ in pairings]
    for k in sorted({max(3, procedure.neighbours // 3), procedure.neighbours}):
        caption_of_image, image_of_caption = near.predict(weights, k)
        for column, owner in zip(columns, owners, strict=True):
            column.append((caption_of_image * near.text[owner]).sum(dim=1))
            column.append((image_of_caption[owner] * near.image).sum(dim=1))
    for by_pairing in zip(*_aligned_cosines(whitened, weights, fold, owners), strict=True):
        for column, cosines in zip(columns, by_pairing, strict=True):
            column.append(cosines)
    return [torch.stack(column, dim=1).double().numpy() for column in columns]


def _aligned_cosines(
    whitened: Whitened, weights: Float[Tensor, " N"], fold: Int64[np.ndarray, " N"], owners: list[Tensor]
) -> list[list[Float[Tensor, " N"]]]:
    """Return, for each pairing, one vector of cosines a view, every fold scored by the others' alignment."""
    found = [[torch.zeros(len(weights)) for _ in _VIEWS] for _ in owners]
    for number in np.unique(fold):
        inside = torch.from_numpy(fold == number)
        rows = inside.nonzero()[:, 0]
        moments = whitened.cross_covariance(weights.clamp(min=1e-6) * ~inside)
        for view, settings in enumerate(_VIEWS):
            alignment = whitened.aligned(moments, *settings)
            images = alignment.image(whitened.image_features[rows])
            for pairing, owner in enumerate(owners):
                captions = alignment.text(whitened.text_features[owner[rows]])
                found[pairing][view][rows] = (images * captions).sum(dim=1)
    return found


def discriminate(evidence: list[Float64], fold: Int64[np.ndarray, " N"], seed: int) -> tuple[Float64, Float64]:
    """Return the log-odds of being given, of the given pairs ``(N,)`` and of all re-paired ones, out of fold."""
    from sklearn.ensemble import HistGradientBoostingClassifier  # takes a second to import

    given, others = evidence[0], evidence[1:]
    score = np.zeros(len(given))
    wrong = [np.zeros(len(given)) for _ in others]
    for train, inside in _splits(fold):
        trees = HistGradientBoostingClassifier(
            max_depth=3, max_iter=100, learning_rate=0.1, min_samples_leaf=max(5, len(fold) // 90), random_state=seed
        )
        features = np.concatenate([given[train], *(each[train] for each in others)])
        label = np.repeat([1, 0], [train.sum(), len(others) * train.sum()])
        trees.fit(features, label, sample_weight=np.where(label == 1, float(len(others)), 1.0))
        score[inside] = trees.decision_function(given[inside])
        for each, values in zip(others, wrong, strict=True):
            values[inside] = trees.decision_function(each[inside])
    return score, np.concatenate(wrong)


def _splits(fold: Int64[np.ndarray, " N"]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for number in np.unique(fold):
        yield fold != number, fold == number
