"""An exponential moving average of the weights: what is evaluated and exported, and what may teach."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
from jaxtyping import Float
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from troth import distributed
from troth.encoders.contrastive import ContrastiveModel
from troth.train.checkpoint import load_model
from troth.train.hardware import autocast
from troth.types import STRICT

#: The average's name among a checkpoint's files.
AVERAGE_NAME = "average"

_STATISTICS = ("running_mean", "running_var")


@dataclass(frozen=True, config=STRICT)
class AverageConfig:
    """An exponential moving average of the weights, ``average = d * average + (1 - d) * weights`` after every step.

    Costs the memory of one more model, in training and in every checkpoint. The first update copies the weights.

    Attributes:
        decay: ``d``: how much of the average stays at each step.
        warmup: let update ``t`` (the copy is update 0) use ``min(decay, (1 + t) / (10 + t))``, so that a short run does
            not remember its first weights for ever.
    """

    decay: Annotated[float, Field(gt=0, lt=1)] = 0.999
    warmup: bool = True

    def at(self, update: int) -> float:
        """Return the decay of update number ``update``."""
        return min(self.decay, (1 + update) / (10 + update)) if self.warmup else self.decay


class AveragedWeights(AveragedModel):
    """The average of a model's weights, itself a model in evaluation mode, ``module``.

    Parameters and the running statistics of batch norms are averaged, other buffers copied. Over several ranks, whose
    batches give each its own statistics, the mean of these is averaged, so that all ranks keep the same model.

    Args:
        model: what is averaged; its weights as they are now are the average's until the first update.
        config: the decay.
    """

    module: ContrastiveModel

    def __init__(self, model: ContrastiveModel, config: AverageConfig) -> None:
        def average(averages: Any, weights: Any, updates: Tensor | int) -> None:
            torch._foreach_lerp_(averages, weights, 1 - config.at(int(updates)))

        super().__init__(model, multi_avg_fn=average)
        self.config = config
        self.module.requires_grad_(False)
        self.eval()

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Take in the weights of ``model``."""
        updates = int(self.n_averaged)
        before = [values.clone() for values in _statistics(self.module)]
        super().update_parameters(model)  # copies all buffers
        if not before:
            return
        statistics, ranks = _statistics(self.module), distributed.world_size()
        if ranks > 1:
            together = distributed.sum_over_ranks(torch.cat([values.flatten() for values in statistics])) / ranks
            parts = torch.split(together, [values.numel() for values in statistics])
            for values, mean in zip(statistics, parts, strict=True):
                values.copy_(mean.view_as(values))
        if updates > 0:
            for values, old in zip(statistics, before, strict=True):
                values.copy_(old.lerp(values, 1 - self.config.at(updates)))

    @torch.no_grad()
    def embed_image(
        self, image: Tensor, micro_batch_size: int | None = None, precision: torch.dtype | None = None
    ) -> Float[Tensor, "B D"]:
        """Return the average's points of ``image``, as many at once as ``micro_batch_size`` says (None: all)."""
        with autocast(image.device, precision):
            parts = torch.split(image, micro_batch_size or max(1, len(image)))
            return torch.cat([self.module.embed_image(part) for part in parts])


def _statistics(model: nn.Module) -> list[Tensor]:
    return [values for name, values in model.named_buffers() if name.rpartition(".")[2] in _STATISTICS]


def has_average(path: Path) -> bool:
    """Say whether the checkpoint at ``path`` holds an average."""
    return (path / f"{AVERAGE_NAME}.safetensors").exists()


def load_average(path: Path, model: nn.Module) -> None:
    """Put the averaged weights of the checkpoint at ``path`` into ``model``.

    Raises:
        UserError: as :func:`troth.train.checkpoint.load_model`.
    """
    holder = nn.Module()  # has the names that AveragedModel gives its parts, without a copy of the model
    holder.module = model
    holder.register_buffer("n_averaged", torch.tensor(0))
    load_model(path, holder, AVERAGE_NAME)
