"""Each image and each caption at the place that a frozen teacher of both modalities gives it."""

from __future__ import annotations

from dataclasses import field
from typing import ClassVar, Literal

import torch.nn.functional as F
from jaxtyping import Float
from pydantic.dataclasses import dataclass
from torch import Tensor

from troth.objectives.base import About, Objective
from troth.objectives.distillation import points_of_teacher
from troth.similarity import Pairs
from troth.state import State
from troth.types import STRICT


@dataclass(frozen=True, config=STRICT)
class FeatureDistillation(Objective):
    """How far images and captions are from a frozen teacher's points of them.

    .. code-block:: text

        loss_i = 1/2 (1 - <I_i, u~_i>) + 1/2 (1 - <T_i, v~_i>)      (unit embeddings; u~, v~ the teacher's points)

    Of a teacher with more dimensions than the embeddings, the first ones are taken and brought to unit length; one with
    fewer fills the first of theirs. The judge's (:mod:`troth.judge`) come in the order of their covariance.

    The given pairing takes no part in it, nor does the rest of the batch: where
    :class:`~troth.objectives.distillation.Distillation` compares a softmax over the batch, this says where every point
    lies. It is meant for towers that know less than the teacher.

    Source: feature distillation of Yang et al. 2024, "CLIP-KD: an empirical study of CLIP model distillation" (CVPR):
    ``||I_i - u~_i||^2 + ||T_i - v~_i||^2``, of which this is a quarter; here of unit points, and of a teacher that was
    not trained but solved for.
    """

    kind: Literal["feature_distillation"] = field(default="feature_distillation", kw_only=True)

    about: ClassVar[About] = About(
        equation="½(1 − ⟨Iᵢ, ũᵢ⟩) + ½(1 − ⟨Tᵢ, ṽᵢ⟩), ũ and ṽ a frozen teacher's points",
        inputs="a frozen teacher's points of images and captions",
        state="nothing",
        cost="O(B D)",
        when="towers from scratch beside frozen models that know more: wrong pairs teach as much as right ones",
        relation="distillation, with points in place of a softmax over the batch",
        citation="Yang et al., CLIP-KD: an empirical study of CLIP model distillation, 2024",
    )

    @property
    def needs_judge(self) -> bool:
        """A frozen teacher's points of both modalities."""
        return True

    def __call__(self, pairs: Pairs, state: State) -> Float[Tensor, " B"]:
        """Return ``(B,)`` losses, dimensionless, between 0 and 2.

        Raises:
            UserError: if the pairs come without a teacher's points.
        """
        similarities = []
        for student, teacher in zip(pairs.unit_rows(), points_of_teacher(pairs, self.kind), strict=True):
            dims = min(student.shape[1], teacher.shape[1])
            target = F.normalize(teacher[:, :dims].detach().to(student), dim=-1)
            similarities.append((student[:, :dims] * target).sum(-1))
        return 1 - 0.5 * (similarities[0] + similarities[1])
