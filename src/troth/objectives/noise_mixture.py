"""A match probability that admits that some pairs are wrong."""

from __future__ import annotations

import math
from dataclasses import field
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
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
    Hinton 1998): the posterior of each pair's being wrong is remembered by sample id, and ``e`` becomes the mean of all
    that is remembered when an epoch begins.

    Source: the mixture model of uniform label noise (for instance Arazo et al. 2019, "Unsupervised label noise modeling
    and loss correction"), applied to the rows and columns of the contrastive softmax.

    Attributes:
        noise: ``e``, the share of wrong pairs; where it is learnt, its value before anything was seen.
        learn: estimate ``e`` from the posteriors.
        most: the largest ``e`` that learning may reach.
    """

    kind: Literal["noise_mixture"] = field(default="noise_mixture", kw_only=True)
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

    @model_validator(mode="after")
    def _within_reach(self) -> NoiseMixture:
        if self.learn and self.noise > self.most:
            raise ValueError(f"noise ({self.noise:g}) must not exceed most ({self.most:g}), the bound on learning")
        return self

    def prepare(self, state: State) -> None:
        """Remember each pair's posterior of being wrong, and the rate, if the noise rate is learnt."""
        if self.learn:
            state.declare("wrong")
            state.declare_value("rate", torch.tensor(self.noise, dtype=torch.float64))

    def rate(self, state: State) -> float:
        """Return the noise rate in use; learnt, it is estimated anew when an epoch begins."""
        if not self.learn:
            return self.noise
        if state.clock.starts_epoch:
            seen = state.read("wrong")
            seen = seen[~torch.isnan(seen)]
            if len(seen):
                state.set_value("rate", seen.double().mean().clamp(1e-4, self.most))
        return float(state.value("rate"))

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
            state.write("wrong", pairs.memory_ids(), 0.5 * (wrong[0] + wrong[1]))
            state.note("noise", torch.full_like(wrong[0], rate))
        return 0.5 * (losses[0] + losses[1])
