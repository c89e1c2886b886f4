"""The judge: cross-fitted evidence on every pair, one score from it, and what the score says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import Field
from pydantic.dataclasses import dataclass as config_dataclass
from torch import Tensor

from troth.errors import UserError
from troth.judge.density import Float64, Mismatch, mismatch
from troth.judge.evidence import Evidence
from troth.judge.spectral import SpectralAlignment
from troth.types import STRICT

_FEWEST = 200
#: In smaller ones re-paired captions are their own rivals too often (:meth:`Evidence.gather`).
_SMALLEST_FOLD = 40

Count = Annotated[int, Field(gt=0)]


@config_dataclass(frozen=True, config=STRICT)
class Procedure:
    """How pairs are judged.

    Attributes:
        folds: parts that are scored in turn by what the others have in common.
        rounds: how often; from the second on, pairs count as much as the rounds before found them right.
        neighbours: how many neighbours of each sample predict, in each modality; by features a third of them do so
            once more.
        stage_neighbours: whether pictures near by a tower's stages predict too, where these are known.
        repairings: random re-pairings that wrong pairs are learnt from.
        shrinkage: of the final alignment (:meth:`~troth.judge.Whitened.align`).
        dim: dimensions of the final alignment; None: all there are.
    """

    folds: Annotated[int, Field(ge=2)] = 5
    rounds: Count = 5
    neighbours: Annotated[int, Field(ge=3)] = 30
    stage_neighbours: bool = field(default=True, repr=False)  # identities name it with the stages, where there are any
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
        evidence: what it goes by: ``features``, and ``words`` and ``stages`` where they were given.
    """

    score: Float[Tensor, " N"]
    p_mismatch: Float[Tensor, " N"]
    noise_rate: float
    alignment: SpectralAlignment
    evidence: tuple[str, ...]


@torch.no_grad()
def judge(
    image_features: Float[Tensor, "N F"],
    text_features: Float[Tensor, "N G"],
    procedure: Procedure | None = None,
    seed: int = 0,
    words: Float[Tensor, "N W"] | None = None,
    stages: Float[Tensor, "N S"] | None = None,
) -> Judgement:
    """Judge pairs of frozen features. Nothing is trained by gradients, and no label or noise rate is asked for.

    .. code-block:: text

        each round:
            evidence of pair i      = what the other folds' pairs say of it: Evidence.gather
            evidence of wrong pairs = the same of re-paired samples, within the fold
            log-odds_i              = given : re-paired, by boosted trees fitted to the other folds
            score_i                 = mean of its log-odds over the rounds from the second on (in the first: that one)
            P(wrong | score_i)      = see mismatch();      weights of the next round's evidence = 1 - P(wrong)

    Folds are drawn anew in every round; who is re-paired with whom is not, so that wrong pairs' scores are means over
    rounds too. Alignments, neighbours and trees do not score the pairs they were fitted to, so that a wrong pair is
    hardly learnt by heart: given wrong pairs score nearly as re-paired ones do, which is what the probability rests
    on. Nearly: trees are fitted to evidence whose alignments have seen the fold they score, weights are the last
    round's, and re-paired captions may fit after all where many pairs share theirs.

    Args:
        image_features: ``(N, F)`` of any scale; rows are normalised.
        text_features: ``(N, G)`` means of unit features, used as they are; row ``i`` of what image ``i`` was given.
        procedure: the defaults if None.
        seed: of folds, re-pairings and trees.
        words: ``(N, W)`` other features of the same captions, such as :func:`caption_words`, that give evidence too.
        stages: ``(N, S)`` other features of the same pictures, such as means of a tower's stages, that do so too.

    Raises:
        UserError: for fewer than 200 pairs, features that are not finite, one and the same feature everywhere, or
            more folds and re-pairings than there are pairs for.
    """
    chosen = procedure if procedure is not None else Procedure()
    image, text = F.normalize(image_features.float(), dim=-1), text_features.float()
    _check(image, text, {"word": words, "stage": stages})
    evidence = Evidence.of(image, text, words, chosen.neighbours, stages, chosen.stage_neighbours)
    *_, last = rounds(evidence, chosen, seed)
    return Judgement(
        score=torch.from_numpy(last.given),
        p_mismatch=torch.from_numpy(last.found.p_mismatch),
        noise_rate=last.found.noise_rate,
        alignment=evidence.whitened.align(last.weights, chosen.dim, chosen.shrinkage),
        evidence=("features", *["words"] * (words is not None), *["stages"] * (stages is not None)),
    )


@dataclass(frozen=True)
class Round:
    """What is known after a round.

    Attributes:
        given: ``(N,)`` scores of the given pairs, means over the rounds that count.
        repaired: ``(repairings N,)`` likewise, of the re-paired ones.
        found: what they say.
    """

    given: Float64
    repaired: Float64
    found: Mismatch

    @property
    def weights(self) -> Float[Tensor, " N"]:
        """``(N,)`` how much the pairs count in the next round, and in the final alignment; positive."""
        return torch.from_numpy(1 - self.found.p_mismatch).float().clamp(min=1e-6)


def rounds(evidence: Evidence, procedure: Procedure, seed: int) -> Iterator[Round]:
    """Yield what is known after each round of :func:`judge`.

    Raises:
        UserError: for more folds and re-pairings than there are pairs for.
    """
    num_pairs = len(evidence.whitened.image_features)
    rng = np.random.default_rng([seed, 20_000])
    parts = blocks(num_pairs, procedure.repairings + 1, rng)
    if len(parts) < procedure.folds or num_pairs < _SMALLEST_FOLD * procedure.folds:
        blocked = f"{_SMALLEST_FOLD} in blocks of {procedure.repairings + 1}"
        raise UserError(
            f"{num_pairs} pairs do not make {procedure.folds} folds of {blocked}",
            where="procedure",
            remedy="fewer folds or repairings",
        )
    owners = pairings(parts, procedure.repairings)
    weights = torch.ones(num_pairs)
    kept: list[tuple[Float64, Float64]] = []
    for _ in range(procedure.rounds):
        fold = folds(parts, procedure.folds, rng)
        kept.append(discriminate(evidence.gather(weights, fold, owners), fold, int(rng.integers(2**31))))
        given, repaired = (np.mean(scores, axis=0) for scores in zip(*(kept[1:] or kept), strict=True))
        last = Round(given, repaired, mismatch(given, repaired))
        weights = last.weights
        yield last


def _check(image: Float[Tensor, "N F"], text: Float[Tensor, "N G"], more: dict[str, Tensor | None]) -> None:
    if len(image) < _FEWEST:
        raise UserError(
            f"{len(image)} pairs are too few to judge",
            where="judge",
            remedy=f"at least {_FEWEST}, or train without a judge",
        )
    given = {"image": image, "text": text} | {name: known for name, known in more.items() if known is not None}
    for name, features in given.items():
        if len(features) != len(image):
            raise UserError(f"{len(features)} rows of {name} features for {len(image)} images", where="judge")
        if not bool(torch.isfinite(features).all()):
            raise UserError(f"some {name} features are not finite", where="judge")
        if bool((features == features[0]).all()):
            raise UserError(f"all {name} features are the same: there is nothing to judge by", where="judge")


def blocks(num_samples: int, size: int, rng: np.random.Generator) -> list[Int64[np.ndarray, " b"]]:
    """Return all samples in random blocks of ``size`` or, for the last one, at most ``2 size - 1``."""
    order = rng.permutation(num_samples)
    cuts = np.arange(1, max(1, num_samples // size)) * size
    return np.split(order, cuts)


def pairings(parts: list[Int64[np.ndarray, " b"]], repairings: int) -> list[Int64[np.ndarray, " N"]]:
    """Return whose captions each sample has: its own, and in each re-pairing those of another one of its block."""
    owners = []
    for shift in range(repairings + 1):
        owner = np.empty(sum(map(len, parts)), dtype=np.int64)
        for part in parts:
            owner[part] = np.roll(part, shift)
        owners.append(owner)
    return owners


def folds(parts: list[Int64[np.ndarray, " b"]], count: int, rng: np.random.Generator) -> Int64[np.ndarray, " N"]:
    """Return the fold of each sample; blocks stay whole."""
    fold = np.empty(sum(map(len, parts)), dtype=np.int64)
    for part, number in zip(parts, rng.permutation(np.arange(len(parts)) % count), strict=True):
        fold[part] = number
    return fold


def discriminate(evidence: list[Float64], fold: Int64[np.ndarray, " N"], seed: int) -> tuple[Float64, Float64]:
    """Return the log-odds of being given, of the given pairs ``(N,)`` and of all re-paired ones, out of fold."""
    from sklearn.ensemble import HistGradientBoostingClassifier  # takes a second to import

    given, others = evidence[0], evidence[1:]
    score = np.zeros(len(given))
    wrong = [np.zeros(len(given)) for _ in others]
    prior = np.log(len(others))  # not by sample weights: scikit-learn takes half a minute to bin weighted samples
    for train, inside in _splits(fold):
        trees = HistGradientBoostingClassifier(
            max_depth=3,
            max_iter=100,
            learning_rate=0.1,
            min_samples_leaf=max(5, len(fold) // 90),
            early_stopping=False,
            random_state=seed,
        )
        features = np.concatenate([given[train], *(each[train] for each in others)])
        trees.fit(features, np.repeat([1, 0], [train.sum(), len(others) * train.sum()]))
        score[inside] = trees.decision_function(given[inside]) + prior
        for each, values in zip(others, wrong, strict=True):
            values[inside] = trees.decision_function(each[inside]) + prior
    return score, np.concatenate(wrong)


def _splits(fold: Int64[np.ndarray, " N"]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for number in np.unique(fold):
        yield fold != number, fold == number
