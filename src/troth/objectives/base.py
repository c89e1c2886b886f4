"""What every objective offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

from jaxtyping import Float
from torch import Tensor

from troth.similarity import Pairs
from troth.state import State


class About(NamedTuple):
    """One objective's row in the table of the documentation, which is made from these.

    Attributes:
        equation: the loss of pair ``i``, in one line.
        inputs: what it needs beside the embeddings and the scale.
        state: what it remembers between batches.
        cost: products of ``B x N x D`` (forward + backward) and anything else that scales with ``B x N``.
        when: when to use it.
        relation: what it becomes at the ends of its settings, or what it is built on.
        citation: the work it is from.
    """

    equation: str
    inputs: str
    state: str
    cost: str
    when: str
    relation: str
    citation: str


class Objective(ABC):
    """A frozen dataclass that is its own configuration, and computes one loss a pair.

    The loop takes the one mean; weighting, auditing and logging work on the losses of single pairs. Subclasses have a
    ``kind``, their name in recipes.
    """

    about: ClassVar[About]

    @property
    def needs_bias(self) -> bool:
        """Whether the logits need a learned bias."""
        return False

    @property
    def needs_teacher(self) -> bool:
        """Whether the pairs must carry a teacher's image features."""
        return False

    @property
    def needs_judge(self) -> bool:
        """Whether the pairs must carry a judge's points of images and captions."""
        return False

    @property
    def needs_prototypes(self) -> bool:
        """Whether the run needs episodes, whose clusters the pairs must carry."""
        return False

    @property
    def needs_external(self) -> bool:
        """Whether the episodes need an external teacher."""
        return False

    def prepare(self, state: State) -> None:
        """Declare what is remembered about each pair: nothing. Called once before training and after a resume."""
        return

    @abstractmethod
    def __call__(self, pairs: Pairs, state: State) -> Float[Tensor, " B"]:
        """Return ``(B,)`` losses in nats, one for each of this rank's pairs, not reduced."""
