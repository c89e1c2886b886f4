"""A match probability that admits that some pairs are wrong."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from troth.objectives.base import About, Objective
from troth.similarity import Pairs
from troth.state import State
from troth.types import STRICT


@dataclass(frozen=True, config=STRICT)
class NoiseMixture(Objective):
    """With probability ``noise`` the given caption was drawn evenly from the batch, else by the softmax.

    .. code-block:: text

        loss_i = -1/2 log[ (1 - e) p_i + e / N ]  -  1/2 log[ (1 - e) r_i + e / N ]                    (nats)
        p_i    = exp(l_ii) / sum_j exp(l_ij),     r_i = exp(l_ii) / sum_j exp(l_ji)

    The gradient is InfoNCE's times the posterior that the pair is right, ``(1 - e) p_i / [(1 - e) p_i + e / N]``, so a
    pair less likely than chance pulls little. With ``learn`` the noise rate is estimated by incremental EM (Neal and
    Hinton 1998): the posterior of each pair's being wrong is remembered by sample id, and ``e`` is the mean of all that
    is remembered.

    Source: the mixture model of uniform label noise (for instance Arazo et al. 2019, "Unsupervised label noise modeling
    and loss correction"), applied to the rows and columns of the contrastive softmax.

    Attributes:
        noise: ``e``, the share of wrong pairs; where it is learnt, its value before anything was seen.
        learn: estimate ``e`` from the posteriors.
        most: the largest ``e`` that learning may reach.
    """

    kind: Literal["noise_mixture"] = "noise_mixture"
    noise: Annotated[float, Field(gt=0, lt=1)] = 0.2
    learn: bool = False
    most: Annotated[float, Field(gt=0, lt=1)] = 0.9
    about: ClassVar[About] = About(
        equation="−log[(1 − e) pᵢ + e/N], both ways, halved",
        inputs="sample ids, to learn e",
        state="with learn: the posterior of each pair's being wrong",
        cost="4 products",
        when="a known or learnable share of captions that belong anywhere",
        relation="e → 0: infonce",
        citation="Arazo et al., Unsupervised label noise modeling and loss correction, 2019",
    )

    def prepare(self, state: State) -> None:
        """Remember each pair's posterior of being wrong, if the noise rate is learnt."""
        if self.learn:
            state.declare("wrong")

    def rate(self, state: State) -> float:
        """Return the noise rate in use."""
        if not self.learn:
            return self.noise
        seen = state.read("wrong")
        seen = seen[~torch.isnan(seen)]
        estimate = float(seen.double().mean()) if len(seen) else self.noise
        return min(max(estimate, 1e-4), self.most)

    def __call__(self, pairs: Pairs, state: State) -> Float[Tensor, " B"]:
        """Return ``(B,)`` losses in nats, at most ``-log(e / N)``."""
        rate = self.rate(state)
        log_right, log_chance = math.log1p(-rate), math.log(rate / pairs.num_pairs)
        losses, wrong = [], []
        for surprise in pairs.cross_entropy():
            likelihood = torch.logaddexp(log_right - surprise, surprise.new_tensor(log_chance))
            losses.append(-likelihood)
            wrong.append((log_chance - likelihood.detach()).exp())
        if self.learn:
            state.write("wrong", pairs.sample_ids(), 0.5 * (wrong[0] + wrong[1]))
        return 0.5 * (losses[0] + losses[1])
