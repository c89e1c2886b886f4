"""The affinity consistency of SaCo: two images are as similar as their captions are."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, ClassVar, Literal

from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor

from troth.errors import UserError
from troth.objectives.base import About, Objective
from troth.similarity import Pairs
from troth.similarity.gram import AffinityDistance, AffinityReduction
from troth.state import State
from troth.types import STRICT

#: How affinities that cannot be trusted yet are kept from doing harm.
AffinityStrategy = Literal["constant", "ramp", "mask"]

#: A cosine.
Cosine = Annotated[float, Field(ge=-1, le=1)]


def trusted(
    image: Float[Tensor, "B D"], text: Float[Tensor, "B D"], strategy: AffinityStrategy, threshold: float
) -> Bool[Tensor, " B"] | None:
    """Return which pairs' affinities are compared: those whose cosine is above the threshold, or None for all.

    Raises:
        UserError: for a mask where images and captions have different widths, and no cosine.
    """
    if strategy != "mask":
        return None
    if image.shape != text.shape:
        raise UserError(
            f"the mask compares images with captions, which have {image.shape[1]} and {text.shape[1]} numbers",
            where="objective",
            remedy='use strategy = "constant" or "ramp", or a geometry of one point a sample',
        )
    return (image * text).detach().sum(dim=1) > threshold


def ramped(losses: Float[Tensor, " B"], strategy: AffinityStrategy, state: State) -> Float[Tensor, " B"]:
    """Return the losses, times the share of the run that has passed if the strategy is the ramp."""
    return losses * state.clock.progress if strategy == "ramp" else losses


@dataclass(frozen=True, config=STRICT)
class Affinity(Objective):
    """How differently a pair's image sees the other images and its caption the other captions.

    .. code-block:: text

        S^I_ij = <I_i, I_j>        S^T_ij = <T_i, T_j>        (unit embeddings, no scale; j over the whole batch)
        loss_i = 1/N sum_j |S^I_ij - S^T_ij|                  (mean over i: the mean over N^2 entries; dimensionless)

    It is meant beside a contrastive loss (a collapsed model has perfect affinities), with a weight:
    ``Sum(((1.0, InfoNCE()), (2.5, Affinity())))``. The source's weights are 5 for this loss and 5 for
    :class:`~troth.objectives.mimic.Mimic`, beside a contrastive loss *without* the halves of InfoNCE (its equation 1
    sums the two directions): beside the halved one, 2.5 keeps the printed ratio. Continued training has no mimicking.

    Source: Wu et al. 2024, "SaCo loss: sample-wise affinity consistency for vision-language pre-training" (CVPR),
    equations 2 and 5; strategies in section 4.2.1. What it leaves open, and what we chose:

    * *Distance*: "the L1 distance as defined in Eq. (3)", but equation 3 is Pearson's correlation. The default is l1,
      which is also named after equation 7; ``"pearson"`` is one minus equation 3 a row, without the affinity of a
      sample to itself, which is 1 in both modalities; ``"l2"`` is the squared difference.
    * *Normalisation*: equation 5 is a plain sum over ``N^2`` entries, which at a batch of thousands and weight 5 would
      exceed the contrastive loss by five orders of magnitude. The mean over entries starts at some tenths, like the
      curve of figure 3b.
    * *Gradient*: none is said to be stopped; both modalities move.
    * *Geometry*: affinities are cosines whatever the geometry of the logits; points are flattened and normalised.

    Attributes:
        distance: ``"l1"`` absolute differences, ``"l2"`` squared ones, ``"pearson"`` one minus the correlation of each
            pair's two rows (0 where affinities do not vary).
        reduction: what the mean of the losses over pairs is. ``"mean"``: the mean over entries (for ``"pearson"`` over
            rows); ``"row"``: the mean over pairs of sums over a row, ``N`` times as much; ``"sum"``: the plain sum of
            equation 5.
        detach_image: take the images' affinities as given, so that only captions move.
        detach_text: take the captions' affinities as given, so that only images move.
        strategy: ``"constant"``; ``"ramp"``: the weight grows linearly over the run, from 0 to nearly 1 (the source
            says "gradually"); ``"mask"``: only pairs whose own cosine is above ``threshold`` are compared, among each
            other, and means are over those, so that no pair costs anything when there are none.
        threshold: of the mask, a cosine. The source gives none; ours is about where the cosines of a trained CLIP's
            pairs begin.
    """

    kind: Literal["affinity"] = field(default="affinity", kw_only=True)
    distance: AffinityDistance = "l1"
    reduction: AffinityReduction = "mean"
    detach_image: bool = False
    detach_text: bool = False
    strategy: AffinityStrategy = "constant"
    threshold: Cosine = 0.2

    about: ClassVar[About] = About(
        equation="1/N Σⱼ |⟨Iᵢ, Iⱼ⟩ − ⟨Tᵢ, Tⱼ⟩|",
        inputs="nothing more; for the ramp, how far training is",
        state="nothing",
        cost="l1: 4 products, at most 6 on several ranks; l2, pearson: O(B D²) in float64",
        when="beside a contrastive loss, where the neighbours of an image and of its caption should agree",
        relation="reduction = row with l2 is CyCLIP's in-modal term; pearson is one minus the affinity consistency",
        citation="Wu et al., SaCo loss: sample-wise affinity consistency for vision-language pre-training, 2024",
    )

    @model_validator(mode="after")
    def _something_learns(self) -> Affinity:
        if self.detach_image and self.detach_text:
            raise ValueError("detach_image and detach_text together leave nothing that learns: set at most one")
        return self

    def __call__(self, pairs: Pairs, state: State) -> Float[Tensor, " B"]:
        """Return ``(B,)`` losses, dimensionless; between 0 and 2 for l1 with the mean, and for pearson."""
        image, text = pairs.unit_rows()
        keep = trusted(image, text, self.strategy, self.threshold)
        image = image.detach() if self.detach_image else image
        text = text.detach() if self.detach_text else text
        return ramped(pairs.affinity_distance(image, text, self.distance, self.reduction, keep), self.strategy, state)
