"""A pair counts as much as it is likely to be right, going by how its loss compares with the others'."""

from __future__ import annotations

import math
from dataclasses import field
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from troth.mixture import TwoGaussians, fit_two_gaussians
from troth.objectives.weights import Weight
from troth.similarity import Pairs
from troth.state import State
from troth.types import STRICT

#: A mixture is fitted to at most this many losses: five numbers are known to a percent from far fewer.
_FITTED = 200_000


@dataclass(frozen=True, config=STRICT)
class CleanPosterior(Weight):
    """The posterior that a pair's loss belongs to the lower of two groups: the right pairs are learnt first.

    .. code-block:: text

        m_i <- keep m_i + (1 - keep) loss_i                   at every visit of pair i, the first one taken whole
        p(m) = pi N(m; mu_0, s_0) + (1 - pi) N(m; mu_1, s_1)  mu_0 < mu_1, fitted when an epoch begins, to all m
        w_i  = max(floor, pi N(m_i; mu_0, s_0) / p(m_i))      m_i held between mu_0 and mu_1, so that w never rises

    The weights are 1 until ``warmup_epochs`` are over, and in every epoch that begins without a sign of two groups (too
    few or equal losses, or one Gaussian describes them as well). They are not normalised: a batch of wrong pairs makes
    a small step. A pair that is right but hard has a high loss too, so some of the weight taken away is taken from
    these, and on data without a wrong pair all of it: losses have a long tail, which a second Gaussian fits. A model
    that has learnt the wrong captions by heart no longer tells them apart, so the warm-up should end while it still
    does.

    Source: Li et al. 2020, "DivideMix: learning with noisy labels as semi-supervised learning", section 3.1 (two
    Gaussians on each sample's loss after a warm-up, refitted every epoch); Huang et al. 2021, "Learning with noisy
    correspondence for cross-modal matching", section 3.2, on image-text pairs. They fit the losses of one pass over the
    data; the moving average is ours (DivideMix's code averages five epochs at the highest noise rate).

    Attributes:
        keep: how much of a pair's average loss stays at a visit. A pair is visited once an epoch: 0.5 looks back about
            two epochs, so that the losses of the first ones, when all pairs looked alike, are soon forgotten.
        warmup_epochs: epochs in which every pair counts fully; at least one, since losses have to be seen first.
        floor: the smallest weight, so that no pair is given up for good.
    """

    kind: Literal["clean_posterior"] = field(default="clean_posterior", kw_only=True)
    keep: Annotated[float, Field(ge=0, lt=1)] = 0.5
    warmup_epochs: Annotated[int, Field(ge=1)] = 2
    floor: Annotated[float, Field(ge=0, le=1)] = 0.0

    def prepare(self, state: State) -> None:
        """Declare each pair's average loss, and the mixture (NaN: none)."""
        state.declare("loss")
        state.declare_value("mixture", torch.full((len(TwoGaussians._fields),), torch.nan, dtype=torch.float64))

    def __call__(self, pairs: Pairs, losses: Float[Tensor, " B"], state: State) -> Float[Tensor, " B"]:
        """Return ``(B,)`` weights in [floor, 1]; this visit's losses are in the averages they are judged by."""
        if pairs.index is None:
            raise ValueError("clean_posterior remembers each pair's loss: the pairs need sample ids (index)")
        clock = state.clock
        if clock.starts_epoch and clock.epoch >= self.warmup_epochs:
            self._refit(state)
        state.average("loss", pairs.index, losses, self.keep)
        weights = torch.ones_like(losses)
        if clock.epoch >= self.warmup_epochs:
            weights = self._posterior(state, state.read("loss", pairs.index)).clamp(min=self.floor).to(losses)
        state.note("weight", weights)
        return weights

    def posterior(self, state: State) -> Float[Tensor, " num_samples"]:
        """Return the ``(num_samples,)`` float64 probability that each pair is right, by the last mixture fitted.

        Before the floor; NaN for pairs that were never seen, 1 for all others while there is no mixture.

        Args:
            state: the weight's own scope (see :func:`troth.objectives.composition.parts`).
        """
        return self._posterior(state, state.read("loss"))

    def _posterior(self, state: State, average: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        mixture = TwoGaussians(*state.value("mixture").tolist())
        if math.isnan(mixture.lower_mean):  # none fitted
            return torch.where(torch.isnan(average), torch.nan, 1.0).double()
        return mixture.lower_posterior(average)

    def _refit(self, state: State) -> None:
        remembered = state.read("loss").double()
        losses = remembered[torch.isfinite(remembered)].sort().values
        if len(losses) > _FITTED:  # evenly spaced ranks: no draw is needed, and the shape is kept
            losses = losses[torch.linspace(0, len(losses) - 1, _FITTED, dtype=torch.float64).round().long()]
        mixture = fit_two_gaussians(losses.cpu().numpy())
        unknown = torch.full_like(state.value("mixture"), torch.nan)
        state.set_value("mixture", unknown if mixture is None else torch.tensor(mixture, dtype=torch.float64))
