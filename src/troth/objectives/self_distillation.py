"""Targets softened by what the model itself believes, more and more as it learns."""

from __future__ import annotations

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
class SelfDistillation(Objective):
    """Cross-entropy against a target that moves from the given pair to the model's own match probabilities.

    .. code-block:: text

        loss_i = 1/2 [ log sum_j exp(l_ij) - sum_j t_ij l_ij ] + the same for captions                  (nats)
        t_ij   = (1 - a) [i = j] + a softmax_j( sharpness l_ji )        swapped: what caption i believes, held fixed
        t_ij   = (1 - a) [i = j] + a softmax_j( sharpness l_ij )        own: what image i believes itself
        a      = share (constant)   or   share * t / T (progressive)

    With ``own`` and ``sharpness = 1`` the gradient is just ``(1 - a)`` times InfoNCE's: nothing is learnt from the
    model's beliefs, which is why ``swapped`` is the default.

    Source: Andonian et al. 2022, "Robust cross-modal representation learning with progressive self-distillation",
    reconstructed: its soft alignments are swapped between the modalities and grow with training; its split of each
    batch into distilled and plain pairs is reduced here to the share ``a`` of every pair's target.

    Attributes:
        share: how much of the target is the model's own belief, at the end of training if progressive.
        targets: whose belief.
        sharpness: multiplies the logits of the target; above 1 it is sharper than the model.
        schedule: ``progressive`` grows the share linearly over the run, ``constant`` does not.
    """

    kind: Literal["self_distillation"] = field(default="self_distillation", kw_only=True)
    share: Annotated[float, Field(ge=0, le=1)] = 0.5
    targets: Literal["swapped", "own"] = "swapped"
    sharpness: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    schedule: Literal["progressive", "constant"] = "progressive"
    about: ClassVar[About] = About(
        equation="log Σⱼ exp(lᵢⱼ) − Σⱼ tᵢⱼ lᵢⱼ, tᵢ softened by the model's own softmax, both ways, halved",
        inputs="how far training is",
        state="nothing",
        cost="6 products (4 with own targets)",
        when="wrong and many-to-many pairs, once the model knows something",
        relation="share = 0: infonce; soft_targets takes its beliefs from within each modality",
        citation="Andonian et al., Robust cross-modal representation learning with progressive self-distillation, 2022",
    )

    def __call__(self, pairs: Pairs, state: State) -> Float[Tensor, " B"]:
        """Return ``(B,)`` losses in nats."""
        share = self.share * state.clock.progress if self.schedule == "progressive" else self.share
        beliefs = pairs.swapped_logits if self.targets == "swapped" else pairs.own_logits
        surprise = pairs.soft_cross_entropy(beliefs(self.sharpness), share)
        return 0.5 * (surprise.image + surprise.text)
