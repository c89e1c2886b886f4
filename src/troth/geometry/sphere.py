"""The unit sphere with the inner product: cosine similarity, CLIP's own geometry."""

from __future__ import annotations

from dataclasses import field
from typing import Literal

from jaxtyping import Float
from pydantic.dataclasses import dataclass
from torch import Tensor

from troth.geometry.points import at_least_float32, check_widths, unit
from troth.types import STRICT


@dataclass(frozen=True, config=STRICT)
class Sphere:
    """Unit vectors compared by their inner product.

    .. code-block:: text

        project(v)       = v / ||v||_2
        similarity(u, v) = <u, v>                 in [-1, 1], dimensionless

    A zero vector is projected to zero and passes no gradient back.

    Source: Radford et al. 2021, "Learning transferable visual models from natural language supervision", section 2.3.
    """

    kind: Literal["sphere"] = field(default="sphere", kw_only=True)

    @property
    def num_spheres(self) -> int:
        """One."""
        return 1

    def project(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """Normalise each row to unit length; half precisions are raised to float32 first, float64 is kept."""
        return unit(at_least_float32(features))

    def similarity(self, rows: Float[Tensor, "b D"], columns: Float[Tensor, "N D"]) -> Float[Tensor, "b N"]:
        """Return the cosine of every row with every column."""
        check_widths(rows, columns)
        return rows @ columns.T

    def paired_similarity(self, rows: Float[Tensor, "B D"], columns: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
        """Return the cosine of row ``i`` with column ``i``."""
        check_widths(rows, columns)
        return (rows * columns).sum(dim=-1)

    def similarity_gradient(
        self,
        gradient: Float[Tensor, "b N"],
        rows: Float[Tensor, "b D"],
        columns: Float[Tensor, "N D"],
    ) -> tuple[Float[Tensor, "b D"], Float[Tensor, "N D"]]:
        """Return ``(gradient @ columns, gradient.T @ rows)``."""
        return gradient @ columns, gradient.T @ rows

    def views(self) -> None:
        """Return None: the cosine is symmetric."""
