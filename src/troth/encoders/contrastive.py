"""The model that training sees: two towers, a geometry, a learnable scale and, for sigmoid losses, a bias."""

from __future__ import annotations

import math
from collections.abc import Collection
from functools import partial
from typing import Annotated, Literal, NamedTuple, Self

import torch
from jaxtyping import Float
from pydantic import Field, PlainValidator, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from troth.encoders.base import DualEncoder
from troth.encoders.prototype_heads import PrototypeHeads
from troth.encoders.tower_training import Towers
from troth.errors import UserError
from troth.geometry import Geometry
from troth.types import STRICT

#: CLIP's initial multiplier (a temperature of 0.07; Radford et al. 2021, section 2.5).
CLIP_SCALE = 1 / 0.07
#: SigLIP's initial bias (Zhai et al. 2023, section 3.1), which offsets the many negatives at the start.
SIGLIP_BIAS = -10.0

#: Initial multipliers by the names that the topology paper's table 3 gives them. 14.0 is nearly CLIP's.
INIT_PRESETS: dict[str, float] = {"e^0": 1.0, "e^2.64": math.exp(2.64), "e^5.31": math.exp(5.31)}
#: The cap that section 4.2 of the paper gives its Multi(32, 16): CLIP's 100 shared among the spheres, whose sum of
#: inner products reaches ``num_spheres`` times as far. 6.25 there.
CAP_PER_SPHERE = "100/m"
#: The cap of the same model in the paper's table 5 and appendix A.1, which contradicts section 4.2: 3.95, chosen by an
#: ablation. Write it as a number, ``scale.cap = 3.95``.
MULTI_TOKEN_CAP = 3.95


def _multiplier(value: object, presets: Collection[str]) -> float | str | None:
    """Check a multiplier: one validator, so that a mistake is one message and not one for each member of a union."""
    if value is None or (isinstance(value, str) and value in presets):
        return value
    try:
        number = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else math.nan
    except ValueError:
        number = math.nan
    if not (number > 0 and math.isfinite(number)):
        names = " or ".join(f'"{name}"' for name in presets)
        raise ValueError(f"must be a finite number greater than 0, or {names}")
    return number


Init = Annotated[
    float | Literal["e^0", "e^2.64", "e^5.31"] | None, PlainValidator(partial(_multiplier, presets=INIT_PRESETS))
]
Cap = Annotated[float | Literal["100/m"] | None, PlainValidator(partial(_multiplier, presets=(CAP_PER_SPHERE,)))]


@dataclass(frozen=True, config=STRICT)
class ScaleConfig:
    """The multiplier of the similarities. Always in multiplier units; a temperature would be ``1 / scale``.

    The presets in words are those of "Design of the topology for contrastive visual-textual alignment": table 3
    (``init``) and section 4.2 (``cap``). Its tables print logarithms and multipliers side by side; here ``"e^2.64"`` is
    the multiplier 14.0. Its ablations ran without a cap that could have been active: they start at 202 with a maximum
    of 100 in table 5. To repeat them set ``cap`` to None.

    Attributes:
        init: the multiplier at the start: a number, or ``"e^0"`` (1), ``"e^2.64"`` (14.0) or ``"e^5.31"`` (202.4, which
            needs ``cap`` None). None: the pretrained model's own if it has one, else CLIP's ``1 / 0.07``; whichever it
            is, at most ``cap``.
        cap: the largest value the learned multiplier may take (CLIP: 100), or ``"100/m"``: 100 divided by the
            geometry's ``num_spheres``. None: no cap. The paper's table 5 has 3.95 (:data:`MULTI_TOKEN_CAP`) where its
            text has ``100 / 16``.
        learnable: whether it is trained. It is stored and trained as its logarithm.
        bias_init: the logit bias at the start, for objectives that have one. None: the pretrained model's own if it
            has one, else SigLIP's -10.
    """

    init: Init = None
    cap: Cap = 100.0
    learnable: bool = True
    bias_init: Annotated[float, Field(allow_inf_nan=False)] | None = None

    @model_validator(mode="after")
    def _init_within_bounds(self) -> ScaleConfig:
        cap = None if self.cap == CAP_PER_SPHERE else self.cap
        if isinstance(cap, float) and cap < 1:
            raise ValueError(f"cap must be at least 1, not {cap:g}: the learned scale is kept between 1 and cap")
        init = self.initial
        if init is None or not self.learnable:
            return self
        if init < 1:
            raise ValueError(
                f"init must be at least 1 when the scale is learnable, not {init:g}"
                " (it is the multiplier 1 / temperature: 14.3, not 0.07)"
            )
        if isinstance(cap, float) and init > cap:
            raise ValueError(f"init ({self._init_in_words()}) must not exceed cap ({cap:g}){self._without_cap()}")
        return self

    @property
    def initial(self) -> float | None:
        """``init`` as a number."""
        return INIT_PRESETS[self.init] if isinstance(self.init, str) else self.init

    def largest(self, num_spheres: int) -> float | None:
        """Return ``cap`` as a number, for a geometry of ``num_spheres``.

        Raises:
            UserError: if the scale is learnable and ``cap`` is ``"100/m"``, which is below 1 or below ``init``.
        """
        if not isinstance(self.cap, str):
            return self.cap
        cap = 100.0 / num_spheres
        meaning = f'"{CAP_PER_SPHERE}" is {cap:g} for the {num_spheres} spheres of this geometry'
        if not self.learnable:
            return cap
        if cap < 1:
            raise UserError(
                f"{meaning}, and the learned scale is kept between 1 and cap",
                where="scale.cap",
                remedy="set scale.cap to a number of at least 1, or to none",
            )
        if self.initial is not None and self.initial > cap:
            raise UserError(
                f"{meaning}, and init ({self._init_in_words()}) must not exceed it",
                where="scale.init",
                remedy=f"set scale.init to a number from 1 to {cap:g}, or scale.cap to none",
            )
        return cap

    def _init_in_words(self) -> str:
        return f"{self.init} = {self.initial:.4g}" if isinstance(self.init, str) else f"{self.init:g}"

    def _without_cap(self) -> str:
        if not isinstance(self.init, str):
            return ""
        return f': the preset {self.init} needs cap = "none", or a cap of at least {self.initial:.4g}'


class Features(NamedTuple):
    """What a contrastive model makes of a batch.

    Attributes:
        image: ``(B, D)`` image points of the geometry, at least float32.
        text: ``(B, D)`` text points of the geometry, at least float32.
        scale: ``()`` the multiplier of the similarities.
        bias: ``()`` the bias added to the logits, or None.
        image_projection: ``(B, Dp)`` unit projections in whose space prototypes live, or None without prototype heads.
        text_projection: the same of the captions.
        prototype_scale: ``()`` multiplier of the projections' products with prototypes, or None.
    """

    image: Float[Tensor, "B D"]
    text: Float[Tensor, "B D"]
    scale: Float[Tensor, ""]
    bias: Float[Tensor, ""] | None = None
    image_projection: Float[Tensor, "B Dp"] | None = None
    text_projection: Float[Tensor, "B Dp"] | None = None
    prototype_scale: Float[Tensor, ""] | None = None


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
        prototype_heads: projections of the towers' features in whose space prototypes live, or None.

    Attributes:
        log_scale: ``()`` the logarithm of the multiplier; a parameter, or a buffer if not learnable.
        bias: ``()`` the logit bias, or None.
        prototype_heads: as above.
        scale_cap: the largest value the learned multiplier may take, or None.
        towers: how the towers learn (:func:`troth.encoders.locking.apply_towers`).
        fixed_statistics: the names of batch norms that stay in evaluation mode.

    Raises:
        UserError: if the scale's cap cannot be met on this geometry.
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
        prototype_heads: PrototypeHeads | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.geometry = geometry
        self.scale_config = scale_config = scale_config or ScaleConfig()
        self.scale_cap = scale_config.largest(geometry.num_spheres)
        init = scale_config.initial
        if init is None:
            init = CLIP_SCALE if encoder.pretrained_scale is None else encoder.pretrained_scale
            if scale_config.learnable and self.scale_cap is not None:
                init = min(init, self.scale_cap)
        log_scale = torch.tensor(math.log(init))
        if scale_config.learnable:
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)
        self.bias = nn.Parameter(torch.tensor(self._initial_bias())) if with_bias else None
        self.prototype_heads = prototype_heads
        self.towers = Towers()
        self.fixed_statistics: tuple[str, ...] = ()

    def _initial_bias(self) -> float:
        if self.scale_config.bias_init is not None:
            return self.scale_config.bias_init
        pretrained = self.encoder.pretrained_bias
        return SIGLIP_BIAS if pretrained is None else pretrained

    def train(self, mode: bool = True) -> Self:
        """Go to training (or evaluation) mode, but for the batch norms whose statistics are fixed."""
        super().train(mode)
        for name in self.fixed_statistics:
            self.get_submodule(name).eval()
        return self

    @property
    def scale(self) -> Float[Tensor, ""]:
        """The multiplier: the exponential of ``log_scale``, differentiable."""
        return self.log_scale.exp()

    @torch.no_grad()
    def clamp_scale(self) -> None:
        """Keep a learnable scale within ``[1, cap]``; call it after each optimiser step."""
        if self.scale_config.learnable:
            self.log_scale.clamp_(min=0.0, max=None if self.scale_cap is None else math.log(self.scale_cap))
        if self.prototype_heads is not None:
            self.prototype_heads.clamp_scale()

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
        """Return the points of both modalities with the scale and the bias, and their projections if there are any."""
        raw_image, raw_text = self.encoder.encode_image(image), self.encoder.encode_text(text)
        features = Features(self._project(raw_image), self._project(raw_text), self.scale, self.bias)
        if self.prototype_heads is None:
            return features
        image_projection, text_projection, scale = self.prototype_heads(raw_image, raw_text)
        return features._replace(
            image_projection=image_projection, text_projection=text_projection, prototype_scale=scale
        )
