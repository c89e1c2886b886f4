"""What a reference loop is given."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from troth.state import Clock


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
    clock: Clock = field(default_factory=Clock)
    memory: dict[str, dict[int, Tensor]] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return len(self.image)

    def similarity(self, i: int, j: int) -> Tensor:
        """The unscaled similarity of image ``i`` and caption ``j`` on the sphere."""
        return (self.image[i] * self.text[j]).sum()

    def logit(self, i: int, j: int) -> Tensor:
        value = self.scale * self.similarity(i, j)
        return value if self.bias is None else value + self.bias

    def logits(self) -> Tensor:
        return torch.stack([torch.stack([self.logit(i, j) for j in range(self.size)]) for i in range(self.size)])

    def id(self, i: int) -> int:
        return i if self.index is None else int(self.index[i])
