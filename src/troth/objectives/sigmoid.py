"""The pairwise sigmoid loss of SigLIP."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, ClassVar, Literal

from jaxtyping import Float
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from troth.objectives.base import About, Objective
from troth.similarity import KnownMatches, Pairs
from troth.state import State
from troth.types import STRICT


@dataclass(frozen=True, config=STRICT)
class Sigmoid(Objective):
    """Every image-caption combination is a yes-or-no question of its own.

    .. code-block:: text

        loss_i = 1/2 sum_j [ log(1 + exp(-z_ij l_ij)) + log(1 + exp(-z_ji l_ji)) ]                (nats)
        l_ij   = scale * similarity(image_i, text_j) + bias,      z_ij = 1 if i = j else -1

    The paper writes the sum over all ``i, j`` divided by the batch size. Which pair owns the term ``(i, j)`` is our
    choice: half goes to image ``i``, half to caption ``j``, so that the mean over pairs is the paper's loss and a
    pair's own loss sees both its image and its caption. The loss of pair ``i`` is multiplied by ``Pairs.weight``,
    where given.

    Source: Zhai et al. 2023, "Sigmoid loss for language image pre-training", equation in section 3.2. The learned
    bias starts at -10 and the scale at 10 there.

    Attributes:
        known_matches: what captions known to fit too (``Pairs.matches``) are taken for: ``negative`` (the source),
            ``ignore`` (their questions are not asked), ``positive`` (answered yes, to their degree).
        label_smoothing: every answer is moved towards a half by half of this.
    """

    kind: Literal["sigmoid"] = field(default="sigmoid", kw_only=True)
    known_matches: KnownMatches = "negative"
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    about: ClassVar[About] = About(
        equation="½ Σⱼ [log(1 + exp(−zᵢⱼ lᵢⱼ)) + log(1 + exp(−zⱼᵢ lⱼᵢ))]",
        inputs="a learned bias; optionally known matches, per-pair weights",
        state="nothing",
        cost="4 products",
        when="small batches; each combination judged on its own",
        relation="no softmax couples the combinations",
        citation="Zhai et al., Sigmoid loss for language image pre-training, 2023",
    )

    @property
    def needs_bias(self) -> bool:
        """Yes: the negatives outnumber the positives by far."""
        return True

    def __call__(self, pairs: Pairs, state: State) -> Float[Tensor, " B"]:
        """Return ``(B,)`` losses in nats."""
        sums = pairs.binary_cross_entropy(self.known_matches, self.label_smoothing)
        return pairs.weighted(0.5 * (sums.image + sums.text))
