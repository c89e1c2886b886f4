"""The unit sphere with the inner product: cosine similarity, CLIP's own geometry."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic.dataclasses import dataclass
from torch import Tensor

from troth.types import STRICT


@dataclass(frozen=True, config=STRICT)
class Sphere:
    """Unit vectors compared by their inner product.

    .. code-block:: text

        project(v)       = v / ||v||_2
        similarity(u, v) = <u, v>                 in [-1, 1], dimensionless

    Source: Radford et al. 2021, "Learning transferable visual models from natural language supervision", section 2.3.
    """

    kind: Literal["sphere"] = "sphere"

    def project(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """Normalise each row to unit length; half precisions are raised to float32 first, float64 is kept."""
        if features.dtype in (torch.float16, torch.bfloat16):
            features = features.float()
        return F.normalize(features, dim=-1)

    def similarity(self, rows: Float[Tensor, "b D"], columns: Float[Tensor, "N D"]) -> Float[Tensor, "b N"]:
        """Return the cosine of every row with every column."""
        return rows @ columns.T

    def paired_similarity(self, rows: Float[Tensor, "B D"], columns: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
        """Return the cosine of row ``i`` with column ``i``."""
        return (rows * columns).sum(dim=-1)

    def similarity_gradient(
        self,
        gradient: Float[Tensor, "b N"],
        rows: Float[Tensor, "b D"],
        columns: Float[Tensor, "N D"],
    ) -> tuple[Float[Tensor, "b D"], Float[Tensor, "N D"]]:
        """Return ``(gradient @ columns, gradient.T @ rows)``."""
        return gradient @ columns, gradient.T @ rows
