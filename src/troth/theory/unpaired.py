"""Learning from pairs, then from unpaired images and captions whose pairs are detected; many runs side by side.

Encoders of independent runs are stacked in the leading dimension, so that a step of five of them takes little longer
than a step of one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from troth.errors import UserError
from troth.theory.linear import LinearEncoders
from troth.theory.matching import Detected, Matching, detect

Judge = Literal["current", "best"]
Order = Literal["aligned", "independent"]
#: Scores stacked encoders, higher is better: ``(K,)``.
Validate = Callable[[LinearEncoders], Tensor]


@dataclass(frozen=True, slots=True)
class Training:
    """How a stage trains; the defaults are those of the published synthetic experiment.

    Attributes:
        learning_rate: of AdamW.
        weight_decay: of AdamW, decoupled.
        betas: of AdamW.
        epsilon: of AdamW.
        tau: temperature; logits are ``cos / tau``.
        batch_size: images, and captions, of a step. What is left over of a pass is not read.
        passes: how often the data are read.

    Raises:
        UserError: for a learning rate, temperature or batch size that is not above 0.
    """

    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    tau: float = 1.0
    batch_size: int = 50
    passes: int = 100

    def __post_init__(self) -> None:
        for name in ("learning_rate", "tau", "batch_size"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"{getattr(self, name)} is not a finite number above 0", where=name)


@dataclass(frozen=True, slots=True)
class Detection:
    """How the second stage finds its pairs.

    Attributes:
        matching: which edges; see :func:`~troth.theory.matching.detect`.
        judge: whose similarities decide: the ``current`` model's (published as variant A), or those of a frozen copy of
            the ``best`` so far (variant B).
        order: ``aligned`` reads both sides in the order they are in, as published: if row i belongs to row i, every
            batch holds every image's caption. ``independent`` draws an order for each side in every pass.
        refresh_passes: with ``best``, how often it is asked whether the current model is better.
        refresh_factor: by which factor its score must exceed the copy's to take its place.
        seed: of independent orders.

    Raises:
        UserError: for an unknown matching, judge or order, or ``refresh_passes`` below 1.
    """

    matching: Matching = "top"
    judge: Judge = "current"
    order: Order = "aligned"
    refresh_passes: int = 5
    refresh_factor: float = 1.1
    seed: int = 0

    def __post_init__(self) -> None:
        for name, choices in (("matching", get_args(Matching)), ("judge", get_args(Judge)), ("order", get_args(Order))):
            if getattr(self, name) not in choices:
                raise UserError(f"unknown {getattr(self, name)!r}", where=name, remedy=f"one of: {', '.join(choices)}")
        if self.refresh_passes < 1:
            raise UserError(f"{self.refresh_passes} is below 1", where="refresh_passes")


@dataclass(slots=True)
class AdamW:
    """AdamW on stacked weights, updated in place: what torch's does, less its overhead for tensors as small as these.

    Attributes:
        moments: first and second moments of each weight.
        steps: how many were made.
    """

    moments: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    steps: int = 0

    def step(self, weights: tuple[Tensor, ...], gradients: tuple[Tensor, ...], training: Training) -> None:
        """Update ``weights``."""
        if not self.moments:
            self.moments = [(torch.zeros_like(each), torch.zeros_like(each)) for each in weights]
        self.steps += 1
        first, second = training.betas
        rate = training.learning_rate / (1 - first**self.steps)
        correction = (1 - second**self.steps) ** 0.5
        for weight, gradient, (mean, square) in zip(weights, gradients, self.moments, strict=True):
            weight.mul_(1 - training.learning_rate * training.weight_decay)
            mean.lerp_(gradient, 1 - first)
            square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
            weight.addcdiv_(mean, square.sqrt().div_(correction).add_(training.epsilon), value=-rate)


def first_encoders(runs: int, rank: int, image_dim: int, text_dim: int, seed: int = 0) -> LinearEncoders:
    """Draw stacked encoders as torch initialises linear layers, uniform within ``1 / sqrt(d)``, float32."""
    generator = torch.Generator().manual_seed(seed)
    image, text = (
        (2 * torch.rand(runs, rank, dim, generator=generator) - 1) / dim**0.5 for dim in (image_dim, text_dim)
    )
    return LinearEncoders(image, text)


def cosines(encoders: LinearEncoders, x: Tensor, y: Tensor) -> Tensor:
    """Return ``cos(G1 x_i, G2 y_j)``, ``(K, n, m)``."""
    return _unit(x @ encoders.image.mT)[0] @ _unit(y @ encoders.text.mT)[0].mT


def detection_gradient(
    encoders: LinearEncoders, x: Tensor, y: Tensor, detected: Callable[[Tensor], Detected], tau: float
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Return the gradient of the loss of detected pairs, written out, and the cosines.

    .. code-block:: text

        L = 1/m [ 1/2 sum_i r_i LSE_j l_ij + 1/2 sum_j c_j LSE_i l_ij - sum_ij E_ij l_ij ],     l = cos / tau

    With ``E = I`` and ``r = c = 1`` it is InfoNCE. No gradient goes through the choice of E.

    Source: Nakada et al. 2023, public notebooks.

    Args:
        encoders: stacked, ``(K, r, d)``.
        x: images, ``(K, m, d1)``.
        y: captions, ``(K, m, d2)``.
        detected: E, r and c, given the cosines.
        tau: temperature.

    Returns:
        the gradients ``(K, r, d1)`` and ``(K, r, d2)``, and the cosines ``(K, m, m)``.
    """
    (u, u_norm), (v, v_norm) = _unit(x @ encoders.image.mT), _unit(y @ encoders.text.mT)
    cos = u @ v.mT
    found = detected(cos)
    # Cosines are at most 1: less the largest possible, no exponential overflows whatever tau.
    exponentials = torch.exp((cos - 1) / tau)
    rows = 0.5 * found.rows / exponentials.sum(-1)
    columns = 0.5 * found.columns / exponentials.sum(-2)
    slope = (exponentials * (rows[..., None] + columns[..., None, :]) - found.edges) / (tau * cos.shape[-1])
    return (_through_norm(slope @ v, u, u_norm).mT @ x, _through_norm(slope.mT @ u, v, v_norm).mT @ y), cos


def train_paired(
    encoders: LinearEncoders, x: Tensor, y: Tensor, training: Training, optimizer: AdamW | None = None
) -> tuple[LinearEncoders, AdamW]:
    """Train stacked encoders on pairs, with InfoNCE of cosines, reading them in the order they are in.

    Args:
        encoders: ``(K, r, d)``; they stay as they are.
        x: images, ``(K, n, d1)``.
        y: captions, ``(K, n, d2)``; row i belongs to row i.
        training: how.
        optimizer: to go on with, updated in place; a new one by default.

    Returns:
        the trained encoders, and the optimiser for a second stage to go on with.

    Raises:
        UserError: if there are not enough pairs for one batch.
    """
    batches = _batches(x, y, training.batch_size)
    pairs = Detected(torch.eye(training.batch_size, dtype=x.dtype))
    weights, optimizer = (encoders.image.clone(), encoders.text.clone()), optimizer or AdamW()
    for _ in range(training.passes):
        for images, captions in batches:
            gradients, _cos = detection_gradient(
                LinearEncoders(*weights), images, captions, lambda _: pairs, training.tau
            )
            optimizer.step(weights, gradients, training)
    return LinearEncoders(*weights), optimizer


def train_unpaired(
    encoders: LinearEncoders,
    x: Tensor,
    y: Tensor,
    training: Training,
    detection: Detection,
    optimizer: AdamW | None = None,
    validate: Validate | None = None,
) -> LinearEncoders:
    """Go on with unpaired images and captions: each step detects pairs in its batch, and learns from them.

    Args:
        encoders: ``(K, r, d)``, trained on pairs; they stay as they are.
        x: images, ``(K, n, d1)``.
        y: captions, ``(K, n, d2)``.
        training: how.
        detection: how pairs are found.
        optimizer: that of the first stage, updated in place; a new one by default.
        validate: scores encoders, for the judge ``best``.

    Raises:
        UserError: if there are not enough samples for one batch, or ``best`` has no ``validate``.
    """
    if detection.judge == "best" and validate is None:
        raise UserError("the best model is chosen by a score", where="validate", remedy='or judge="current"')
    weights, optimizer = (encoders.image.clone(), encoders.text.clone()), optimizer or AdamW()
    best = _Best(encoders, validate(encoders)) if detection.judge == "best" and validate else None
    generator = torch.Generator().manual_seed(detection.seed)
    for number in range(training.passes):
        for images, captions in _unpaired_batches(x, y, training.batch_size, detection.order, generator):
            gradients, _cos = detection_gradient(
                LinearEncoders(*weights), images, captions, _finder(images, captions, detection, best), training.tau
            )
            optimizer.step(weights, gradients, training)
        if best is not None and validate is not None and (number + 1) % detection.refresh_passes == 0:
            best.refresh(LinearEncoders(*weights), validate, detection.refresh_factor)
    return LinearEncoders(*weights)


def matching_accuracy(encoders: LinearEncoders, x: Tensor, y: Tensor, block: int = 500) -> Tensor:
    """Return the share of images whose most similar caption is their own, ``(K,)``; row i belongs to row i."""
    u, v = _unit(x @ encoders.image.mT)[0], _unit(y @ encoders.text.mT)[0].mT
    runs, count = u.shape[:2]
    # One buffer for all blocks: asking the system for new memory each time takes as long as the products.
    scores, found = u.new_empty(runs, min(block, count), v.shape[-1]), []
    for start in range(0, count, block):
        rows = u[:, start : start + block]
        found.append(torch.bmm(rows, v, out=scores[:, : rows.shape[1]]).argmax(-1))
    return (torch.cat(found, dim=-1) == torch.arange(count)).double().mean(-1)


@dataclass(slots=True)
class _Best:
    """The best encoders of each run so far, which judge."""

    encoders: LinearEncoders
    score: Tensor

    def refresh(self, current: LinearEncoders, validate: Validate, factor: float) -> None:
        score = validate(current)
        better = score > factor * self.score
        keep = ~better[:, None, None]
        self.encoders = LinearEncoders(
            torch.where(keep, self.encoders.image, current.image), torch.where(keep, self.encoders.text, current.text)
        )
        self.score = torch.where(better, score, self.score)


def _finder(x: Tensor, y: Tensor, detection: Detection, best: _Best | None) -> Callable[[Tensor], Detected]:
    def found(cos: Tensor) -> Detected:
        judged = cos if best is None else cosines(best.encoders, x, y)
        return detect(judged, detection.matching)

    return found


def _batches(x: Tensor, y: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    count = x.shape[-2] // size
    if count == 0 or x.shape[-2] != y.shape[-2]:
        raise UserError(
            f"{x.shape[-2]} images and {y.shape[-2]} captions",
            remedy=f"as many of one as of the other, {size} at least",
        )
    return [
        (x[..., start : start + size, :], y[..., start : start + size, :]) for start in range(0, count * size, size)
    ]


def _unpaired_batches(
    x: Tensor, y: Tensor, size: int, order: Order, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    if order == "independent":
        x, y = (each[..., torch.randperm(each.shape[-2], generator=generator), :] for each in (x, y))
    yield from _batches(x, y, size)


def _unit(z: Tensor) -> tuple[Tensor, Tensor]:
    norm = torch.linalg.vector_norm(z, dim=-1, keepdim=True).clamp(min=1e-12)
    return z / norm, norm


def _through_norm(slope: Tensor, unit: Tensor, norm: Tensor) -> Tensor:
    """Return the gradient for ``z``, given that for ``z / |z|``."""
    return (slope - unit * (slope * unit).sum(-1, keepdim=True)) / norm
