"""What every objective offers."""

from __future__ import annotations

from typing import Protocol

from jaxtyping import Float
from torch import Tensor

from troth.similarity import Pairs
from troth.state import State


class Objective(Protocol):
    """A frozen dataclass that is its own configuration, and computes one loss a pair.

    The loop takes the one mean; weighting, auditing and logging work on the losses of single pairs.
    """

    @property
    def kind(self) -> str:
        """The objective's name in recipes."""
        ...

    @property
    def needs_bias(self) -> bool:
        """Whether the logits need a learned bias."""
        ...

    def prepare(self, state: State) -> None:
        """Declare what the objective remembers about each pair. Called once before training and after a resume."""
        ...

    def __call__(self, pairs: Pairs, state: State) -> Float[Tensor, " B"]:
        """Return ``(B,)`` losses in nats, one for each of this rank's pairs, not reduced."""
        ...
