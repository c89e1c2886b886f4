"""Content hashes of weights: what makes a cached embedding belong to one model and no other."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 (hex) of named tensors: names, types, shapes and values, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        # A zero-dimensional or empty tensor cannot be viewed as bytes directly, hence the flattening.
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def hash_module(module: nn.Module) -> str:
    """Return the sha256 (hex) of a module's parameters and persistent buffers."""
    return hash_tensors(module.state_dict())
