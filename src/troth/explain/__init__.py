"""Explanations: which parts of a picture and which words of a caption a similarity rests on (Grad-CAM)."""

from __future__ import annotations

from troth.explain.explainer import Explainer, explain
from troth.explain.explanation import Explanation, Importance
from troth.explain.gradcam import largest_to_one, min_max, token_strength, upsampled
from troth.explain.overlay import draw, heat_over

__all__ = [
    "Explainer",
    "Explanation",
    "Importance",
    "draw",
    "explain",
    "heat_over",
    "largest_to_one",
    "min_max",
    "token_strength",
    "upsampled",
]
