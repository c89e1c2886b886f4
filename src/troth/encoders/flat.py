"""A model on an oblique manifold as a model of one unit vector, with open_clip's interface."""

from __future__ import annotations

import math
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from troth.encoders.contrastive import ContrastiveModel
from troth.encoders.export import open_clip_towers
from troth.errors import UserError
from troth.geometry import Geometry, Oblique, Sphere


class FlatClip(nn.Module):
    """A model on a sphere or an oblique manifold behind open_clip's model interface.

    .. code-block:: text

        vector      = (u_1, ..., u_m) / sqrt(m)                         unit length
        logit_scale = log(scale m)
        logits      = exp(logit_scale) <vector, vector'> + bias = scale sum_k <u_k, u'_k> + bias

    So whatever compares open_clip's vectors by their cosine ranks as the trained model does, and the logits are the
    trained ones, to rounding. The mean over prompts is not the same thing: open_clip's tools give it unit length again,
    while :func:`troth.evaluate.class_embedding` leaves the mean of oblique points as it is.

    Args:
        clip: an open_clip model (or one of its kind), whose raw features are of the geometry's dimensions.
        geometry: where the features belong.
        logit_scale: ``()`` the logarithm of the multiplier, ``m`` included.
        logit_bias: ``()`` the logit bias, or None.

    Attributes:
        clip: as above; its modules are shared, not copied.
        logit_scale: as above, a parameter.
        logit_bias: as above, a parameter or None.
        output_dict: whether :meth:`forward` answers with a dictionary, as open_clip's models do with it.

    Raises:
        UserError: for a geometry that compares by a distance or by best matches.

    Source: "Design of the topology for contrastive visual-textual alignment" (submission to TMLR), section 3.1, for the
    inner product of the oblique manifold.
    """

    logit_bias: nn.Parameter | None

    def __init__(self, clip: Any, geometry: Geometry, logit_scale: Tensor, logit_bias: Tensor | None = None) -> None:
        super().__init__()
        self.num_spheres = flat_spheres(geometry)
        self.clip: Any = clip
        self.geometry = geometry
        self.logit_scale = nn.Parameter(logit_scale.detach().clone())
        self.logit_bias = None if logit_bias is None else nn.Parameter(logit_bias.detach().clone())
        self.output_dict = False

    @classmethod
    def of(cls, model: ContrastiveModel) -> Self:
        """Return ``model`` as a flat one, with the same towers (not a copy of them).

        Raises:
            UserError: for another geometry, and for encoders that take features or vectors.
        """
        spheres = flat_spheres(model.geometry)
        return cls(open_clip_towers(model).clip, model.geometry, model.log_scale + math.log(spheres), model.bias)

    @property
    def visual(self) -> Any:
        """The image tower, with its ``image_size`` and ``preprocess_cfg``. Its features are raw."""
        return self.clip.visual

    @property
    def context_length(self) -> int:
        """Tokens of a caption."""
        return int(self.clip.context_length)

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return int(self.clip.vocab_size)

    def _flat(self, features: Tensor) -> Float[Tensor, "B D"]:
        # Under autocast the towers may answer in bfloat16; norms must not.
        with torch.autocast(features.device.type, enabled=False):
            return self.geometry.project(features) / math.sqrt(self.num_spheres)

    def encode_image(self, image: Tensor, normalize: bool = False) -> Float[Tensor, "B D"]:
        """Return unit vectors of ``(B, 3, H, W)`` pictures, at least float32; ``normalize`` changes nothing."""
        return self._flat(self.clip.encode_image(image))

    def encode_text(self, text: Tensor, normalize: bool = False) -> Float[Tensor, "B D"]:
        """Return unit vectors of ``(B, L)`` token ids, at least float32; ``normalize`` changes nothing."""
        return self._flat(self.clip.encode_text(text))

    def get_logits(self, image: Tensor, text: Tensor) -> tuple[Float[Tensor, "B C"], Float[Tensor, "C B"]]:
        """Return the logits of ``(B, 3, H, W)`` pictures against ``(C, L)`` token ids, and their transpose."""
        logits = self.logit_scale.exp() * self.encode_image(image) @ self.encode_text(text).T
        if self.logit_bias is not None:
            logits = logits + self.logit_bias
        return logits, logits.T

    def forward(self, image: Tensor | None = None, text: Tensor | None = None) -> Any:
        """Return ``(image vectors, text vectors, multiplier)``, and the bias if there is one, as open_clip does.

        What is not given is None. With ``output_dict`` they are ``image_features``, ``text_features``, ``logit_scale``
        and ``logit_bias`` of a dictionary.
        """
        features = {
            "image_features": None if image is None else self.encode_image(image),
            "text_features": None if text is None else self.encode_text(text),
            "logit_scale": self.logit_scale.exp(),
        }
        if self.logit_bias is not None:
            features["logit_bias"] = self.logit_bias
        return features if self.output_dict else tuple(features.values())

    def lock_image_tower(self, unlocked_groups: int = 0, freeze_bn_stats: bool = False) -> None:
        """Fix the image tower but its last groups, as open_clip does."""
        self.clip.lock_image_tower(unlocked_groups=unlocked_groups, freeze_bn_stats=freeze_bn_stats)

    def lock_text_tower(self, unlocked_layers: int = 0, freeze_layer_norm: bool = True) -> None:
        """Fix the text tower but its last layers, as open_clip does."""
        self.clip.lock_text_tower(unlocked_layers, freeze_layer_norm)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass, or keep them."""
        self.clip.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that are not to be decayed."""
        return {f"clip.{name}" for name in self.clip.no_weight_decay()}


def flat_spheres(geometry: Geometry) -> int:
    """Return ``m``, how many inner products of unit vectors a similarity sums.

    Raises:
        UserError: if a similarity is anything else, which no inner product of two flat vectors is.
    """
    if isinstance(geometry, Sphere) or (isinstance(geometry, Oblique) and geometry.distance == "inner_product"):
        return geometry.num_spheres
    what = f"{geometry.kind} {geometry.distance}" if isinstance(geometry, Oblique) else geometry.kind
    raise UserError(
        f"open_clip compares vectors by their inner product; the similarity of this model ({what}) is none",
        where="geometry",
        remedy="keep Troth's own checkpoint, or train on the sphere or the oblique manifold's inner_product",
    )
