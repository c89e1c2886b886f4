"""What every geometry offers."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class Geometry(Protocol):
    """A space for embeddings: how to put features onto it, and how to compare two of its points.

    A geometry knows nothing of the learned scale: logits are ``scale * similarity (+ bias)``, formed elsewhere.

    Where a similarity has a kink (two points at distance zero, two opposite points, a zero vector that has no
    direction) its gradient is the subgradient zero: values and gradients are finite everywhere.
    """

    @property
    def kind(self) -> str:
        """The geometry's name in recipes and cache keys."""
        ...

    @property
    def num_spheres(self) -> int:
        """How many inner products of unit vectors a similarity sums: its range grows with it. 1 for most."""
        ...

    def project(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """Put raw tower features onto the geometry, in at least float32. Points stay where they are."""
        ...

    def similarity(self, rows: Float[Tensor, "b D"], columns: Float[Tensor, "N D"]) -> Float[Tensor, "b N"]:
        """Compare every row with every column; larger is closer. Both are projected points.

        Returns a fresh tensor, which the caller may overwrite. Differentiable once.
        """
        ...

    def paired_similarity(self, rows: Float[Tensor, "B D"], columns: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
        """Compare row ``i`` with column ``i`` only: the diagonal of :meth:`similarity`, to rounding."""
        ...

    def similarity_gradient(
        self,
        gradient: Float[Tensor, "b N"],
        rows: Float[Tensor, "b D"],
        columns: Float[Tensor, "N D"],
    ) -> tuple[Float[Tensor, "b D"], Float[Tensor, "N D"]]:
        """Pull a gradient with respect to :meth:`similarity` back to ``rows`` and ``columns``.

        Written out by each geometry, so that streamed losses need no autograd graph over a block.
        """
        ...

    def views(self) -> tuple[Geometry, Geometry] | None:
        """Return the geometry that compares for the images' losses and the one for the captions', or None.

        None: the similarity is symmetric, and one pass over the matrix serves both directions. In both views rows are
        images and columns captions.
        """
        ...
