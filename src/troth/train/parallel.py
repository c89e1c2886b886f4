"""The model as all ranks train it together."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from troth import distributed
from troth.train.hardware import autocast
from troth.types import Batch


def replicate(model: nn.Module, sample: Batch, precision: torch.dtype | None = None) -> nn.Module:
    """Return ``model`` wrapped so that its gradients are averaged over ranks; ``model`` itself in a single process.

    DistributedDataParallel rearranges its buckets after the first backward pass, and with more than two ranks another
    arrangement is another order of summation, hence other last bits: a resumed run would part from the uninterrupted
    one at its first step. So a pass whose gradients are thrown away is made here, and every real step finds the
    buckets as they will stay. A pass before it finds the parameters that no output depends on, which
    DistributedDataParallel would wait for in vain.

    Args:
        model: all ranks' copies become equal to rank 0's.
        sample: some rows of a batch, for the passes that are thrown away.
        precision: what the towers are autocast to, if anything.
    """
    if distributed.world_size() == 1:
        return model
    buffers = [buffer.clone() for buffer in model.buffers()]
    _throw_away_pass(model, sample, precision)
    unused = [parameter for parameter in model.parameters() if parameter.requires_grad and parameter.grad is None]
    model.zero_grad(set_to_none=True)
    device = sample.image.device
    for parameter in unused:
        parameter.requires_grad_(False)
    replica = DistributedDataParallel(
        model, device_ids=[device] if device.type == "cuda" else None, gradient_as_bucket_view=True
    )
    for parameter in unused:
        parameter.requires_grad_(True)
    _throw_away_pass(replica, sample, precision)
    model.zero_grad(set_to_none=True)
    with torch.no_grad():
        for buffer, saved in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(saved)
    return replica


def _throw_away_pass(model: nn.Module, sample: Batch, precision: torch.dtype | None) -> None:
    with autocast(sample.image.device, precision):
        outputs: tuple[Tensor | None, ...] = model(sample.image, sample.text)
    total = sum(output.sum() for output in outputs if output is not None and output.requires_grad)
    assert isinstance(total, Tensor), "nothing in the model learns"
    total.backward()  # type: ignore[no-untyped-call]
