"""Which device and which precision a run uses."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from troth import distributed
from troth.errors import UserError

#: ``auto`` is bfloat16 where the hardware multiplies matrices in it natively, float32 elsewhere.
Precision = Literal["auto", "float32", "bfloat16"]


def resolve_device(name: str = "auto") -> torch.device:
    """Return the device called ``name``; ``auto`` is this process's GPU if there is one, the CPU otherwise.

    Raises:
        UserError: if there is no such device here.
    """
    if name in ("auto", "cuda"):
        if torch.cuda.is_available():
            return torch.device("cuda", distributed.local_rank())
        if name == "auto":
            return torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UserError(
            f"there is no device {name!r} on this machine", where="train.device", remedy='use "auto" or "cpu"'
        ) from None
    return device


def describe_device(device: torch.device) -> str:
    """Name what kind of hardware ``device`` is: the same for all GPUs of one model."""
    return f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type


def has_fast_bfloat16(device: torch.device) -> bool:
    """Say whether ``device`` multiplies bfloat16 matrices natively (CPU: AMX or AVX512-BF16), not by emulation."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        # torch reports these only under private names up to 2.8 or so; a missing one means "not known to be fast".
        probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        return any(bool(getattr(torch.cpu, probe, bool)()) for probe in probes)
    return False


def resolve_precision(precision: Precision, device: torch.device) -> torch.dtype | None:
    """Return the dtype the towers are autocast to on ``device``, or None to leave them in their own precision."""
    if precision == "bfloat16" or (precision == "auto" and has_fast_bfloat16(device)):
        return torch.bfloat16
    return None


def describe_precision(dtype: torch.dtype | None) -> str:
    """Name what :func:`resolve_precision` returned, as a recipe does."""
    return "float32" if dtype is None else str(dtype).removeprefix("torch.")


@contextlib.contextmanager
def autocast(device: torch.device, dtype: torch.dtype | None) -> Iterator[None]:
    """Give a fresh context in which the towers run; the similarities and the loss stay outside it.

    On a CPU attention in bfloat16 takes torch's plain products: the backward pass of its fused kernel makes no use of
    the matrix units (``python -m benchmarks.train_step``).
    """
    if dtype is None:
        yield
        return
    plain = device.type == "cpu" and dtype == torch.bfloat16
    attention = sdpa_kernel(SDPBackend.MATH) if plain else contextlib.nullcontext()
    with torch.autocast(device.type, dtype=dtype), attention:
        yield
