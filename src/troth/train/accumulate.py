"""Back-propagation of a contrastive batch that need not fit in memory.

A contrastive loss compares every pair with every other, so micro-batches with losses of their own are another, weaker
loss. Here one loss is formed over the features of the *whole* batch, and only the towers work in micro-batches
(GradCache: Gao et al., 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", section 3.2):

1. run the towers on each micro-batch without a graph and keep the features;
2. form the loss of the whole batch (all ranks) and its gradient with respect to the features;
3. run the towers on each micro-batch again, from the same random state, and back-propagate its features' gradients.

The gradients are those of the big batch, to rounding: an exact chain rule, not an approximation. The exception is a
tower that mixes samples, above all BatchNorm in training mode: its statistics are those of the micro-batch, and its
running averages are updated in both passes. The price is a second forward pass.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from troth.encoders.contrastive import Features
from troth.train.hardware import autocast
from troth.train.randomness import TorchRandom
from troth.types import Batch

#: Maps the features of this rank's whole batch to its ``(B,)`` unreduced losses.
LossFunction = Callable[[Features], Float[Tensor, " B"]]


#: The features that have one row a sample; the others belong to the whole batch.
_OF_ROWS = ("image", "text", "image_projection", "text_projection")


def backward(
    model: nn.Module,
    batch: Batch,
    loss: LossFunction,
    *,
    micro_batch_size: int | None = None,
    precision: torch.dtype | None = None,
) -> Float[Tensor, " B"]:
    """Add the gradient of ``loss(features of batch).mean()`` to the parameters of ``model``.

    Args:
        model: maps ``(image, text)`` to :class:`~troth.encoders.contrastive.Features`; may be wrapped in
            ``DistributedDataParallel``, whose averaging over ranks then happens once.
        batch: this rank's rows.
        loss: called once, outside autocast, with the features of all of ``batch``.
        micro_batch_size: how many rows the towers take at once; None, or as many as there are rows: an ordinary
            single pass.
        precision: what the towers are autocast to, if anything.

    Returns:
        The ``(B,)`` losses, detached.
    """
    size = micro_batch_size or len(batch)
    parts = [batch.slice(start, start + size) for start in range(0, len(batch), size)]
    if len(parts) == 1:
        features = _forward(model, batch, precision)
        leaves = _leaves(features)
        losses = _loss_gradients(leaves, loss)
        _push(features, leaves)
        return losses
    cached, states = _cache_features(model, parts, precision)
    leaves = _leaves(cached)
    losses = _loss_gradients(leaves, loss)
    for number, (part, state) in enumerate(zip(parts, states, strict=True)):
        last = number == len(parts) - 1
        with contextlib.nullcontext() if last else _without_averaging(model):
            state.restore()
            features = _forward(model, part, precision)
            # Scale and bias belong to the whole batch: their gradient goes back once, with the last part.
            _push(features, leaves, rows=slice(number * size, number * size + len(part)), with_scale=last)
    return losses


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside ``DistributedDataParallel``, or ``model`` itself."""
    return cast(nn.Module, model.module) if isinstance(model, nn.parallel.DistributedDataParallel) else model


def _without_averaging(model: nn.Module) -> contextlib.AbstractContextManager[object]:
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return cast("contextlib.AbstractContextManager[object]", model.no_sync())
    return contextlib.nullcontext()


def _forward(model: nn.Module, batch: Batch, precision: torch.dtype | None) -> Features:
    # A fresh autocast each time: its cache of cast weights must not carry graph-less casts into the second pass.
    with autocast(batch.image.device, precision):
        return cast(Features, model(batch.image, batch.text))


@torch.no_grad()
def _cache_features(
    model: nn.Module, parts: list[Batch], precision: torch.dtype | None
) -> tuple[Features, list[TorchRandom]]:
    states: list[TorchRandom] = []
    cached: list[Features] = []
    for part in parts:
        states.append(TorchRandom(part.image.device))
        cached.append(_forward(unwrapped(model), part, precision))
    rows = {
        name: torch.cat([getattr(features, name) for features in cached])
        for name in _OF_ROWS
        if getattr(cached[-1], name) is not None
    }
    return cached[-1]._replace(**rows), states


def _leaves(features: Features) -> Features:
    """Cut ``features`` off from the towers, so that the loss's graph is gone before the towers' is walked."""
    given = {name: part for name, part in features._asdict().items() if part is not None}
    return features._replace(**{name: part.detach().requires_grad_() for name, part in given.items()})


def _loss_gradients(leaves: Features, loss: LossFunction) -> Tensor:
    losses = loss(leaves)
    losses.mean().backward()  # type: ignore[no-untyped-call]
    return losses.detach()


def _push(features: Features, leaves: Features, *, rows: slice | None = None, with_scale: bool = True) -> None:
    """Back-propagate the gradients that ``leaves`` hold into the towers that made ``features``."""
    rows = slice(None) if rows is None else rows
    outputs: list[tuple[Tensor, Tensor]] = []
    for name, output, leaf in zip(Features._fields, features, leaves, strict=True):
        if output is None or leaf is None:
            continue
        if name in _OF_ROWS:
            outputs.append((output, _gradient(leaf)[rows]))
        elif with_scale:
            outputs.append((output, _gradient(leaf)))
    # A frozen tower or a fixed scale has no graph to walk.
    learned = [(output, gradient) for output, gradient in outputs if output.requires_grad]
    torch.autograd.backward([output for output, _ in learned], [gradient for _, gradient in learned])


def _gradient(leaf: Tensor) -> Tensor:
    # Zeros for what the objective did not use (a bias, say): all ranks must reach the same parameters.
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
