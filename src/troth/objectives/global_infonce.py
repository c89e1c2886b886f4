"""InfoNCE against the negatives of the whole data set, by a moving average for each pair."""

from __future__ import annotations

import math
from dataclasses import field
from typing import Annotated, ClassVar, Literal

from jaxtyping import Float
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from troth.objectives.base import About, Objective
from troth.similarity import Pairs
from troth.state import State
from troth.types import STRICT


@dataclass(frozen=True, config=STRICT)
class GlobalInfoNCE(Objective):
    """The contrastive loss over all data, its inner sum tracked by one number for each pair and direction.

    .. code-block:: text

        F       = mean_i log E_j exp(l_ij - l_ii)                          over the whole data set
        g_i     = 1/(N - 1) sum_{j != i} exp(l_ij - l_ii)                  in this batch
        u_i    <- keep u_i(before) + (1 - keep) g_i                        remembered by sample id, in log space
        d F    ~= mean_i  1/u_i  d g_i                                     both directions, averaged

    The gradient's error does not depend on the batch size any more but on how fast ``u`` follows. The value returned is
    ``log u_i``, the estimate of the pair's term of ``F`` (in nats; negative where a pair fits well); its gradient is
    the one above.

    Source: Yuan et al. 2022, "Provable stochastic optimization for global contrastive learning: small batch does not
    harm performance" (SogCLR), algorithm 1, in its bimodal form; LibAUC's ``GCLoss(mode="bimodal")`` and FastCLIP use
    it. LibAUC's gradient is ours times ``(N - 1) / scale``: it divides ``u`` but not the sum by ``N - 1``, and leaves
    the logits in cosines. Its ``gamma`` is ``1 - keep``.

    Attributes:
        keep: how much of the remembered ``u`` stays at each visit; LibAUC's default is 0.1.
    """

    kind: Literal["global_infonce"] = field(default="global_infonce", kw_only=True)
    keep: Annotated[float, Field(ge=0, lt=1)] = 0.1
    about: ClassVar[About] = About(
        equation="log uᵢ with gradient dgᵢ/uᵢ; gᵢ = mean over negatives of exp(lᵢⱼ − lᵢᵢ), u its average over visits",
        inputs="sample ids",
        state="log u of each pair, both ways",
        cost="4 products",
        when="batches too small for their negatives to stand for the data",
        relation="keep = 0: infonce without the positive in its sum (DCL)",
        citation="Yuan et al., Provable stochastic optimization for global contrastive learning, 2022",
    )

    def prepare(self, state: State) -> None:
        """Remember ``log u`` of each pair, for both directions."""
        state.declare("log_u_image")
        state.declare("log_u_text")

    def __call__(self, pairs: Pairs, state: State) -> Float[Tensor, " B"]:
        """Return ``(B,)`` values ``log u``, with SogCLR's gradient."""
        ids, losses = pairs.memory_ids(), []
        for name, log_sum in zip(("image", "text"), pairs.log_negatives(), strict=True):
            log_g = log_sum - math.log(pairs.num_pairs - 1)
            log_u = state.log_average(f"log_u_{name}", ids, log_g.detach(), self.keep)
            slope = (log_g - log_u).exp()
            losses.append(log_u + (slope - slope.detach()))
        return 0.5 * (losses[0] + losses[1])
