"""What training remembers about each pair.

Losses that learn over many batches (a moving average of a pair's loss, of its partition function, of its probability of
being right) keep it here, under the pair's *stable sample id*: never under its place in a loader, which changes every
epoch. The state carries the fingerprint of the data it belongs to and refuses any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from troth import distributed
from troth.errors import UserError


class State:
    """Named per-sample memories, each a ``(num_samples,)`` tensor.

    Every rank holds the whole state and :meth:`write` makes all ranks agree; a pair that several ranks write in the
    same step keeps the value of the highest rank, on every rank.

    Args:
        num_samples: how many samples the data set has.
        fingerprint: what the data set's keys and captions hash to.
    """

    def __init__(self, num_samples: int, fingerprint: str) -> None:
        self.num_samples = num_samples
        self.fingerprint = fingerprint
        self._memories: dict[str, Tensor] = {}

    def declare(self, name: str, fill: float = float("nan"), dtype: torch.dtype = torch.float32) -> None:
        """Make room for a memory called ``name``, every sample at ``fill`` (NaN: not seen yet).

        Declaring a memory that exists already keeps its values, so that a resumed run may declare again.
        """
        if name not in self._memories:
            self._memories[name] = torch.full((self.num_samples,), fill, dtype=dtype)

    def __contains__(self, name: str) -> bool:
        return name in self._memories

    def __iter__(self) -> Iterator[str]:
        return iter(self._memories)

    def read(self, name: str, index: Int64[Tensor, " B"] | None = None) -> Float[Tensor, " B"]:
        """Return what is remembered as ``name`` about the samples ``index`` (all of them if None), on its device."""
        memory = self._memories[name]
        if index is None:
            return memory
        return memory[index.to(memory.device)].to(index.device)

    @torch.no_grad()
    def write(self, name: str, index: Int64[Tensor, " B"], values: Float[Tensor, " B"]) -> None:
        """Remember ``values`` about the samples ``index``, on every rank."""
        memory = self._memories[name]
        index = distributed.gather(index).to(memory.device)
        memory[index] = distributed.gather(values.detach()).to(memory)

    @torch.no_grad()
    def average(self, name: str, index: Int64[Tensor, " B"], values: Float[Tensor, " B"], keep: float) -> None:
        """Move the memory towards ``values``: ``keep * old + (1 - keep) * new``; a first visit takes ``new`` whole.

        Args:
            name: a declared memory whose fill is NaN.
            index: stable sample ids.
            values: this visit's values.
            keep: how much of the old value stays, in [0, 1).
        """
        old = self.read(name, index).to(values)
        moved = torch.where(torch.isnan(old), values, keep * old + (1 - keep) * values)
        self.write(name, index, moved)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the memories by name, as they stand (no copies)."""
        return dict(self._memories)

    def load_state_dict(self, memories: Mapping[str, Tensor], fingerprint: str) -> None:
        """Take over saved memories.

        Raises:
            UserError: if they belong to another data set.
        """
        if fingerprint != self.fingerprint:
            raise UserError(
                f"the saved per-pair state belongs to another data set (fingerprint {fingerprint[:12]}, "
                f"this one has {self.fingerprint[:12]})",
                where="data",
                remedy="resume with the data the run began with, or start a new run",
            )
        for name, values in memories.items():
            if values.shape != (self.num_samples,):
                raise UserError(
                    f"the saved memory {name!r} has {values.shape[0]} samples, the data set {self.num_samples}",
                    where="data",
                    remedy="resume with the data the run began with",
                )
        self._memories = {name: values.clone() for name, values in memories.items()}
