"""DeCL: contrastive learning whose partition function is an auxiliary variable with a memory."""

from __future__ import annotations

import math
from dataclasses import field
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from troth.draws import SampleDraws
from troth.objectives.base import About, Objective
from troth.similarity import Pairs
from troth.state import State
from troth.types import STRICT


@dataclass(frozen=True, config=STRICT)
class DeCL(Objective):
    """The logarithm of the partition sum replaced by the sum itself times a remembered estimate of its inverse.

    .. code-block:: text

        u_i    ~ Ga(a_u, b_u + sum_j exp(l_ij))                  a draw for each pair, direction and step
        u_i   <- keep u_i(before) + (1 - keep) u_i               remembered by sample id, in log space
        loss_i = -l_ii + sum_j u_i exp(l_ij)                     u held fixed; both directions, averaged

    Integrating ``exp(-u Z)`` over ``u`` gives ``1 / Z``: without memory the expected gradient is InfoNCE's at
    ``a_u = 1``. Only the memory changes it: ``u_i`` then stands for the pair's partition function over many batches,
    a close relative of :class:`~troth.objectives.global_infonce.GlobalInfoNCE`, which averages the sums and not their
    inverses.

    The value is no measure of progress (it is near ``1 - l_ii`` whatever is learned); InfoNCE's is logged beside it. A
    stale ``u`` under a growing scale would make ``u_i exp(l_ij)`` explode: the product ``u_i sum_j exp(l_ij)``, 1 when
    ``u`` is exact, is held at ``clip`` at most.

    Source: Chen et al. 2022, "Why do we need large batchsizes in contrastive learning? A gradient-bias perspective", as
    "Learning multi-modal representation alignments from noisy data-pairs" describes it, whose baseline it is: sampler,
    prior and memory from there, the loss reconstructed from the augmented posterior.

    Attributes:
        keep: how much of the remembered ``u`` stays at each visit; no value is given in the papers. 0: no memory.
        a_u: shape of the prior of ``u``; must be 1 for an unbiased gradient.
        b_u: rate of the prior of ``u``.
        draw: ``sample`` draws ``u``; ``mean`` takes its mean.
        clip: the largest ``u_i sum_j exp(l_ij)``.
    """

    kind: Literal["decl"] = field(default="decl", kw_only=True)
    keep: Annotated[float, Field(ge=0, lt=1)] = 0.9
    a_u: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    b_u: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    draw: Literal["sample", "mean"] = "sample"
    clip: Annotated[float, Field(ge=1)] = 10.0
    about: ClassVar[About] = About(
        equation="−lᵢᵢ + Σⱼ uᵢ exp(lᵢⱼ), u fixed, uᵢ ~ Ga(a_u, b_u + Σⱼ exp(lᵢⱼ)) averaged over visits",
        inputs="sample ids",
        state="log u of each pair, both ways",
        cost="4 products",
        when="small batches that should see a larger one's partition function",
        relation="keep = 0: infonce's gradient in expectation; global_infonce averages Z, this 1/Z",
        citation="Chen et al., Why do we need large batchsizes in contrastive learning?, 2022",
    )

    def prepare(self, state: State) -> None:
        """Remember ``log u`` of each pair, for both directions."""
        state.declare("log_u_image")
        state.declare("log_u_text")

    def __call__(self, pairs: Pairs, state: State) -> Float[Tensor, " B"]:
        """Return ``(B,)`` losses."""
        partition = pairs.log_partition()
        positive = pairs.positive_logits()
        ids, clock = pairs.memory_ids(), state.clock
        draws = SampleDraws.from_ids(clock.seed, clock.step, f"{state.path}decl", ids).log_gamma(self.a_u)
        losses, surprise = [], []
        for name, log_sum, own, draw in zip(("image", "text"), partition, positive, draws, strict=True):
            log_u = self._log_u(log_sum.detach(), draw.to(log_sum))
            log_u = state.log_average(f"log_u_{name}", ids, log_u, self.keep)
            log_u = torch.minimum(log_u, math.log(self.clip) - log_sum.detach())
            losses.append((log_sum + log_u).exp() - own)
            surprise.append((log_sum - own).detach())
        state.note("infonce", 0.5 * (surprise[0] + surprise[1]))
        return 0.5 * (losses[0] + losses[1])

    def _log_u(self, log_sum: Tensor, draw: Tensor) -> Tensor:
        if self.draw == "mean":
            draw = torch.full_like(log_sum, math.log(self.a_u))
        rate = log_sum if self.b_u == 0 else torch.logaddexp(log_sum, log_sum.new_tensor(math.log(self.b_u)))
        return draw - rate
