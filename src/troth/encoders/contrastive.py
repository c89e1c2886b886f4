"""The model that training sees: two towers, a geometry, a learnable scale and, for sigmoid losses, a bias."""

from __future__ import annotations

import math
from typing import Annotated, NamedTuple

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from troth.encoders.base import DualEncoder
from troth.geometry import Geometry
from troth.types import STRICT

#: CLIP's initial multiplier (a temperature of 0.07; Radford et al. 2021, section 2.5).
CLIP_SCALE = 1 / 0.07
#: SigLIP's initial bias (Zhai et al. 2023, section 3.1), which offsets the many negatives at the start.
SIGLIP_BIAS = -10.0

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True, config=STRICT)
class ScaleConfig:
    """The multiplier of the similarities. Always in multiplier units; a temperature would be ``1 / scale``.

    Attributes:
        init: the multiplier at the start. None: the pretrained model's own if it has one, else CLIP's ``1 / 0.07``.
        cap: the largest value the learned multiplier may take (CLIP: 100). None: no cap.
        learnable: whether it is trained. It is stored and trained as its logarithm.
        bias_init: the logit bias at the start, for objectives that have one. None: the pretrained model's own if it
            has one, else SigLIP's -10.
    """

    init: Positive | None = None
    cap: Positive | None = 100.0
    learnable: bool = True
    bias_init: Annotated[float, Field(allow_inf_nan=False)] | None = None

    @model_validator(mode="after")
    def _init_within_bounds(self) -> ScaleConfig:
        if self.cap is not None and self.cap < 1:
            raise ValueError(f"cap must be at least 1, not {self.cap:g}: the learned scale is kept between 1 and cap")
        if self.init is None or not self.learnable:
            return self
        if self.init < 1:
            raise ValueError(
                f"init must be at least 1 when the scale is learnable, not {self.init:g}"
                " (it is the multiplier 1 / temperature: 14.3, not 0.07)"
            )
        if self.cap is not None and self.init > self.cap:
            raise ValueError(f"init ({self.init:g}) must not exceed cap ({self.cap:g})")
        return self


class Features(NamedTuple):
    """What a contrastive model makes of a batch.

    Attributes:
        image: ``(B, D)`` image points of the geometry, at least float32.
        text: ``(B, D)`` text points of the geometry, at least float32.
        scale: ``()`` the multiplier of the similarities.
        bias: ``()`` the bias added to the logits, or None.
    """

    image: Float[Tensor, "B D"]
    text: Float[Tensor, "B D"]
    scale: Float[Tensor, ""]
    bias: Float[Tensor, ""] | None


class ContrastiveModel(nn.Module):
    """Two towers whose features are projected onto a geometry, with the scale (and bias) of their logits.

    .. code-block:: text

        logits = scale * similarity(project(image tower), project(text tower)) + bias

    The logits themselves are formed elsewhere (``troth.similarity``); this model stops at the points.

    Args:
        encoder: the towers.
        geometry: where the embeddings live.
        scale_config: start, cap and learnability of the scale, and the start of the bias.
        with_bias: whether the logits have a learnable bias, as sigmoid losses need.

    Attributes:
        log_scale: ``()`` the logarithm of the multiplier; a parameter, or a buffer if not learnable.
        bias: ``()`` the logit bias, or None.
    """

    log_scale: Tensor
    bias: nn.Parameter | None

    def __init__(
        self,
        encoder: DualEncoder,
        geometry: Geometry,
        scale_config: ScaleConfig | None = None,
        *,
        with_bias: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.geometry = geometry
        self.scale_config = scale_config = scale_config or ScaleConfig()
        init = scale_config.init
        if init is None:
            init = CLIP_SCALE if encoder.pretrained_scale is None else encoder.pretrained_scale
            if scale_config.learnable and scale_config.cap is not None:
                init = min(init, scale_config.cap)
        log_scale = torch.tensor(math.log(init))
        if scale_config.learnable:
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)
        self.bias = nn.Parameter(torch.tensor(self._initial_bias())) if with_bias else None

    def _initial_bias(self) -> float:
        if self.scale_config.bias_init is not None:
            return self.scale_config.bias_init
        pretrained = self.encoder.pretrained_bias
        return SIGLIP_BIAS if pretrained is None else pretrained

    @property
    def scale(self) -> Float[Tensor, ""]:
        """The multiplier: the exponential of ``log_scale``, differentiable."""
        return self.log_scale.exp()

    @torch.no_grad()
    def clamp_scale(self) -> None:
        """Keep a learnable scale within ``[1, cap]``; call it after each optimiser step."""
        if self.scale_config.learnable:
            cap = self.scale_config.cap
            self.log_scale.clamp_(min=0.0, max=None if cap is None else math.log(cap))

    def _project(self, features: Tensor) -> Float[Tensor, "B D"]:
        # Under autocast the towers may answer in bfloat16; norms and inner products of points must not.
        with torch.autocast(features.device.type, enabled=False):
            if features.dtype in (torch.float16, torch.bfloat16):
                features = features.float()
            return self.geometry.project(features)

    def embed_image(self, image: Tensor) -> Float[Tensor, "B D"]:
        """Return the points of ``image`` (what :meth:`DualEncoder.encode_image` takes), at least float32."""
        return self._project(self.encoder.encode_image(image))

    def embed_text(self, text: Tensor) -> Float[Tensor, "B D"]:
        """Return the points of ``text`` (what :meth:`DualEncoder.encode_text` takes), at least float32."""
        return self._project(self.encoder.encode_text(text))

    def forward(self, image: Tensor, text: Tensor) -> Features:
        """Return the points of both modalities with the scale and the bias."""
        return Features(self.embed_image(image), self.embed_text(text), self.scale, self.bias)
