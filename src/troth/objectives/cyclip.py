"""The consistency terms of CyCLIP: a triangle of pairs closes the same way round in both modalities."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, ClassVar, Literal

from jaxtyping import Float
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor

from troth.objectives.base import About, Objective
from troth.similarity import Pairs
from troth.state import State
from troth.types import STRICT


@dataclass(frozen=True, config=STRICT)
class CyCLIP(Objective):
    """Squared disagreement of the similarities within the two modalities, and of those across them.

    .. code-block:: text

        loss_i = in_modal    sum_j (<I_i, I_j> - <T_i, T_j>)^2
               + cross_modal sum_j (<I_i, T_j> - <T_i, I_j>)^2         (unit embeddings; j over the whole batch)

    The terms only; CyCLIP is ``Sum(((1.0, InfoNCE()), (1.0, CyCLIP())))``. The mean over pairs is the mean over all
    ``N^2`` entries times ``N``, as in the authors' code, which also divides the learned scale out again and keeps the
    diagonal (0 in both terms).

    Source: Goel et al. 2022, "CyCLIP: cyclic contrastive language-image pretraining" (NeurIPS), section 3, with both
    weights 0.25; the scaling is that of the authors' code. There, the embeddings of other processes carry no gradient;
    here all do.

    Attributes:
        in_modal: weight of the similarities within images against those within captions.
        cross_modal: weight of each image with each caption against the same two pairs' caption and image.
    """

    kind: Literal["cyclip"] = field(default="cyclip", kw_only=True)
    in_modal: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.25
    cross_modal: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.25

    about: ClassVar[About] = About(
        equation="¼ Σⱼ [(⟨Iᵢ, Iⱼ⟩ − ⟨Tᵢ, Tⱼ⟩)² + (⟨Iᵢ, Tⱼ⟩ − ⟨Tᵢ, Iⱼ⟩)²]",
        inputs="nothing more",
        state="nothing",
        cost="O(B D²) in float64",
        when="beside a contrastive loss, where distances should mean the same within and across modalities",
        relation="cross_modal = 0 is a multiple of affinity with l2 and row",
        citation="Goel et al., CyCLIP: cyclic contrastive language-image pretraining, 2022",
    )

    @model_validator(mode="after")
    def _some_weight(self) -> CyCLIP:
        if self.in_modal == 0 and self.cross_modal == 0:
            raise ValueError("in_modal and cross_modal are both 0, which leaves no loss: set at least one above 0")
        return self

    def __call__(self, pairs: Pairs, state: State) -> Float[Tensor, " B"]:
        """Return ``(B,)`` losses, dimensionless."""
        return pairs.cyclic_consistency(self.in_modal, self.cross_modal)
