"""The model's own average as a teacher."""

from __future__ import annotations

from typing import Literal

from pydantic.dataclasses import dataclass

from troth.encoders import DualEncoder
from troth.types import STRICT


@dataclass(frozen=True, config=STRICT)
class MomentumTeacher:
    """The average of the weights (``train.average``) teaches, on the very batch: a momentum encoder.

    Unlike the other teachers it belongs to the training and not to the data: it learns with the model, is saved with
    every checkpoint, and its features are made in each step (:class:`~troth.train.step.TrainStep`), in evaluation mode.
    Costs one more forward pass of the image tower.
    """

    kind: Literal["momentum"] = "momentum"

    def check(self, student: DualEncoder) -> None:
        """Accept any student."""

    def build(self, run: object) -> None:
        """Return None: there is nothing that batches could bring along."""
