"""What a reference loop is given."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tests.geometry import references
from troth.geometry import FILIP, Geometry, Oblique, Sphere
from troth.similarity import PrototypePairs, TwoWay
from troth.state import Clock
from troth.types import Side


def product(u: Tensor, v: Tensor) -> Tensor:
    """The cosine of two points of the sphere, which are not normalised again: slopes off the sphere count too."""
    return (u * v).sum()


def loop(geometry: Geometry, side: Side) -> Callable[[Tensor, Tensor], Tensor]:
    """How an image and a caption are compared for the losses of one side, as a loop over the equation."""
    if isinstance(geometry, Sphere):
        return product
    if isinstance(geometry, Oblique):
        return references.oblique(geometry.sub_dim, geometry.distance)
    if isinstance(geometry, FILIP):
        return references.filip(geometry.sub_dim, side is Side.IMAGE)
    assert geometry.kind == "euclidean"
    return references.euclidean


@dataclass
class BothWays:
    """A matrix of images and captions as each side's losses have it: ``[i]`` is image i's row, ``[:, i]`` caption i's
    column. The two matrices differ where the geometry's directions do.
    """

    image: Tensor
    text: Tensor

    def __getitem__(self, at: int | tuple[slice, int]) -> Tensor:
        if isinstance(at, int):
            return self.image[at]
        assert at[0] == slice(None), "whose entry? take a row or a column first"
        return self.text[:, at[1]]


@dataclass
class Case:
    """One batch of a single process, as an objective and its reference both see it.

    ``memory`` is what a reference remembers between calls, by name and sample id; the objective's is its State.
    """

    objective: Any
    image: Tensor
    text: Tensor
    scale: Tensor
    bias: Tensor | None = None
    index: Tensor | None = None
    matches: Tensor | None = None
    weight: Tensor | None = None
    teacher_image: Tensor | None = None
    teacher_points: TwoWay | None = None
    prototypes: PrototypePairs | None = None
    geometry: Geometry = field(default_factory=Sphere)
    clock: Clock = field(default_factory=Clock)
    memory: dict[str, dict[int, Tensor]] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return len(self.image)

    def similarity(self, i: int, j: int, side: Side = Side.IMAGE) -> Tensor:
        """The unscaled similarity of image ``i`` and caption ``j``."""
        return loop(self.geometry, side)(self.image[i], self.text[j])

    def similarities(self) -> BothWays:
        everyone, differ = range(self.size), isinstance(self.geometry, FILIP)
        matrices = [
            torch.stack([torch.stack([self.similarity(i, j, side) for j in everyone]) for i in everyone])
            for side in ((Side.IMAGE, Side.TEXT) if differ else (Side.IMAGE,))
        ]
        return BothWays(matrices[0], matrices[-1])

    def logits(self) -> BothWays:
        unscaled, bias = self.similarities(), 0 if self.bias is None else self.bias
        return BothWays(self.scale * unscaled.image + bias, self.scale * unscaled.text + bias)

    def id(self, i: int) -> int:
        return i if self.index is None else int(self.index[i])
