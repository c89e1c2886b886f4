"""The contrastive loss of CLIP."""

from __future__ import annotations

from typing import ClassVar, Literal

from jaxtyping import Float
from pydantic.dataclasses import dataclass
from torch import Tensor

from troth.similarity import Pairs
from troth.state import State
from troth.types import STRICT


@dataclass(frozen=True, config=STRICT)
class InfoNCE:
    """Symmetric cross-entropy over the batch: each image picks its caption, each caption its image.

    .. code-block:: text

        loss_i = 1/2 [ log sum_j exp(l_ij) - l_ii ]  +  1/2 [ log sum_j exp(l_ji) - l_ii ]        (nats)
        l_ij   = scale * similarity(image_i, text_j)

    Every pair of the batch is taken for the truth and every other caption for a mistake: a wrong pair pulls as hard as
    its loss is large, which is what the other objectives of this package exist to mend.

    Source: Radford et al. 2021, figure 3; the two directions are averaged, as in open_clip.
    """

    kind: Literal["infonce"] = "infonce"
    needs_bias: ClassVar[bool] = False
    citation: ClassVar[str] = (
        "Radford et al., Learning transferable visual models from natural language supervision, 2021"
    )

    def prepare(self, state: State) -> None:
        """Remember nothing."""

    def __call__(self, pairs: Pairs, state: State) -> Float[Tensor, " B"]:
        """Return ``(B,)`` losses in nats."""
        surprise = pairs.cross_entropy()
        return 0.5 * (surprise.image + surprise.text)
