"""Targets that a frozen teacher of both modalities gives every image and caption, whatever they are paired with."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, ClassVar, Literal

from jaxtyping import Float
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from troth.errors import UserError
from troth.objectives.base import About, Objective
from troth.similarity import Pairs, TwoWay
from troth.state import State
from troth.types import STRICT


@dataclass(frozen=True, config=STRICT)
class Distillation(Objective):
    """Cross-entropy against what a frozen teacher finds alike, over all images and captions of the batch.

    .. code-block:: text

        loss_i = 1/2 [ log sum_j exp(l_ij) - sum_j q_ij l_ij ] + 1/2 [ log sum_j exp(l_ji) - sum_j r_ij l_ji ]    (nats)
        q_ij   = softmax_j( sharpness <u~_i, v~_j> )         u~ the teacher's unit image points, v~ its captions
        r_ij   = softmax_j( sharpness <u~_j, v~_i> )

    The given pairing takes no part in it: the image and the caption of a wrong pair are as good here as those of a
    right one, and each finds whatever in the batch the teacher would give it. It is meant beside a contrastive loss
    whose pairs are weighted by the same judge: ``Sum(((1.0, Reweighted(InfoNCE(), by=GivenWeights())),
    (1.0, Distillation())))``. The teacher is the recipe's ``[judge]`` (:mod:`troth.judge`).

    Source: knowledge distillation (Hinton et al. 2015, "Distilling the knowledge in a neural network") applied to the
    rows and columns of the contrastive softmax, as in Yang et al. 2024, "CLIP-KD" (contrastive relational
    distillation); here without a temperature on the student, whose scale is learned.

    Attributes:
        sharpness: multiplies the teacher's cosines; the larger, the fewer captions share the target.
    """

    kind: Literal["distillation"] = field(default="distillation", kw_only=True)
    sharpness: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 20.0

    about: ClassVar[About] = About(
        equation="log Σⱼ exp(lᵢⱼ) − Σⱼ qᵢⱼ lᵢⱼ, qᵢ = softmaxⱼ(sharpness ⟨ũᵢ, ṽⱼ⟩), both ways, halved",
        inputs="a frozen teacher's points of images and captions",
        state="nothing",
        cost="6 products",
        when="beside a weighted loss: wrong pairs still teach what their image and their caption are like",
        relation="soft_targets and self_distillation, with the beliefs of a teacher in place of the model's own",
        citation="Hinton et al., Distilling the knowledge in a neural network, 2015; Yang et al., CLIP-KD, 2024",
    )

    @property
    def needs_judge(self) -> bool:
        """A frozen teacher's points of both modalities."""
        return True

    def __call__(self, pairs: Pairs, state: State) -> Float[Tensor, " B"]:
        """Return ``(B,)`` losses in nats.

        Raises:
            UserError: if the pairs come without a teacher's points.
        """
        points_of_teacher(pairs, self.kind)
        surprise = pairs.soft_cross_entropy(pairs.teacher_cosines(self.sharpness), 1.0)
        return 0.5 * (surprise.image + surprise.text)


def points_of_teacher(pairs: Pairs, kind: str) -> TwoWay:
    """Return ``(B, r)`` unit points of images and captions; a UserError that names ``kind`` if there are none."""
    if pairs.teacher_points is None:
        raise UserError(
            f"{kind} learns from a teacher of images and captions, and there is none",
            where="objective",
            remedy=f"add a [judge] section to the recipe, or leave {kind} out",
        )
    return pairs.teacher_points
