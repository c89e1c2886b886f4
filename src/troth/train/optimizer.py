"""The optimiser and the learning rate's course.

The learning rate is a pure function of the step, so that there is no scheduler whose state could be lost on resume.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from types import MappingProxyType
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

    def build(self, model: nn.Module, courses: Mapping[str, Course] = MappingProxyType({})) -> torch.optim.AdamW:
        """Return AdamW over the trainable parameters of ``model``: a group that decays, a group that does not.

        Args:
            model: what learns.
            courses: names of parameters whose learning rate is another than the run's; they get groups of their own,
                two for each different course.
        """
        spared, usual = no_decay(model), Course()
        groups: dict[Course, tuple[list[nn.Parameter], list[nn.Parameter]]] = {usual: ([], [])}
        for name, parameter in trainable_parameters(model):
            decayed, undecayed = groups.setdefault(courses.get(name, usual), ([], []))
            (undecayed if name in spared else decayed).append(parameter)
        return torch.optim.AdamW(
            [
                {"params": parameters, "weight_decay": weight_decay, "course": course}
                for course, parts in groups.items()
                for parameters, weight_decay in zip(parts, (self.weight_decay, 0.0), strict=True)
                if parameters
            ],
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

    def factor(self, step: int, total_steps: int, end: int | None = None) -> float:
        """Return the part of the highest learning rate that step ``step`` (the first is 0) is made with, in [0, 1].

        As in open_clip: step ``s`` of ``w`` warm-up steps has ``(s + 1) / w``; a later one, for the cosine,
        ``final + (1 - final) * (1 + cos(pi * (s - w) / (total - w))) / 2``. With an ``end``, the cosine ends there
        instead of at ``total``, after the same warm-up.
        """
        end = total_steps if end is None else end
        warmup = self.warmup(total_steps)
        if step < warmup:
            return (step + 1) / warmup
        if self.shape == "constant" or end <= warmup:
            return 1.0
        progress = (step - warmup) / (end - warmup)
        return self.final_fraction + (1 - self.final_fraction) * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class Course:
    """How the learning rate of some parameters differs from the run's.

    A function of the step like the run's own, so that a resumed run knows it.

    Attributes:
        factor: of the run's learning rate.
        lock_after_steps: the cosine ends with this step, and from it on (the first step is 0) the learning rate is
            zero. None: never.
        schedule: the run's.
        total_steps: the run's.
    """

    factor: float = 1.0
    lock_after_steps: int | None = None
    schedule: ScheduleConfig | None = None
    total_steps: int = 0

    def is_locked(self, step: int) -> bool:
        """Say whether step number ``step`` leaves the parameters as they are."""
        return self.lock_after_steps is not None and step >= self.lock_after_steps

    def learning_rate(self, learning_rate: float, step: int) -> float:
        """Return the learning rate of step number ``step``, where the run's is ``learning_rate``."""
        if self.is_locked(step):
            return 0.0
        rate = learning_rate * self.factor
        if self.lock_after_steps is None or self.schedule is None:
            return rate
        usual = self.schedule.factor(step, self.total_steps)
        own = self.schedule.factor(step, self.total_steps, self.lock_after_steps)
        return rate * own / usual if usual else 0.0


def trainable_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the name and parameter of everything in ``model`` that learns."""
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float, step: int) -> None:
    """Make step number ``step`` of ``optimizer`` use ``learning_rate``, or what each group's course makes of it."""
    for group in optimizer.param_groups:
        group["lr"] = group.get("course", Course()).learning_rate(learning_rate, step)


def drop_locked_gradients(optimizer: torch.optim.Optimizer, step: int) -> None:
    """Forget the gradients of what is locked at ``step``: the optimiser passes it by, and no norm contains it."""
    for group in optimizer.param_groups:
        if group.get("course", Course()).is_locked(step):
            for parameter in group["params"]:
                parameter.grad = None


def _can_fuse(model: nn.Module) -> bool:
    # The fused kernels are elementwise: one sweep over each parameter, the same bits every time.
    return all(parameter.device.type in ("cpu", "cuda") for _, parameter in trainable_parameters(model))
