"""What the demo trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from troth import recipe as recipes
from troth.recipe import Recipe


@dataclass(frozen=True)
class Method:
    """One of the demo's runs.

    Attributes:
        name: of its folder.
        recipe: a shipped one.
        label: what people see.
        explanation: likewise, a sentence or two.
        noisy: whether it is given the wrong captions.
    """

    name: str
    recipe: str
    label: str
    explanation: str
    noisy: bool = True


METHODS = (
    Method(
        "infonce",
        "heads-infonce",
        "InfoNCE",
        "CLIP's loss: every given pair is taken for the truth.",
    ),
    Method(
        "robust",
        "robust",
        "Robust",
        "Troth's default: a judge of frozen features weighs every pair before training, and teaches; the heads begin "
        "at its linear map. It is told neither which pairs are wrong nor how many. Its training time includes judging, "
        "unless that was cached.",
    ),
    Method(
        "clean",
        "heads-infonce",
        "InfoNCE, no wrong captions",
        "What InfoNCE would have learnt from the same pictures with their own captions.",
        noisy=False,
    ),
)


def recipe_of(method: Method, noise: float, seed: int, settings: Sequence[str]) -> Recipe:
    """Return a method's recipe with the demo's noise rate, seed and ``field=value`` settings.

    Raises:
        UserError: for a setting that no recipe has, or that does not fit.
    """
    own = [f"seed={seed}", f"data.noise.fraction={noise if method.noisy else 0.0}"]
    return recipes.load(method.recipe, [*settings, *own])
