"""The Euclidean space with the negative distance."""

from __future__ import annotations

from dataclasses import field
from typing import Literal

import torch
from jaxtyping import Float
from pydantic.dataclasses import dataclass
from torch import Tensor

from troth.geometry.distances import distances, distances_gradient
from troth.geometry.points import at_least_float32, by_hand, check_widths
from troth.types import STRICT


@dataclass(frozen=True, config=STRICT)
class Euclidean:
    """Vectors of any length compared by their negative distance, not squared.

    .. code-block:: text

        project(v)       = v
        similarity(u, v) = -||u - v||_2           in (-inf, 0], in the features' own unit

    The distance of two points keeps its digits in float32 however close they are (:mod:`troth.geometry.distances`).
    Coincident points get the gradient zero.

    Source: "Design of the topology for contrastive visual-textual alignment" (submission to TMLR), section 3.2: the
    reference configuration ii), R^d endowed with the l2 distance.
    """

    kind: Literal["euclidean"] = field(default="euclidean", kw_only=True)

    @property
    def num_spheres(self) -> int:
        """One: there is no sphere to count."""
        return 1

    def project(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """Return the features as they are; half precisions are raised to float32, float64 is kept."""
        return at_least_float32(features)

    def similarity(self, rows: Float[Tensor, "b D"], columns: Float[Tensor, "N D"]) -> Float[Tensor, "b N"]:
        """Return the negative distance of every row to every column."""
        check_widths(rows, columns)
        return by_hand(rows, columns, lambda u, v: distances(u, v).neg_(), self.similarity_gradient)

    def paired_similarity(self, rows: Float[Tensor, "B D"], columns: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
        """Return the negative distance of row ``i`` to column ``i``."""
        check_widths(rows, columns)
        distance: Tensor = torch.linalg.vector_norm(rows - columns, dim=-1)
        return -distance

    def similarity_gradient(
        self,
        gradient: Float[Tensor, "b N"],
        rows: Float[Tensor, "b D"],
        columns: Float[Tensor, "N D"],
    ) -> tuple[Float[Tensor, "b D"], Float[Tensor, "N D"]]:
        """Pull ``gradient`` back: ``d similarity_ij / d u_i = (v_j - u_i) / ||u_i - v_j||``, 0 where they coincide."""
        row_gradient, column_gradient = distances_gradient(gradient, rows, columns)
        return row_gradient.neg_(), column_gradient.neg_()

    def views(self) -> None:
        """Return None: a distance is symmetric."""
