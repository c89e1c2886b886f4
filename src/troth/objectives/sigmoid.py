"""The pairwise sigmoid loss of SigLIP."""

from __future__ import annotations

from typing import ClassVar, Literal

from jaxtyping import Float
from pydantic.dataclasses import dataclass
from torch import Tensor

from troth.similarity import Pairs
from troth.state import State
from troth.types import STRICT


@dataclass(frozen=True, config=STRICT)
class Sigmoid:
    """Every image-caption combination is a yes-or-no question of its own.

    .. code-block:: text

        loss_i = 1/2 sum_j [ log(1 + exp(-z_ij l_ij)) + log(1 + exp(-z_ji l_ji)) ]                (nats)
        l_ij   = scale * similarity(image_i, text_j) + bias,      z_ij = 1 if i = j else -1

    The paper writes the sum over all ``i, j`` divided by the batch size. Which pair owns the term ``(i, j)`` is our
    choice: half goes to image ``i``, half to caption ``j``, so that the mean over pairs is the paper's loss and a
    pair's own loss sees both its image and its caption.

    Source: Zhai et al. 2023, "Sigmoid loss for language image pre-training", equation in section 3.2. The learned
    bias starts at -10 and the scale at 10 there.
    """

    kind: Literal["sigmoid"] = "sigmoid"
    needs_bias: ClassVar[bool] = True
    citation: ClassVar[str] = "Zhai et al., Sigmoid loss for language image pre-training, 2023"

    def prepare(self, state: State) -> None:
        """Remember nothing."""

    def __call__(self, pairs: Pairs, state: State) -> Float[Tensor, " B"]:
        """Return ``(B,)`` losses in nats."""
        sums = pairs.binary_cross_entropy()
        return 0.5 * (sums.image + sums.text)
