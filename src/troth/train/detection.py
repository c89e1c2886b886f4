"""The second stage of a run with unpaired data: what belongs together is detected, and learned from."""

from __future__ import annotations

import copy
from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor

from troth import distributed
from troth.data import SourceConfig
from troth.data.loader import UnpairedRows
from troth.data.unpaired import TruthKind, UnpairedOrder
from troth.encoders.contrastive import ContrastiveModel, Features
from troth.objectives.detection import detection_losses
from troth.similarity import Edges, Matching, Pairs, detect
from troth.train.hardware import autocast
from troth.types import STRICT, Batch

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(gt=0)]


@dataclass(frozen=True, config=STRICT)
class UnpairedConfig:
    """Images and captions without pairs, learned from in a second stage, after ``train.epochs`` passes over the pairs.

    Every step of the second stage takes as many images as captions, detects which belong together
    (:func:`troth.similarity.detect`) and learns from that (:func:`troth.objectives.detection.detection_losses`). The
    model and the optimiser go on as the first stage left them. Each stage runs through the whole of ``train.schedule``
    on its own steps; both end with an evaluation.

    Published code has two variants: matching ``top`` with judge ``current``, and ``argmax`` with ``best``. It reads the
    two sources in one order, so that every batch holds every image's own caption. Here the orders are independent
    unless ``order`` says otherwise: with ``n`` captions in all, a batch of ``m`` holds an image's own with a
    probability of ``m / n``, so that a small batch of a large source has little to detect. The log's ``detectable`` is
    the share of images that have a right caption in their batch, ``detected_right`` the share of detected pairs that
    are right.

    Source: Nakada et al. 2023, "Understanding multimodal contrastive learning and incorporating unpaired data", and
    the notebooks published with it.

    Attributes:
        images: where the unpaired images come from. Captions must be there, as in any source; they serve ``truth``.
        texts: where the unpaired captions come from; the images are not read.
        batch_size: images, and captions, of a step of the second stage, over all ranks.
        epochs: passes over the larger of the two sources.
        order: ``independent``: the two sources are shuffled by permutations of their own; ``aligned``: they are of one
            size, and a batch's captions come from the places of its images. That is no knowledge one has of unpaired
            data: it leaks which captions an image may belong to, and is there to replicate published results. Even so
            the captions of each batch are shuffled, and no row is taken for a pair.
        paired_weight: weight of the objective on a batch of ``train.batch_size`` pairs that joins every step of the
            second stage; 0: none does.
        weight: weight of the detection loss.
        matching: which pairs are detected: ``top``, ``argmax``, ``mutual`` or ``hungarian``.
        scale: multiplier of the unpaired rows' similarities; None: the model's learned one. The notebooks have 1.
        judge: whose similarities decide: ``current``: those of the model as it learns, without a gradient through the
            choice; ``best``: those of a frozen copy, made where the second stage begins, of the average of the weights
            if ``train.average`` keeps one.
        refresh_metric: for the judge ``best``: which metric of the evaluation, as ``task/metric``, has the copy
            replaced by the model as it is then; None: it never is. The task's data must be a part kept for validation,
            never a test set.
        refresh_factor: by what factor the metric must exceed its value for the present copy (the notebooks' eta).
        learning_rate_factor: multiplies the learning rate in the second stage (the notebooks go from 2e-3 to 2e-5).
        truth: by what the log tells whether a detected pair is right: ``caption``: the image's own source has it with
            this caption; ``category``: their samples' categories are equal. Nothing learns from it.
    """

    images: SourceConfig
    texts: SourceConfig
    batch_size: Annotated[int, Field(gt=1)] = 256
    epochs: Count = 10
    order: UnpairedOrder = "independent"
    paired_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    weight: Positive = 1.0
    matching: Matching = "top"
    scale: Positive | None = None
    judge: Literal["current", "best"] = "current"
    refresh_metric: str | None = None
    refresh_factor: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1.1
    learning_rate_factor: Positive = 1.0
    truth: TruthKind = "caption"

    @model_validator(mode="after")
    def _judge_can_be_replaced(self) -> UnpairedConfig:
        if self.refresh_metric is not None and self.judge != "best":
            raise ValueError('refresh_metric replaces a frozen judge: set judge = "best", or leave it out')
        return self


class Detection:
    """Detects pairs among unpaired rows and gives their losses.

    Args:
        config: how.
        model: the model that learns.
        micro_batch_size: rows a frozen judge takes at once; None for all.
        precision: what a frozen judge is autocast to.

    Attributes:
        config: as above.
        judge: the frozen copy of the model that decides, or None if the model itself does.
    """

    def __init__(
        self,
        config: UnpairedConfig,
        model: ContrastiveModel,
        *,
        micro_batch_size: int | None = None,
        precision: torch.dtype | None = None,
    ) -> None:
        self.config = config
        self.geometry = model.geometry
        self.judge: ContrastiveModel | None = None
        if config.judge == "best":
            self.judge = copy.deepcopy(model).requires_grad_(False).eval()
        self._micro_batch_size = micro_batch_size
        self._precision = precision

    def __call__(
        self, features: Features, batch: Batch, rows: UnpairedRows
    ) -> tuple[Float[Tensor, " M"], dict[str, float]]:
        """Return the losses of unpaired rows, and for the log what was detected, over all ranks.

        Args:
            features: of the unpaired rows, differentiable.
            batch: the same rows.
            rows: what is known of them.
        """
        image, text = (features.image, features.text) if self.judge is None else self._judged(self.judge, batch)
        edges = detect(image, text, self.geometry, self.config.matching)
        scale = features.scale if self.config.scale is None else features.scale.new_tensor(self.config.scale)
        pairs = Pairs(features.image, features.text, scale, features.bias, geometry=self.geometry)
        losses = detection_losses(pairs, edges, self.config.matching)
        notes = {"detection_loss": _mean(losses), **detection_quality(edges, rows, losses.device)}
        if self.config.matching == "mutual":
            notes["detected"] = len(edges) / pairs.num_pairs
        return losses, notes

    @torch.no_grad()
    def _judged(self, judge: ContrastiveModel, batch: Batch) -> tuple[Tensor, Tensor]:
        size = self._micro_batch_size or len(batch)
        with autocast(batch.image.device, self._precision):
            parts = [
                (judge.embed_image(part.image), judge.embed_text(part.text))
                for part in (batch.slice(start, start + size) for start in range(0, len(batch), size))
            ]
        image, text = zip(*parts, strict=True)
        return torch.cat(image), torch.cat(text)


@torch.no_grad()
def detection_quality(edges: Edges, rows: UnpairedRows, device: torch.device) -> dict[str, float]:
    """Return how much of what was detected is right, over all ranks; nothing if nothing is known.

    Returns:
        ``detected_right``, the share of the edges of which something is known that are right; ``detectable``, the share
        of the images of which something is known that have a right caption in the batch.
    """
    image = distributed.gather(rows.image_truth.to(device))
    text = distributed.gather(rows.text_truth.to(device))
    image_known: Bool[Tensor, " N"] = image[:, 0] >= 0
    known = image_known[edges.image] & (text[edges.text] >= 0)
    if not known.any():
        return {}
    right = (image[edges.image] == text[edges.text][:, None]).any(dim=1)
    fits = torch.isin(image, text[text > 0]).any(dim=1)
    return {
        "detected_right": float(right[known].double().mean()),
        "detectable": float(fits[image_known].double().mean()),
    }


def _mean(losses: Tensor) -> float:
    return float(distributed.sum_over_ranks(losses.detach().mean())) / distributed.world_size()
