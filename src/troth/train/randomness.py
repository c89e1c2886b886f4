"""Random numbers that depend on the step alone.

Before each step every process is seeded from ``(seed, step, rank)``. The dropout masks of step 1,000 are then the same
whether the run came to it in one go, was killed and resumed, or evaluated in between, and a checkpoint need not carry
the state of any generator.
"""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed the global generators of torch (all devices), numpy and Python for one step of one process."""
    digest = hashlib.blake2b(f"troth step {seed} {step} {rank}".encode(), digest_size=8).digest()
    value = int.from_bytes(digest, "little")
    torch.manual_seed(value)
    np.random.seed(value & 0xFFFFFFFF)  # noqa: NPY002 - third-party towers draw from the global generator
    random.seed(value)


class TorchRandom:
    """The state of torch's generators (CPU, and the current GPU's if ``device`` is one) at the moment of creation."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device if device.type == "cuda" else None
        self._cpu_state = torch.get_rng_state()
        self._cuda_state = torch.cuda.get_rng_state(device) if self._cuda is not None else None

    def restore(self) -> None:
        """Put the generators back to where they were."""
        torch.set_rng_state(self._cpu_state)
        if self._cuda is not None and self._cuda_state is not None:
            torch.cuda.set_rng_state(self._cuda_state, self._cuda)
