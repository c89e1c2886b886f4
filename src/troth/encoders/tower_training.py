"""How each tower learns: its part of the learning rate, what of it is locked, low-rank adapters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from troth.types import STRICT

Count = Annotated[int, Field(gt=0)]
TowerSide = Literal["image", "text"]


@dataclass(frozen=True, config=STRICT)
class LoRA:
    """Low-rank adapters (Hu et al., 2022): ``W`` becomes ``W + alpha / rank * B A``, and only ``A`` and ``B`` learn.

    For timm image towers and Hugging Face text towers, through peft (``pip install 'troth[lora]'``).

    Attributes:
        rank: of the adapters.
        alpha: their strength.
        dropout: probability of dropping an input of the adapters in training.
        targets: names (or ends of names) of the layers that get adapters, such as ``["qkv"]`` for a timm vision
            transformer or ``["query", "value"]`` for BERT; None: all linear layers of the tower's trunk.
    """

    rank: Count = 8
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 16.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: Annotated[tuple[str, ...], Field(min_length=1)] | None = None


@dataclass(frozen=True, config=STRICT)
class TowerTraining:
    """How one tower learns.

    Groups of a tower are its embeddings, its blocks (the last one with the norm behind it) and its projection; timm's
    towers say themselves which groups they have, before the projection. See
    :func:`troth.encoders.tower_groups.tower_groups`.

    Attributes:
        learning_rate_factor: of ``train.optimizer.learning_rate``.
        layer_decay: a group with ``d`` groups behind it learns at ``layer_decay ** d`` of that (Clark et al., 2020;
            Bao et al., 2022).
        locked: fix all weights from the start (LiT: Zhai et al., 2022) ...
        unlocked_groups: ... but those of the last so many groups, as open_clip counts them; 1 leaves the projection.
        freeze_batch_norm: keep the running statistics of the (locked) batch norms and use them in training, too.
        lock_after_epochs: the learning rate's cosine ends after so many epochs, and the tower's weights are fixed from
            then on. None: never. The statistics of batch norms go on moving unless ``freeze_batch_norm`` fixes them.
        lora: adapters, beside which the tower's trunk is fixed; None for none.
    """

    learning_rate_factor: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    locked: bool = False
    unlocked_groups: Annotated[int, Field(ge=0)] = 0
    freeze_batch_norm: bool = False
    lock_after_epochs: Count | None = None
    lora: LoRA | None = None

    @model_validator(mode="after")
    def _locks_fit(self) -> TowerTraining:
        if self.unlocked_groups and not self.locked:
            raise ValueError("unlocked_groups counts groups of a locked tower: set locked = true, or leave it out")
        if self.locked and not self.unlocked_groups and self.lock_after_epochs is not None:
            raise ValueError("the tower is locked from the start: leave out locked, or lock_after_epochs")
        if self.locked and self.lora is not None:
            raise ValueError("adapters fix the rest of the trunk already: leave out locked, or lora")
        return self


@dataclass(frozen=True, config=STRICT)
class Towers:
    """How the towers learn, where they differ from the rest of the model or from each other.

    Attributes:
        image: the image tower.
        text: the text tower.
    """

    image: TowerTraining = field(default_factory=TowerTraining)
    text: TowerTraining = field(default_factory=TowerTraining)

    def sides(self) -> Iterator[tuple[TowerSide, TowerTraining]]:
        """Yield each side with its settings, unless they are the defaults, which change nothing."""
        for side, training in (("image", self.image), ("text", self.text)):
            if training != TowerTraining():
                yield side, training  # type: ignore[misc]
