"""What every weight of a reweighted objective offers, and the simplest: weights that came with the data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

from jaxtyping import Float
from pydantic.dataclasses import dataclass
from torch import Tensor

from troth.errors import UserError
from troth.similarity import Pairs
from troth.state import State
from troth.types import STRICT


class Weight(ABC):
    """A frozen dataclass that is its own configuration, and says how much each pair's loss counts.

    Subclasses have a ``kind``, their name in recipes.
    """

    def prepare(self, state: State) -> None:
        """Declare what is remembered about each pair: nothing. Called once before training and after a resume."""
        return

    @abstractmethod
    def __call__(self, pairs: Pairs, losses: Float[Tensor, " B"], state: State) -> Float[Tensor, " B"]:
        """Return ``(B,)`` weights, not negative, through which no gradient flows.

        Args:
            pairs: this rank's pairs.
            losses: what the reweighted objective says of them, in nats, detached.
            state: the weight's own scope.
        """


@dataclass(frozen=True, config=STRICT)
class GivenWeights(Weight):
    """The weights that the data give the pairs (``Pairs.weight``), as they are, for objectives that pass over them."""

    kind: Literal["given"] = "given"

    def __call__(self, pairs: Pairs, losses: Float[Tensor, " B"], state: State) -> Float[Tensor, " B"]:
        """Return ``(B,)`` weights.

        Raises:
            UserError: if the data gives none.
        """
        if pairs.weight is None:
            raise UserError(
                "these pairs carry no weights (or an outer reweighted objective applies them already)",
                where="objective.by",
                remedy="give the data set per-pair weights, or choose another kind of weight, such as clean_posterior",
            )
        return pairs.weight.to(losses)
