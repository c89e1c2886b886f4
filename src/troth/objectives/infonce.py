"""The contrastive loss of CLIP."""

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
class InfoNCE(Objective):
    """Symmetric cross-entropy over the batch: each image picks its caption, each caption its image.

    .. code-block:: text

        loss_i = 1/2 [ log sum_j exp(l_ij) - l_ii ]  +  1/2 [ log sum_j exp(l_ji) - l_ii ]        (nats)
        l_ij   = scale * similarity(image_i, text_j)

    Every pair of the batch is taken for the truth and every other caption for a mistake: a wrong pair pulls as hard as
    its loss is large, which is what the other objectives of this package exist to mend.

    With ``known_matches`` or ``label_smoothing`` the target ``l_ii`` becomes ``sum_j t_ij l_ij``:

    .. code-block:: text

        t_ij = (1 - label_smoothing) m_ij / sum_k m_ik + label_smoothing / K

    where ``m`` are the known matches of the batch (``Pairs.matches``: in training, captions that are equal) and ``K``
    counts the columns that are not left out. The loss of pair ``i`` is multiplied by ``Pairs.weight``, where given.

    Source: Radford et al. 2021, figure 3; the two directions are averaged, as in open_clip. Several positives:
    Khosla et al. 2020, "Supervised contrastive learning", equation 2 (the mean outside the logarithm).

    Attributes:
        known_matches: what captions known to fit too are taken for: ``negative`` (the source), ``ignore`` (known false
            negatives, left out of the sums), ``positive`` (they share the target by their degrees).
        label_smoothing: how much of the target is spread evenly over the batch.
    """

    kind: Literal["infonce"] = field(default="infonce", kw_only=True)
    known_matches: KnownMatches = "negative"
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    about: ClassVar[About] = About(
        equation="log Σⱼ exp(lᵢⱼ) − lᵢᵢ, both ways, halved",
        inputs="optionally known matches, per-pair weights",
        state="nothing",
        cost="4 products",
        when="pairs you trust; the baseline of everything",
        relation="softplus of the log-sum of the negatives' margins",
        citation="Radford et al., Learning transferable visual models from natural language supervision, 2021",
    )

    def __call__(self, pairs: Pairs, state: State) -> Float[Tensor, " B"]:
        """Return ``(B,)`` losses in nats."""
        if self.known_matches == "negative" and self.label_smoothing == 0:
            surprise = pairs.cross_entropy()
        else:
            surprise = pairs.target_cross_entropy(self.known_matches, self.label_smoothing)
        return pairs.weighted(0.5 * (surprise.image + surprise.text))
