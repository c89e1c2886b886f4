"""What training remembers: about each pair, and about the run.

Losses that learn over many batches (a moving average of a pair's loss, of its partition function, of its probability of
being right) keep it here, under the pair's *stable sample id*: never under its place in a loader, which changes every
epoch. A few numbers of the whole run (a fitted mixture, an estimate of the noise) are kept beside them. The state
carries the fingerprint of the data it belongs to and refuses any other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from troth import distributed
from troth.errors import UserError

#: What a memory's and a value's name begin with in :meth:`State.state_dict`.
_MEMORY, _VALUE = "memory/", "value/"


@dataclass(frozen=True)
class Clock:
    """Where training is: all that a schedule or a random draw of an objective may depend on.

    Attributes:
        seed: the run's seed.
        step: the number of the step being made, the first is 0.
        steps_per_epoch: how many steps a pass over the data has.
        total_steps: how many steps the run has that bring pairs; a later one has no pairs, and no objective to ask.
    """

    seed: int = 0
    step: int = 0
    steps_per_epoch: int = 1
    total_steps: int = 1

    @property
    def epoch(self) -> int:
        """The number of the epoch the step belongs to, the first is 0."""
        return self.step // self.steps_per_epoch

    @property
    def progress(self) -> float:
        """The share of the run's steps with pairs that lies behind, in [0, 1) at each of them."""
        return self.step / self.total_steps

    @property
    def starts_epoch(self) -> bool:
        """Whether the step is the first of its epoch."""
        return self.step % self.steps_per_epoch == 0


@dataclass
class _Store:
    """What all scopes of one state share."""

    clock: Clock = field(default_factory=Clock)
    memories: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, Tensor] = field(default_factory=dict)
    notes: dict[str, Tensor] = field(default_factory=dict)


class State:
    """Named per-sample memories, each a ``(num_samples,)`` tensor, and named values of the whole run.

    Every rank holds the whole state. :meth:`write` and :meth:`set_value` are made by all ranks together and make them
    agree; a pair that is written twice in the same step (by several ranks, or by one) keeps the last value in rank
    order, on every rank.

    Args:
        num_samples: how many samples the data set has.
        fingerprint: what the data set's keys and captions hash to.
    """

    def __init__(self, num_samples: int, fingerprint: str) -> None:
        self.num_samples = num_samples
        self.fingerprint = fingerprint
        self._prefix = ""
        self._store = _Store()

    @property
    def clock(self) -> Clock:
        """Where training is. The training loop sets it before every step."""
        return self._store.clock

    @clock.setter
    def clock(self, clock: Clock) -> None:
        self._store.clock = clock

    @property
    def path(self) -> str:
        """What this scope's names begin with: random draws of two parts of one objective differ by it."""
        return self._prefix

    def scope(self, prefix: str) -> State:
        """Return a view on this state whose names begin with ``prefix/``; everything else is shared, the clock too.

        The parts of a composite objective each get a scope of their own, so that two of a kind do not share memories.
        """
        view = State(self.num_samples, self.fingerprint)
        view._prefix = f"{self._prefix}{prefix}/"
        view._store = self._store
        return view

    def declare(self, name: str, fill: float = float("nan"), dtype: torch.dtype = torch.float32) -> None:
        """Make room for a memory called ``name``, every sample at ``fill`` (NaN: not seen yet).

        Declaring a memory that exists already keeps its values, so that a resumed run may declare again.
        """
        if name not in self:
            self._store.memories[self._prefix + name] = torch.full((self.num_samples,), fill, dtype=dtype)

    def __contains__(self, name: str) -> bool:
        return self._prefix + name in self._store.memories

    def __iter__(self) -> Iterator[str]:
        names = list(self._store.memories)
        return (name.removeprefix(self._prefix) for name in names if name.startswith(self._prefix))

    def read(self, name: str, index: Int64[Tensor, " B"] | None = None) -> Float[Tensor, " B"]:
        """Return what is remembered as ``name`` about the samples ``index`` (all of them if None), on its device.

        The values have the memory's precision, float32 unless declared otherwise.
        """
        memory = self._store.memories[self._prefix + name]
        if index is None:
            return memory
        return memory[index.to(memory.device)].to(index.device)

    @torch.no_grad()
    def write(self, name: str, index: Int64[Tensor, " B"], values: Float[Tensor, " B"]) -> None:
        """Remember ``values`` about the samples ``index``, on every rank."""
        memory = self._store.memories[self._prefix + name]
        index = distributed.gather(index).to(memory.device)
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < self.num_samples:
            raise ValueError(f"sample ids {int(index.min())} to {int(index.max())} in a state of {self.num_samples}")
        values = distributed.gather(values.detach()).to(memory)
        # Assigning to repeated places has no defined order: the last row of each sample is picked first.
        samples, which = torch.unique(index, return_inverse=True)
        rows = torch.arange(len(index), device=index.device)
        last = torch.zeros_like(samples).scatter_reduce(0, which, rows, "amax", include_self=False)
        memory[samples] = values[last]

    @torch.no_grad()
    def average(self, name: str, index: Int64[Tensor, " B"], values: Float[Tensor, " B"], keep: float) -> None:
        """Move the memory towards ``values``: ``keep * old + (1 - keep) * new``; a first visit takes ``new`` whole.

        A sample that occurs twice in one batch moves once, towards its last value.

        Args:
            name: a declared memory whose fill is NaN.
            index: stable sample ids.
            values: this visit's values.
            keep: how much of the old value stays, in [0, 1).
        """
        old = self.read(name, index).to(values)
        moved = torch.where(torch.isnan(old), values, keep * old + (1 - keep) * values)
        self.write(name, index, moved)

    def log_average(
        self, name: str, index: Int64[Tensor, " B"], values: Float[Tensor, " B"], keep: float
    ) -> Float[Tensor, " B"]:
        """Move a memory of logarithms as :meth:`average` moves their exponentials; return the moved values.

        .. code-block:: text

            log( keep exp(old) + (1 - keep) exp(new) )
        """
        moved = log_blend(self.read(name, index).to(values), values.detach(), keep)
        self.write(name, index, moved)
        return moved

    def note(self, name: str, values: Float[Tensor, " B"]) -> None:
        """Let the log have a number of every pair of this step: its mean is written beside the loss.

        Notes are for people: nothing reads them, and no checkpoint holds them.
        """
        self._store.notes[self._prefix + name] = values.detach()

    def take_notes(self) -> dict[str, Tensor]:
        """Return this step's notes by name, and forget them."""
        notes, self._store.notes = self._store.notes, {}
        return notes

    def declare_value(self, name: str, value: Tensor) -> None:
        """Make room for a value of the whole run called ``name``, which starts as ``value``.

        Declaring a value that exists already keeps it, so that a resumed run may declare again.

        Raises:
            UserError: if the existing one has another shape.
        """
        existing = self._store.values.get(self._prefix + name)
        if existing is None:
            self._store.values[self._prefix + name] = value.detach().cpu().clone()
        else:
            _check_shape(self._prefix + name, existing, value)

    def value(self, name: str) -> Tensor:
        """Return the value of the whole run called ``name``, on the CPU. It is not to be changed in place."""
        return self._store.values[self._prefix + name]

    @torch.no_grad()
    def set_value(self, name: str, value: Tensor) -> None:
        """Replace the declared value called ``name``, in its declared precision, on every rank by that of the first.

        Raises:
            ValueError: if its shape is not the declared one.
        """
        declared = self.value(name)
        if value.shape != declared.shape:
            raise ValueError(f"value {name!r} was declared as {tuple(declared.shape)}, not {tuple(value.shape)}")
        agreed: Tensor = distributed.broadcast_object(value.detach().cpu())
        self._store.values[self._prefix + name] = agreed.to(declared.dtype, copy=True)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the memories and values of the whole state (of all scopes), as they stand (no copies)."""
        memories = {_MEMORY + name: memory for name, memory in self._store.memories.items()}
        return memories | {_VALUE + name: value for name, value in self._store.values.items()}

    def load_state_dict(self, saved: Mapping[str, Tensor], fingerprint: str) -> None:
        """Take over saved memories and values, of the whole state.

        Raises:
            UserError: if they belong to another data set, or a value has another shape than the one declared.
        """
        if fingerprint != self.fingerprint:
            raise UserError(
                f"the saved per-pair state belongs to another data set (fingerprint {fingerprint[:12]}, "
                f"this one has {self.fingerprint[:12]})",
                where="data",
                remedy="resume with the data the run began with, or start a new run",
            )
        memories = {key.removeprefix(_MEMORY): kept for key, kept in saved.items() if key.startswith(_MEMORY)}
        values = {key.removeprefix(_VALUE): kept for key, kept in saved.items() if key.startswith(_VALUE)}
        for name, memory in memories.items():
            if memory.shape != (self.num_samples,):
                raise UserError(
                    f"the saved memory {name!r} has {memory.numel()} samples, the data set {self.num_samples}",
                    where="data",
                    remedy="resume with the data the run began with",
                )
        for name, value in values.items():
            if name in self._store.values:
                _check_shape(name, value, self._store.values[name])
        self._store.memories = {name: memory.clone() for name, memory in memories.items()}
        self._store.values = {name: value.clone() for name, value in values.items()}


def log_blend(old: Float[Tensor, " B"], new: Float[Tensor, " B"], keep: float) -> Float[Tensor, " B"]:
    """Return ``log(keep exp(old) + (1 - keep) exp(new))``; ``new`` where ``old`` is NaN (not seen yet)."""
    if keep == 0:
        return new
    return torch.where(torch.isnan(old), new, torch.logaddexp(old + math.log(keep), new + math.log1p(-keep)))


def _check_shape(name: str, saved: Tensor, declared: Tensor) -> None:
    if saved.shape != declared.shape:
        raise UserError(
            f"the saved value {name!r} has the shape {tuple(saved.shape)}, this objective's {tuple(declared.shape)}",
            where="objective",
            remedy="resume with the objective the run began with, or start a new run",
        )
