"""Grad-CAM's arithmetic: from activations and their gradients to weights of places."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def token_strength(activations: Float[Tensor, "T C"], gradients: Float[Tensor, "T C"]) -> Float[Tensor, " T"]:
    """Return how much each token speaks for a score, in the score's unit; 0 where it speaks against it.

    .. code-block:: text

        weight_c   = mean_t dy / dA_tc
        strength_t = max(0, sum_c weight_c A_tc)

    Formed in float64.

    Args:
        activations: ``A``, of the tokens that count: patches, cells of a feature map, or pieces of words.
        gradients: of the score ``y`` by them.

    Source: Selvaraju et al. 2017, "Grad-CAM: visual explanations from deep networks via gradient-based localization",
    equations 1 and 2, with tokens for cells as in "Design of the topology for contrastive visual-textual alignment"
    (submission to TMLR), section 4.5.
    """
    weight = gradients.double().mean(dim=0)
    return (activations.double() @ weight).relu()


def min_max(strength: Float[Tensor, "h w"]) -> Float[Tensor, "h w"]:
    """Stretch a map to [0, 1]: its least value to 0, its largest to 1.

    A map of zeros stays zero, and so does one that is the same everywhere: it prefers no place.
    """
    least, largest = strength.min(), strength.max()
    if largest <= least:
        return torch.zeros_like(strength)
    return (strength - least) / (largest - least)


def largest_to_one(strength: Float[Tensor, " W"]) -> Float[Tensor, " W"]:
    """Divide by the largest value; zeros stay zero."""
    largest = strength.max()
    return strength / largest if largest > 0 else torch.zeros_like(strength)


def upsampled(values: Float[Tensor, "h w"], size: tuple[int, int]) -> Float[Tensor, "H W"]:
    """Spread a map over a picture of ``size`` (height, width): bilinear between the centres of the cells.

    Outside of the outermost centres the nearest cell's value holds; no value leaves the range of the cells'.
    """
    spread: Tensor = F.interpolate(values[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
    return spread
