"""Targets softened by how alike the samples are within each modality."""

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
class SoftTargets(Objective):
    """Cross-entropy against a target shared among captions whose images look like this one.

    .. code-block:: text

        loss_i = 1/2 [ log sum_j exp(l_ij) - sum_j t_ij l_ij ] + 1/2 [ log sum_j exp(l_ji) - sum_j v_ij l_ji ]    (nats)
        t_ij   = (1 - share) [i = j] + share softmax_j( affinity_scale <I_i, I_j> )           I unit images, held fixed
        v_ij   = (1 - share) [i = j] + share softmax_j( affinity_scale <T_i, T_j> )           T unit captions

    Captions of alike images are no longer pushed away: false negatives share the target.

    Source: Gao et al. 2024, "SoftCLIP: softer cross-modal alignment makes CLIP stronger", equations 5 to 7, in its
    plain form: the affinities are the model's own embeddings', not those of detected regions, and its relaxation of
    the negatives is left out.

    Attributes:
        share: how much of the target is soft.
        affinity_scale: the multiplier of the affinities before their softmax; larger is sharper.
    """

    kind: Literal["soft_targets"] = field(default="soft_targets", kw_only=True)
    share: Annotated[float, Field(ge=0, le=1)] = 0.3
    affinity_scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 20.0
    about: ClassVar[About] = About(
        equation="log Σⱼ exp(lᵢⱼ) − Σⱼ tᵢⱼ lᵢⱼ, tᵢ softened by intra-modal affinities, both ways, halved",
        inputs="nothing more",
        state="nothing",
        cost="8 products",
        when="several captions of the batch fit an image",
        relation="share = 0: infonce",
        citation="Gao et al., SoftCLIP: softer cross-modal alignment makes CLIP stronger, 2024",
    )

    def __call__(self, pairs: Pairs, state: State) -> Float[Tensor, " B"]:
        """Return ``(B,)`` losses in nats."""
        surprise = pairs.soft_cross_entropy(pairs.affinities(self.affinity_scale), self.share)
        return 0.5 * (surprise.image + surprise.text)
