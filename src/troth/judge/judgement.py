"""The judge: cross-fitted evidence on every pair, one score from it, and what the score says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from pydantic.dataclasses import dataclass as config_dataclass
from torch import Tensor

from troth.errors import UserError
from troth.judge.density import Float64, Mismatch, mismatch
from troth.judge.evidence import Evidence
from troth.judge.repairings import Repairings, folds
from troth.judge.spectral import SpectralAlignment
from troth.judge.trees import discriminate
from troth.types import STRICT

_FEWEST = 200
#: In smaller ones re-paired captions are their own rivals too often (:meth:`Evidence.gather`).
_SMALLEST_FOLD = 40
#: Shares below this are as good as none, and have a logarithm.
_RAREST = 1e-6

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
        repairings: re-pairings of either kind that wrong pairs are learnt from.
        cluster_size: captions moved among about so many like ones are a second kind of wrong pairs, learnt and counted
            by themselves, as where captions of the same category were confused. It must be more than ``repairings``, or
            0: this kind is not looked for. Nor is it where most captions are those of all their cluster.
        shrinkage: of the final alignment (:meth:`~troth.judge.Whitened.align`).
        dim: dimensions of the final alignment; None: all there are.
    """

    folds: Annotated[int, Field(ge=2)] = 5
    rounds: Count = 5
    neighbours: Annotated[int, Field(ge=3)] = 30
    stage_neighbours: bool = field(default=True, repr=False)  # identities name it with the stages, where there are any
    repairings: Count = 3
    cluster_size: Annotated[int, Field(ge=0)] = field(default=100, repr=False)  # identities name it where it is not 0
    shrinkage: Annotated[float, Field(gt=0)] = 0.3
    dim: Count | None = None


@dataclass(frozen=True)
class Judgement:
    """What is thought of every pair.

    Attributes:
        score: ``(N,)`` how well each pair fits, the log-odds of being given and not drawn at random, or of two kinds of
            wrong pairs minus the log of both odds' sum; never comparable between data sets.
        p_mismatch: ``(N,)`` the probability that it is wrong.
        noise_rate: the estimated share of wrong pairs.
        alignment: of both modalities, by all pairs as far as they are right.
        evidence: what it goes by: ``features``, and ``words`` and ``stages`` where they were given; of a
            judgement that was read, what it named and ``file``.
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

    The same is done once more with captions re-paired among like ones (``procedure.cluster_size``), by trees fitted to
    the pairs that the round before did not find wrong at random; their share is of what those leave. A pair is right
    that is wrong in neither way, and its score is minus the log of the odds of being wrong in either.

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
            more folds and re-pairings than there are pairs for, or clusters too small to re-pair them so often.
    """
    chosen = procedure if procedure is not None else Procedure()
    image, text = F.normalize(image_features.float(), dim=-1), text_features.float()
    check_features(image, text, {"word": words, "stage": stages})
    evidence = Evidence.of(image, text, words, chosen.neighbours, stages, chosen.stage_neighbours)
    *_, last = rounds(evidence, chosen, seed)
    return Judgement(
        score=torch.from_numpy(last.score),
        p_mismatch=torch.from_numpy(last.p_mismatch),
        noise_rate=last.noise_rate,
        alignment=evidence.whitened.align(last.weights, chosen.dim, chosen.shrinkage),
        evidence=("features", *["words"] * (words is not None), *["stages"] * (stages is not None)),
    )


@dataclass(frozen=True)
class Kind:
    """What is known of one kind of wrong pairs.

    Attributes:
        given: ``(N,)`` scores of the given pairs, means over the rounds that count.
        repaired: ``(repairings N,)`` likewise, of those re-paired in this way.
        found: what they say.
    """

    given: Float64
    repaired: Float64
    found: Mismatch


@dataclass(frozen=True)
class Round:
    """What is known after a round.

    Attributes:
        at_random: of captions that could be anyone's.
        alike: of captions like the right one, among the pairs as far as they are not the others; None if nobody asked,
            or most captions are those of all their cluster.
    """

    at_random: Kind
    alike: Kind | None = None

    @property
    def p_mismatch(self) -> Float64:
        """``(N,)`` the probability that each pair is wrong in one way or the other."""
        found = self.at_random.found.p_mismatch
        return found if self.alike is None else 1 - (1 - found) * (1 - self.alike.found.p_mismatch)

    @property
    def noise_rate(self) -> float:
        """The share of wrong pairs, of both kinds."""
        found = self.at_random.found.noise_rate
        return found if self.alike is None else 1 - (1 - found) * (1 - self.alike.found.noise_rate)

    @property
    def score(self) -> Float64:
        """``(N,)`` log-odds of being given; of two kinds, minus the log of the odds of being wrong in either way."""
        if self.alike is None:
            return self.at_random.given
        first, second = self.at_random.found.noise_rate, self.alike.found.noise_rate
        odds = np.logaddexp(
            np.log(max(first, _RAREST)) - self.at_random.given,
            np.log(max((1 - first) * second, _RAREST)) - self.alike.given,
        )
        return np.asarray(-odds)

    @property
    def weights(self) -> Float[Tensor, " N"]:
        """``(N,)`` how much the pairs count in the next round, and in the final alignment; positive."""
        return torch.from_numpy(1 - self.p_mismatch).float().clamp(min=1e-6)


def rounds(evidence: Evidence, procedure: Procedure, seed: int) -> Iterator[Round]:
    """Yield what is known after each round of :func:`judge`.

    Raises:
        UserError: for more folds and re-pairings than there are pairs for, or clusters too small for these.
    """
    text = evidence.whitened.text_features
    num_pairs, count = len(text), procedure.repairings
    rng = np.random.default_rng([seed, 20_000])
    made = _repairings(text, procedure, rng)
    # Where pairs share a caption, that of another may be the very same, and the pair is right.
    differ = [(text[torch.from_numpy(owner)] != text).any(dim=1).numpy() for owner in made.alike]
    like_captions = made.alike if sum(each.sum() for each in differ) >= num_pairs else []
    last: Round | None = None
    random_kept: list[tuple[Float64, Float64]] = []
    alike_kept: list[tuple[Float64, Float64]] = []
    for _ in range(procedure.rounds):
        fold = folds(made.parts, procedure.folds, rng)
        weights = torch.ones(num_pairs) if last is None else last.weights
        own, *moved = evidence.gather(weights, fold, [*made.at_random, *like_captions])
        state = int(rng.integers(2**31))
        random_kept.append(discriminate([own, *moved[:count]], fold, state))
        given, repaired = _mean(random_kept)
        at_random = Kind(given, repaired, mismatch(given, repaired))
        alike = None
        if like_captions:
            likely = np.ones(num_pairs, dtype=bool) if last is None else last.at_random.found.p_mismatch < 0.5
            used = [likely, *(each & likely for each in differ)]
            alike_kept.append(discriminate([own, *moved[count:]], fold, state, used))
            given, repaired = _mean(alike_kept)
            repaired = repaired[np.concatenate(differ)]
            alike = Kind(given, repaired, mismatch(given, repaired, 1 - at_random.found.p_mismatch))
        last = Round(at_random, alike)
        yield last


def _repairings(text: Float[Tensor, "N G"], procedure: Procedure, rng: np.random.Generator) -> Repairings:
    """Move captions as a procedure says, if there are enough of them to be judged in its folds."""
    num_pairs, count, size = len(text), procedure.repairings, procedure.cluster_size
    if 0 < size <= count:
        raise UserError(
            f"clusters of {size} captions are too small to re-pair them {count} times",
            where="procedure.cluster_size",
            remedy="a hundred, or 0 to look for no wrong captions among like ones",
        )
    made = Repairings.among_alike(text, size, count, rng) if size else Repairings.draw(num_pairs, count, rng)
    if len(made.parts) < procedure.folds or num_pairs < _SMALLEST_FOLD * procedure.folds:
        blocked = f"{_SMALLEST_FOLD} in blocks of {(count + 1) ** (2 if size else 1)}"
        raise UserError(
            f"{num_pairs} pairs do not make {procedure.folds} folds of {blocked}",
            where="procedure",
            remedy="fewer folds or repairings" + (", or cluster_size 0" if size else ""),
        )
    return made


def _mean(kept: list[tuple[Float64, Float64]]) -> tuple[Float64, Float64]:
    """Return the means of given and re-paired scores over the rounds from the second on; in the first, that one's."""
    given, repaired = (np.mean(scores, axis=0) for scores in zip(*(kept[1:] or kept), strict=True))
    return given, repaired


def check_features(image: Float[Tensor, "N F"], text: Float[Tensor, "N G"], more: dict[str, Tensor | None]) -> None:
    """Raise a UserError for features that cannot be judged or aligned."""
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
