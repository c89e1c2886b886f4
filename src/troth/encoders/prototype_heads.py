"""Projection heads in whose spaces an episode's prototypes live."""

from __future__ import annotations

import copy
import math
from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from troth import distributed
from troth.encoders.towers import seeded
from troth.errors import UserError
from troth.types import STRICT

Count = Annotated[int, Field(gt=0)]


@dataclass(frozen=True, config=STRICT)
class ProjectionConfig:
    """Two perceptrons ``Linear, batch norm, ReLU, Linear`` on the towers' raw features, and the scale of their scores.

    Source: Chen et al. 2022 (ProtoCLIP), section IV-A; SwAV's projection heads. Smaller models take smaller ones.

    Attributes:
        hidden_dim: width of the hidden layer.
        dim: dimension of the projected embeddings.
        scale_init: the multiplier of their products with prototypes at the start.
        scale_cap: the largest value it may learn.
    """

    hidden_dim: Count = 2048
    dim: Count = 128
    scale_init: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1 / 0.07
    scale_cap: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 100.0

    @model_validator(mode="after")
    def _init_within_cap(self) -> ProjectionConfig:
        if self.scale_init > self.scale_cap:
            raise ValueError(f"scale_init ({self.scale_init:g}) must not exceed scale_cap ({self.scale_cap:g})")
        return self

    def build(self, embed_dim: int, seed: int = 0) -> PrototypeHeads:
        """Build the heads, weights drawn from ``seed``; the global random state is left as it was."""
        with seeded(seed):
            return PrototypeHeads(self, embed_dim)


class SharedBatchNorm(nn.BatchNorm1d):
    """Batch norm over the rows of all ranks, so that two ranks learn what one would with the whole batch.

    torch's own synchronised batch norm needs a GPU.
    """

    def forward(self, input: Float[Tensor, "B H"]) -> Float[Tensor, "B H"]:
        """Normalise by the batch's mean and variance in training, by their running averages otherwise.

        Statistics of half-precision rows are computed in float32, as torch's own are.

        Raises:
            UserError: for a single row in training, which has no variance.
        """
        if not self.training:
            return super().forward(input)
        if len(input) * distributed.world_size() < 2:
            raise UserError(
                "the batch norm of prototype heads cannot work on one row at a time",
                where="train.micro_batch_size",
                remedy="choose a size that leaves no single row at the end of a batch",
            )
        if distributed.world_size() == 1:
            return super().forward(input)
        return self._over_ranks(input.to(self.weight.dtype)).to(input)

    def _over_ranks(self, input: Float[Tensor, "B H"]) -> Float[Tensor, "B H"]:
        momentum = self.momentum or 0.0
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        # Equal numbers of rows on all ranks: the mean of the ranks' means is the mean.
        mean = distributed.gather_with_gradient(input.mean(dim=0, keepdim=True)).mean(dim=0)
        centred = input - mean
        variance = distributed.gather_with_gradient(centred.square().mean(dim=0, keepdim=True)).mean(dim=0)
        with torch.no_grad():
            rows = len(input) * distributed.world_size()
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean.to(self.running_mean), momentum)
            self.running_var.lerp_(variance.to(self.running_var) * (rows / (rows - 1)), momentum)
        normalised = centred * torch.rsqrt(variance + self.eps)
        return normalised * self.weight + self.bias


class PrototypeHeads(nn.Module):
    """Projects the raw features of both towers onto unit spheres of fewer dimensions.

    Both heads start from the same weights, as in the released code. Nothing here has weight decay, again as there.

    Args:
        config: widths and scale.
        embed_dim: dimension of the towers' features.

    Attributes:
        log_scale: ``()`` the logarithm of the multiplier of prototype scores, learned.
    """

    def __init__(self, config: ProjectionConfig, embed_dim: int) -> None:
        super().__init__()
        self.config = config
        self.text_head = nn.Sequential(
            nn.Linear(embed_dim, config.hidden_dim),
            SharedBatchNorm(config.hidden_dim),
            nn.ReLU(),
            nn.Linear(config.hidden_dim, config.dim),
        )
        self.image_head = copy.deepcopy(self.text_head)
        self.log_scale = nn.Parameter(torch.tensor(math.log(config.scale_init)))

    def no_weight_decay(self) -> set[str]:
        """Return the names of all parameters."""
        return {name for name, _ in self.named_parameters()}

    @torch.no_grad()
    def clamp_scale(self) -> None:
        """Keep the scale within ``[1, cap]``; call it after each optimiser step."""
        self.log_scale.clamp_(min=0.0, max=math.log(self.config.scale_cap))

    def forward(
        self, image: Float[Tensor, "B D"], text: Float[Tensor, "B D"]
    ) -> tuple[Float[Tensor, "B Dp"], Float[Tensor, "B Dp"], Float[Tensor, ""]]:
        """Return the unit projections of raw image and text features, at least float32, and the scale."""
        projected = (_unit(self.image_head(image)), _unit(self.text_head(text)))
        return *projected, self.log_scale.exp()


def _unit(features: Tensor) -> Tensor:
    if features.dtype in (torch.float16, torch.bfloat16):
        features = features.float()
    return F.normalize(features, dim=-1)
