"""The optimiser and the learning rate's course.

The learning rate is a pure function of the step, so that there is no scheduler whose state could be lost on resume.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import nn

from troth.encoders.decay import no_decay
from troth.types import STRICT


@dataclass(frozen=True, config=STRICT)
class OptimizerConfig:
    """AdamW (Loshchilov & Hutter, 2019) as CLIP-style models are trained with it.

    Weight decay leaves out norms, biases and the learned scale (:func:`troth.encoders.decay.no_decay`).

    Attributes:
        learning_rate: the highest learning rate, reached at the end of the warm-up.
        weight_decay: decoupled weight decay; each step shrinks a weight by ``learning rate * weight_decay``.
        betas: how much of the old first and second moments stays at each step.
        eps: added to the root of the second moment.
        gradient_clip: largest global gradient norm (over all parameters); larger gradients are scaled down to it.
            None: no clipping.
    """

    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 5e-4
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.2
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.98)
    eps: Annotated[float, Field(gt=0)] = 1e-6
    gradient_clip: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = 1.0

    def build(self, model: nn.Module) -> torch.optim.AdamW:
        """Return AdamW over the trainable parameters of ``model``: a group that decays, a group that does not."""
        spared = no_decay(model)
        decayed: list[nn.Parameter] = []
        undecayed: list[nn.Parameter] = []
        for name, parameter in trainable_parameters(model):
            (undecayed if name in spared else decayed).append(parameter)
        groups = [
            {"params": decayed, "weight_decay": self.weight_decay},
            {"params": undecayed, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=self.learning_rate,
            betas=self.betas,
            eps=self.eps,
            fused=_can_fuse(model),
        )


@dataclass(frozen=True, config=STRICT)
class ScheduleConfig:
    """Linear warm-up, then a half cosine or a constant.

    Attributes:
        shape: what follows the warm-up.
        warmup_fraction: the part of all steps that warms up, unless ``warmup_steps`` says it in steps.
        warmup_steps: length of the warm-up in steps; None: by ``warmup_fraction``.
        final_fraction: where the cosine ends, as a part of the highest learning rate.
    """

    shape: Literal["cosine", "constant"] = "cosine"
    warmup_fraction: Annotated[float, Field(ge=0, le=1)] = 0.1
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    final_fraction: Annotated[float, Field(ge=0, le=1)] = 0.0

    def warmup(self, total_steps: int) -> int:
        """Return the length of the warm-up in steps, at most ``total_steps``."""
        steps = round(self.warmup_fraction * total_steps) if self.warmup_steps is None else self.warmup_steps
        return min(steps, total_steps)

    def factor(self, step: int, total_steps: int) -> float:
        """Return the part of the highest learning rate that step ``step`` (the first is 0) is made with, in [0, 1].

        As in open_clip: step ``s`` of ``w`` warm-up steps has ``(s + 1) / w``; a later one, for the cosine,
        ``final + (1 - final) * (1 + cos(pi * (s - w) / (total - w))) / 2``.
        """
        warmup = self.warmup(total_steps)
        if step < warmup:
            return (step + 1) / warmup
        if self.shape == "constant" or total_steps <= warmup:
            return 1.0
        progress = (step - warmup) / (total_steps - warmup)
        return self.final_fraction + (1 - self.final_fraction) * 0.5 * (1 + math.cos(math.pi * progress))


def trainable_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the name and parameter of everything in ``model`` that learns."""
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Make the next step of ``optimizer`` use ``learning_rate``."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def _can_fuse(model: nn.Module) -> bool:
    # The fused kernels are elementwise: one sweep over each parameter, the same bits every time.
    return all(parameter.device.type in ("cpu", "cuda") for _, parameter in trainable_parameters(model))
