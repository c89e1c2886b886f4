"""The pseudo-affinity mimicking of SaCo: two images are as similar as a frozen teacher finds them."""

from __future__ import annotations

from dataclasses import field
from typing import ClassVar, Literal

import torch.nn.functional as F
from jaxtyping import Float
from pydantic.dataclasses import dataclass
from torch import Tensor

from troth.errors import UserError
from troth.objectives.affinity import AffinityStrategy, Cosine, ramped, trusted
from troth.objectives.base import About, Objective
from troth.similarity import Pairs
from troth.similarity.gram import AffinityDistance, AffinityReduction
from troth.state import State
from troth.types import STRICT


@dataclass(frozen=True, config=STRICT)
class Mimic(Objective):
    """How differently an image sees the other images from how a frozen, well trained model sees them.

    .. code-block:: text

        S^I_ij = <I_i, I_j>        S~_ij = <teacher_i, teacher_j>      (unit embeddings; j over the whole batch)
        loss_i = 1/N sum_j |S^I_ij - S~_ij|                            (mean over i: the mean over the N^2 entries)

    It steadies :class:`~troth.objectives.affinity.Affinity` early in training from scratch, when affinities are noise:
    ``Sum(((1.0, InfoNCE()), (2.5, Affinity()), (2.5, Mimic())))``; weights as explained there. Images only: the source
    found it better so. The teacher's features may have another width; it gets no gradient.

    Source: Wu et al. 2024, "SaCo loss: sample-wise affinity consistency for vision-language pre-training" (CVPR),
    equation 7 (the distance is l1 there), with CLIP ViT-L/14 or DINOv2 as the teacher. Normalised as
    :class:`~troth.objectives.affinity.Affinity`, for the same reason. The teacher should see the same crop as the
    student, so that features computed once fit only training without random augmentation.

    Attributes:
        distance: as :class:`~troth.objectives.affinity.Affinity`.
        reduction: as :class:`~troth.objectives.affinity.Affinity`.
        strategy: as :class:`~troth.objectives.affinity.Affinity`; the mask goes by the cosine of the student's image
            and caption.
        threshold: as :class:`~troth.objectives.affinity.Affinity`.
    """

    kind: Literal["mimic"] = field(default="mimic", kw_only=True)
    distance: AffinityDistance = "l1"
    reduction: AffinityReduction = "mean"
    strategy: AffinityStrategy = "constant"
    threshold: Cosine = 0.2

    about: ClassVar[About] = About(
        equation="1/N Σⱼ |⟨Iᵢ, Iⱼ⟩ − ⟨Ĩᵢ, Ĩⱼ⟩|, Ĩ the teacher's images",
        inputs="a frozen teacher's image features",
        state="nothing",
        cost="l1: 3 products, at most 5 on several ranks; l2, pearson: O(B D²) in float64",
        when="with affinity, training from scratch, where a well trained image model is at hand",
        relation="affinity, with the teacher's images in place of the captions",
        citation="Wu et al., SaCo loss: sample-wise affinity consistency for vision-language pre-training, 2024",
    )

    @property
    def needs_teacher(self) -> bool:
        """A frozen teacher's image features."""
        return True

    def __call__(self, pairs: Pairs, state: State) -> Float[Tensor, " B"]:
        """Return ``(B,)`` losses, dimensionless; between 0 and 2 for l1 with the mean, and for pearson.

        Raises:
            UserError: if the pairs come without a teacher's image features.
        """
        if pairs.teacher_image is None:
            raise UserError(
                "mimic compares images with how a teacher sees them, and there is no teacher",
                where="objective",
                remedy="name a frozen model in the recipe's [teacher], or leave mimic out",
            )
        image, text = pairs.unit_rows()
        teacher = F.normalize(pairs.teacher_image.detach().to(image), dim=-1)
        keep = trusted(image, text, self.strategy, self.threshold)
        return ramped(
            pairs.affinity_distance(image, teacher, self.distance, self.reduction, keep), self.strategy, state
        )
