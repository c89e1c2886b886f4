"""Objectives made of objectives: weighted sums, and losses that count as much as their pair is trusted.

:data:`ObjectiveConfig`, the union of all objectives, is here because these two contain it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import field, replace
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from troth.objectives.affinity import Affinity
from troth.objectives.base import About, Objective
from troth.objectives.clean_posterior import CleanPosterior
from troth.objectives.cyclip import CyCLIP
from troth.objectives.decl import DeCL
from troth.objectives.distillation import Distillation
from troth.objectives.feature_distillation import FeatureDistillation
from troth.objectives.gamma_weights import GammaWeights
from troth.objectives.generalized_ce import GeneralizedCE
from troth.objectives.global_infonce import GlobalInfoNCE
from troth.objectives.infonce import InfoNCE
from troth.objectives.mimic import Mimic
from troth.objectives.mmcl import MMCL
from troth.objectives.noise_mixture import NoiseMixture
from troth.objectives.prototypes import ExternalPrototypes, Prototypes
from troth.objectives.self_distillation import SelfDistillation
from troth.objectives.sigmoid import Sigmoid
from troth.objectives.soft_targets import SoftTargets
from troth.objectives.weights import GivenWeights, Weight
from troth.similarity import Pairs
from troth.state import State
from troth.types import STRICT

#: How much the losses of :class:`Reweighted` count, told apart by ``kind``.
WeightConfig = Annotated[CleanPosterior | GivenWeights, Field(discriminator="kind")]


@dataclass(frozen=True, config=STRICT)
class Sum(Objective):
    """A weighted sum of objectives, each with a memory of its own.

    .. code-block:: text

        loss_i = sum_k weight_k loss_k,i

    ``Sum(((1.0, InfoNCE()), (0.5, GeneralizedCE())))``; in a recipe
    ``terms = [[1.0, {kind = "infonce"}], [0.5, {kind = "generalized_ce", q = 0.7}]]``.

    Source: this package; a plain linear combination.

    Attributes:
        terms: ``(weight, objective)`` for each of the summed objectives, at least one. A weight may be any finite
            number.
    """

    kind: Literal["sum"] = field(default="sum", kw_only=True)
    terms: Annotated[
        tuple[tuple[Annotated[float, Field(allow_inf_nan=False)], ObjectiveConfig], ...], Field(min_length=1)
    ]

    about: ClassVar[About] = About(
        equation="Σₖ weightₖ lossₖᵢ",
        inputs="those of its terms",
        state="that of each term, apart from the others'",
        cost="that of its terms together",
        when="a regulariser beside a loss",
        relation="one term of weight 1 is that term",
        citation="a linear combination; see the terms",
    )

    @property
    def needs_bias(self) -> bool:
        """Whether any term needs a learned bias."""
        return any(objective.needs_bias for _, objective in self.terms)

    @property
    def needs_teacher(self) -> bool:
        """Whether any term needs a teacher's image features."""
        return any(objective.needs_teacher for _, objective in self.terms)

    @property
    def needs_judge(self) -> bool:
        """Whether any term needs a judge's points."""
        return any(objective.needs_judge for _, objective in self.terms)

    @property
    def needs_prototypes(self) -> bool:
        """Whether any term needs the clusters of episodes."""
        return any(objective.needs_prototypes for _, objective in self.terms)

    @property
    def needs_external(self) -> bool:
        """Whether any term needs the clusters of an external teacher."""
        return any(objective.needs_external for _, objective in self.terms)

    def prepare(self, state: State) -> None:
        """Prepare each term in a scope of its own."""
        for (_, objective), scope in zip(self.terms, self._scopes(state), strict=True):
            objective.prepare(scope)

    def __call__(self, pairs: Pairs, state: State) -> Float[Tensor, " B"]:
        """Return ``(B,)`` losses in nats."""
        total = []
        for (weight, objective), scope in zip(self.terms, self._scopes(state), strict=True):
            losses = objective(pairs, scope)
            scope.note("loss", losses)
            total.append(weight * losses)
        return torch.stack(total).sum(0)

    def _scopes(self, state: State) -> list[State]:
        """Return the scope of each term, named by its number and kind."""
        return [state.scope(f"{number}-{objective.kind}") for number, (_, objective) in enumerate(self.terms)]


@dataclass(frozen=True, config=STRICT)
class Reweighted(Objective):
    """An objective whose pairs count differently.

    .. code-block:: text

        loss_i = weight_i loss'_i             no gradient through weight_i

    The mean is taken over all pairs, whatever their weights. ``Reweighted(InfoNCE(), by=CleanPosterior())``; in a
    recipe ``objective = {kind = "infonce"}`` and ``by = {kind = "clean_posterior"}``.

    Weights that the data give (``Pairs.weight``) multiply the losses here, once, whatever ``by`` is; the objective does
    not see them, so that a pair is judged by its own loss.

    Source: this package; importance weighting of single losses. The weights' sources are with the weights.

    Attributes:
        objective: whose losses are weighted.
        by: where the weights come from.
    """

    kind: Literal["reweighted"] = field(default="reweighted", kw_only=True)
    objective: ObjectiveConfig
    by: WeightConfig

    about: ClassVar[About] = About(
        equation="weightᵢ lossᵢ, no gradient through the weight",
        inputs="those of its objective; by given: per-pair weights, or a table of them; by clean_posterior: sample ids",
        state="that of its objective; by clean_posterior: each pair's average loss, and two Gaussians",
        cost="that of its objective",
        when="pairs are not equally trustworthy, and their losses or the data tell which",
        relation="its objective where all weights are 1",
        citation=(
            "clean_posterior: Li et al., DivideMix: learning with noisy labels as semi-supervised learning, 2020; "
            "Huang et al., Learning with noisy correspondence for cross-modal matching, 2021"
        ),
    )

    @property
    def needs_bias(self) -> bool:
        """Whether the objective needs a learned bias."""
        return self.objective.needs_bias

    @property
    def needs_teacher(self) -> bool:
        """Whether the objective needs a teacher's image features."""
        return self.objective.needs_teacher

    @property
    def needs_judge(self) -> bool:
        """Whether the objective needs a judge's points."""
        return self.objective.needs_judge

    @property
    def needs_prototypes(self) -> bool:
        """Whether the objective needs the clusters of episodes."""
        return self.objective.needs_prototypes

    @property
    def needs_external(self) -> bool:
        """Whether the objective needs the clusters of an external teacher."""
        return self.objective.needs_external

    def prepare(self, state: State) -> None:
        """Prepare objective and weight, each in the scope of its name."""
        self.objective.prepare(state.scope("objective"))
        self.by.prepare(state.scope("by"))

    def __call__(self, pairs: Pairs, state: State) -> Float[Tensor, " B"]:
        """Return ``(B,)`` losses in nats."""
        losses = self.objective(replace(pairs, weight=None), state.scope("objective"))
        with torch.no_grad():
            weights = self.by(pairs, losses.detach(), state.scope("by"))
        # The pairs' own weights count once: they are what ``given`` gives, unless it reads a table.
        own = isinstance(self.by, GivenWeights) and self.by.file is None
        return losses * weights if own else pairs.weighted(losses * weights)


#: What a recipe may put under ``[objective]``, told apart by ``kind``.
ObjectiveConfig = Annotated[
    InfoNCE
    | Sigmoid
    | GeneralizedCE
    | NoiseMixture
    | SoftTargets
    | SelfDistillation
    | GlobalInfoNCE
    | DeCL
    | GammaWeights
    | MMCL
    | Distillation
    | FeatureDistillation
    | Affinity
    | Mimic
    | CyCLIP
    | Prototypes
    | ExternalPrototypes
    | Sum
    | Reweighted,
    Field(discriminator="kind"),
]  # fmt: skip


def parts(objective: Objective, state: State) -> Iterator[tuple[Objective | Weight, State]]:
    """Go through an objective and all that it is made of, each with the scope it remembers in, outermost first.

    So ``[(w, s) for w, s in parts(objective, state) if isinstance(w, CleanPosterior)]`` finds every fitted weight.
    """
    yield objective, state
    if isinstance(objective, Sum):
        for (_, term), scope in zip(objective.terms, objective._scopes(state), strict=True):
            yield from parts(term, scope)
    elif isinstance(objective, Reweighted):
        yield from parts(objective.objective, state.scope("objective"))
        yield objective.by, state.scope("by")


def asks_for_weights(objective: Objective) -> bool:
    """Say whether any part of an objective counts pairs by weights that have to come with them."""
    found = parts(objective, State(1, "none"))
    return any(isinstance(part, GivenWeights) and part.file is None for part, _ in found)
