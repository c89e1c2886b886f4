"""The oblique manifold: a product of unit spheres."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from troth.errors import UserError
from troth.geometry.distances import angles, angles_gradient
from troth.geometry.points import at_least_float32, by_hand, check_widths, unit
from troth.types import STRICT


@dataclass(frozen=True, config=STRICT)
class Oblique:
    """``m`` unit vectors of ``n`` dimensions each, compared sphere by sphere.

    .. code-block:: text

        project(v)       = v seen as (m, n), each row divided by its length, flattened back to m n dimensions
        similarity(u, v) = sum_k <u_k, v_k>                      in [-m, m]             "inner_product"
                         = -sqrt( sum_k arccos(<u_k, v_k>)^2 )   in [-sqrt(m) pi, 0]    "geodesic", radians
                         = -sum_k arccos(<u_k, v_k>)             in [-m pi, 0]          "geodesic_sum", radians

    The paper's section 3.2 defines the first geodesic, the product manifold's own distance (the default); its table 1
    prints the range ``[0, m pi]``, which is that of the second. The inner product is one matrix product of the
    flattened points. The geodesics form the angles of one sphere at a time: ``m`` products of width ``n``, and memory
    ``O(b N)``, not ``O(b N m)``.

    No cosine is clamped: a clamp at ``1 - 1e-6`` puts a floor of 1.4e-3 under every angle and cuts the gradient there.
    Near 0 and pi the angle is taken from the difference and the sum of the two unit vectors, which keeps all digits
    (:func:`troth.geometry.distances.angles`): equal vectors are at exactly 0, opposite ones at pi. The derivative of
    an angle is a unit tangent vector wherever there is one; at 0 and pi, where no direction is the steepest, it is
    zero, and a zero sub-vector, at pi / 2 from everything, passes no gradient back through :meth:`project`.

    Attributes:
        sub_dim: ``n``, dimensions of a sphere's vectors. With ``num_spheres`` the default is the paper's Multi(32, 16).
        num_spheres: ``m``; ``sub_dim * num_spheres`` must be the towers' number of dimensions.
        distance: how two points are compared.

    Source: "Design of the topology for contrastive visual-textual alignment" (submission to TMLR), sections 3.1 and
    3.2. Multi(n, m) and Ob(n, m) in its tables are ``sub_dim = n, num_spheres = m``.
    """

    kind: Literal["oblique"] = field(default="oblique", kw_only=True)
    sub_dim: Annotated[int, Field(gt=0)] = 32
    num_spheres: Annotated[int, Field(gt=0)] = 16
    distance: Literal["inner_product", "geodesic", "geodesic_sum"] = "inner_product"

    def project(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """Normalise every sub-vector to unit length; half precisions are raised to float32, float64 is kept.

        Raises:
            UserError: if ``D`` is not ``sub_dim * num_spheres``.
        """
        return unit(self._spheres(at_least_float32(features))).flatten(-2)

    def similarity(self, rows: Float[Tensor, "b D"], columns: Float[Tensor, "N D"]) -> Float[Tensor, "b N"]:
        """Compare every row with every column."""
        check_widths(rows, columns)
        if self.distance == "inner_product":
            return rows @ columns.T
        return by_hand(rows, columns, lambda u, v: self._geodesic(u, v).neg_(), self.similarity_gradient)

    def paired_similarity(self, rows: Float[Tensor, "B D"], columns: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
        """Compare row ``i`` with column ``i``."""
        check_widths(rows, columns)
        if self.distance == "inner_product":
            return (rows * columns).sum(dim=-1)
        first, second = self._spheres(rows), self._spheres(columns)
        # Twice the arctangent of |u - v| / |u + v| is exact at both ends (Kahan) and differentiable as it stands.
        apart = torch.linalg.vector_norm(first - second, dim=-1)
        together = torch.linalg.vector_norm(first + second, dim=-1)
        without_direction = (apart == 0) & (together == 0)
        angle = 2 * torch.atan2(apart.masked_fill(without_direction, 1.0), together.masked_fill(without_direction, 1.0))
        distance: Tensor = (
            angle.sum(dim=-1) if self.distance == "geodesic_sum" else torch.linalg.vector_norm(angle, dim=-1)
        )
        return -distance

    def similarity_gradient(
        self,
        gradient: Float[Tensor, "b N"],
        rows: Float[Tensor, "b D"],
        columns: Float[Tensor, "N D"],
    ) -> tuple[Float[Tensor, "b D"], Float[Tensor, "N D"]]:
        """Pull ``gradient`` back.

        .. code-block:: text

            inner product:  d similarity / d u_k = v_k
            geodesics:      d arccos <u_k, v_k> / d u_k = -(v_k - <u_k, v_k> u_k) / sin(angle_k)     0 if sin = 0

        The geodesics' gradients are tangent to the spheres: the part along ``u_k``, which :meth:`project` removes, is
        not there.
        """
        if self.distance == "inner_product":
            return gradient @ columns, gradient.T @ rows
        first, second = self._spheres(rows), self._spheres(columns)
        row_gradient, column_gradient = torch.empty_like(first), torch.empty_like(second)
        if self.distance == "geodesic":
            length = self._geodesic(rows, columns)
            gradient = (gradient / length).masked_fill_(length == 0, 0.0)
        for k in range(self.num_spheres):
            u, v = first[:, k], second[:, k]
            # d -sqrt(sum_k angle_k^2) / d angle_k = -angle_k / sqrt(...)
            pull = gradient * angles(u, v) if self.distance == "geodesic" else gradient
            row_gradient[:, k], column_gradient[:, k] = angles_gradient(-pull, u, v)
        return row_gradient.flatten(-2), column_gradient.flatten(-2)

    def views(self) -> None:
        """Return None: every distance here is symmetric."""

    def _geodesic(self, rows: Tensor, columns: Tensor) -> Float[Tensor, "b N"]:
        first, second = self._spheres(rows), self._spheres(columns)
        total = rows.new_zeros(len(rows), len(columns))
        for k in range(self.num_spheres):
            angle = angles(first[:, k], second[:, k])
            if self.distance == "geodesic":
                total.addcmul_(angle, angle)
            else:
                total.add_(angle)
        return total.sqrt_() if self.distance == "geodesic" else total

    def _spheres(self, features: Tensor) -> Float[Tensor, "B m n"]:
        dims = features.shape[-1]
        if dims != self.sub_dim * self.num_spheres:
            fits = dims % self.sub_dim == 0 and dims > 0
            remedy = f"set geometry.num_spheres = {dims // self.sub_dim}" if fits else "change geometry.sub_dim"
            raise UserError(
                f"{self.num_spheres} spheres of {self.sub_dim} dimensions need features of "
                f"{self.num_spheres * self.sub_dim} dimensions, and the towers give {dims}",
                where="geometry.num_spheres",
                remedy=f"{remedy}, or the towers' width to {self.num_spheres * self.sub_dim}",
            )
        return features.reshape(*features.shape[:-1], self.num_spheres, self.sub_dim)
