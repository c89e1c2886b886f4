"""What every geometry offers."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class Geometry(Protocol):
    """A space for embeddings: how to put features onto it, and how to compare two of its points.

    A geometry knows nothing of the learned scale: logits are ``scale * similarity (+ bias)``, formed elsewhere.
    """

    @property
    def kind(self) -> str:
        """The geometry's name in recipes and cache keys."""
        ...

    def project(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """Put raw tower features onto the geometry, in at least float32."""
        ...

    def similarity(self, rows: Float[Tensor, "b D"], columns: Float[Tensor, "N D"]) -> Float[Tensor, "b N"]:
        """Compare every row with every column; larger is closer. Both are projected points."""
        ...

    def paired_similarity(self, rows: Float[Tensor, "B D"], columns: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
        """Compare row ``i`` with column ``i`` only."""
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
