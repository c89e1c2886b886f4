"""Checkpoints: whole or not there at all.

A checkpoint is a folder ``checkpoints/step-00000123`` with

* ``model.safetensors``: parameters and buffers by name;
* ``optimizer.safetensors``: AdamW's moments and step counts, as ``moment/parameter name``;
* ``state.safetensors``: what is remembered about each pair and about the run, as ``memory/name`` and ``value/name``,
  with the data's fingerprint;
* ``average.safetensors`` and the like: the weights of other models that a resumed run needs, if it has any;
* ``trainer.json``: where the run is, what it must match to be resumed, and the digest of each of the other files.

It is written under another name, brought to the disk, and renamed. An evaluation comes after it and changes only the
position in ``trainer.json``, which is replaced in the same way. No generator's state is saved, since every step is
seeded (:mod:`troth.train.randomness`), and no loader's, since batches are a pure function of the step.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import platform
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from troth import distributed
from troth.errors import UserError
from troth.state import State
from troth.train.optimizer import trainable_parameters

logger = logging.getLogger("troth")

_NAME = re.compile(r"step-(\d{8,})")
_PARTIAL = ".partial-"
_DISCARDED = "discarded"
_FORMAT = 1

#: A run that learns one model and keeps no other.
NO_COMPANIONS: Mapping[str, nn.Module] = MappingProxyType({})


@dataclass(frozen=True)
class Position:
    """Where a run is, and what it must match to be resumed.

    Attributes:
        step: how many optimiser steps are done.
        epoch: how many epochs are complete.
        total_steps: how many steps the whole run has.
        batch_size: samples of a step, over all ranks.
        seed: the run's seed.
        fingerprint: of the data set.
        world_size: how many ranks made the last step.
        threads: how many threads each rank computed with.
        best_step: the step whose evaluation was best, if there was one.
        best_value: its value of the metric that decides.
        metrics: the last evaluation.
        evaluated_step: the step of the last evaluation. A checkpoint is written before its evaluation, which this then
            does not know of.
        device: what the last step was computed on, None where it was not written down.
        precision: what the towers computed in, None where it was not written down.
        objective: what is minimised, with its settings; what is remembered about the pairs is its own.
        geometry: where the embeddings live.
        episodes: how training is cut into episodes, and whose clusters it learns from; "none" if it is not, None where
            it was not written down.
        versions: of Python and the libraries whose change may change the last bits.
    """

    step: int
    epoch: int
    total_steps: int
    batch_size: int
    seed: int
    fingerprint: str
    world_size: int = field(default_factory=distributed.world_size)
    threads: int = field(default_factory=torch.get_num_threads)
    best_step: int | None = None
    best_value: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    evaluated_step: int | None = None
    device: str | None = None
    precision: str | None = None
    objective: str | None = None
    geometry: str | None = None
    episodes: str | None = None
    versions: dict[str, str] = field(
        default_factory=lambda: {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        }
    )

    def made_with(self, other: Position) -> Position:
        """Return this position with the ranks, threads, hardware and libraries of ``other``."""
        names = ("world_size", "threads", "device", "precision", "versions")
        return dataclasses.replace(self, **{name: getattr(other, name) for name in names})


class Checkpoints:
    """The checkpoints of one run.

    With several ranks all of them call each method; rank 0 writes, and all read (from a file system they share).

    Args:
        folder: ``checkpoints`` in the run's folder.
        keep_last: how many of the newest checkpoints stay, beside the best one.
    """

    def __init__(self, folder: Path, *, keep_last: int = 2) -> None:
        self.folder = folder
        self.keep_last = keep_last

    @property
    def are_discarded(self) -> bool:
        """Whether :meth:`discard` removed them: the run is over, and its weights are gone."""
        return (self.folder / _DISCARDED).is_file()

    def discard(self) -> None:
        """Remove all checkpoints of a run that is over, for good: it is neither resumed nor opened then."""
        if not self.folder.is_dir():
            return
        (self.folder / _DISCARDED).touch()  # first, so that what a kill leaves is not taken up
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)

    def save(
        self,
        position: Position,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        state: State,
        companions: Mapping[str, nn.Module] = NO_COMPANIONS,
        *,
        name: str | None = None,
    ) -> Path:
        """Write a checkpoint and remove those that are too old; return its folder.

        Args:
            position: where the run is.
            model: the model itself, not its distributed wrapper.
            optimizer: the AdamW over its trainable parameters.
            state: what is remembered about each pair.
            companions: further models, by the names of their files.
            name: a folder name of its own, for a checkpoint that no resume should find.
        """
        path = self.folder / (name or f"step-{position.step:08d}")
        if distributed.is_main():
            self.folder.mkdir(parents=True, exist_ok=True)
            for leftover in self.folder.glob(f"{_PARTIAL}*"):
                shutil.rmtree(leftover)
            partial = self.folder / f"{_PARTIAL}{path.name}"
            partial.mkdir()
            _write_files(partial, position, model, optimizer, state, companions)
            _move_into_place(partial, path)
            self._prune(position.best_step)
        distributed.barrier()
        return path

    def rewrite_position(self, position: Position) -> None:
        """Replace, in one go, the position in the checkpoint of its step; then remove checkpoints that are too old."""
        if distributed.is_main():
            path = self.path(position.step)
            record = json.loads((path / "trainer.json").read_text(encoding="utf-8"))
            temporary = path / f"{_PARTIAL}trainer.json"
            _write_record(temporary, {**record, "position": dataclasses.asdict(position)})
            _sync(temporary)
            temporary.replace(path / "trainer.json")
            _sync(path)
            self._prune(position.best_step)
        distributed.barrier()

    def steps(self) -> list[int]:
        """Return the steps of all complete checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        matches = (_NAME.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted(int(match[1]) for match in matches if match)

    def path(self, step: int) -> Path:
        """Return the folder of the checkpoint of ``step``."""
        return self.folder / f"step-{step:08d}"

    def latest(self) -> Path | None:
        """Return the newest checkpoint that is whole, None if there is none to resume from.

        Half-written ones are ignored; a damaged one is passed over, with a line to the log.

        Raises:
            UserError: if there are checkpoints, but all are damaged.
        """
        found = self._latest_whole() if distributed.is_main() else None
        path, damage = distributed.broadcast_object(found)
        if path is None and damage is not None:
            raise UserError(
                f"no checkpoint can be read: {damage}",
                where=str(self.folder),
                remedy="start the run anew in another folder",
            )
        return None if path is None else Path(path)

    def best(self) -> Path | None:
        """Return the checkpoint whose evaluation was best; the newest if none was singled out, None if there is none.

        Raises:
            UserError: as :meth:`latest`.
        """
        latest = self.latest()
        step = None if latest is None else read_position(latest).best_step
        return latest if step is None else self.path(step)

    def _latest_whole(self) -> tuple[str | None, str | None]:
        damage = None
        for step in reversed(self.steps()):
            damage = find_damage(self.path(step))
            if damage is None:
                return str(self.path(step)), None
            logger.warning("checkpoint %s is damaged (%s); trying the one before", self.path(step).name, damage)
        return None, damage

    def _prune(self, best_step: int | None) -> None:
        for step in self.steps()[: -self.keep_last]:
            if step != best_step:
                shutil.rmtree(self.path(step))


def load(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    state: State,
    companions: Mapping[str, nn.Module] = NO_COMPANIONS,
) -> Position:
    """Put a checkpoint into ``model``, ``optimizer`` (if given), ``state`` and ``companions``; return its position.

    Raises:
        UserError: if it belongs to another model or another data set.
    """
    load_model(path, model)
    for name, companion in companions.items():
        load_model(path, companion, name)
    if optimizer is not None:
        _load_optimizer(path, model, optimizer)
    remembered, fingerprint = _read_state(path)
    state.load_state_dict(remembered, fingerprint)
    return read_position(path)


def load_model(path: Path, model: nn.Module, name: str = "model") -> None:
    """Put the weights of the checkpoint at ``path`` into ``model``: the trained ones, or a companion's by its name.

    Raises:
        UserError: if they are those of another model, or cannot be read.
    """
    try:
        safetensors.torch.load_model(model, path / f"{name}.safetensors")
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UserError(
            f"the checkpoint is of another model: {' '.join(lines[:2])[:300]}",
            where=str(path),
            remedy="use the model section of the recipe the run began with",
        ) from None
    except (SafetensorError, OSError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        raise UserError(
            f"the weights cannot be read: {' '.join(reason.split())[:300]}",
            where=str(path / f"{name}.safetensors"),
            remedy="bring the file back from a copy, use another checkpoint, or train anew in another folder",
        ) from None


def read_position(path: Path) -> Position:
    """Return where the run was when it wrote the checkpoint at ``path``."""
    values = json.loads((path / "trainer.json").read_text(encoding="utf-8"))["position"]
    known = {part.name for part in dataclasses.fields(Position)}
    return Position(**{name: value for name, value in values.items() if name in known})


def find_damage(path: Path) -> str | None:
    """Say what is wrong with the files of the checkpoint at ``path``; None if they are as they were written."""
    try:
        record = json.loads((path / "trainer.json").read_text(encoding="utf-8"))
        digests = dict(record["sha256"])
        read_position(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"trainer.json: {error}"
    for name, digest in digests.items():
        try:
            if _digest(path / name) != digest:
                return f"{name} is not as it was written"
        except OSError as error:
            return f"{name}: {error.strerror}"
    return None


def _write_files(
    folder: Path,
    position: Position,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: State,
    companions: Mapping[str, nn.Module],
) -> None:
    safetensors.torch.save_model(model, str(folder / "model.safetensors"))
    for name, companion in companions.items():
        safetensors.torch.save_model(companion, str(folder / f"{name}.safetensors"))
    safetensors.torch.save_file(_optimizer_tensors(model, optimizer), folder / "optimizer.safetensors")
    remembered = {name: values.contiguous() for name, values in state.state_dict().items()}
    metadata = {"fingerprint": state.fingerprint, "num_samples": str(state.num_samples)}
    safetensors.torch.save_file(remembered, folder / "state.safetensors", metadata=metadata)
    record = {
        "format": _FORMAT,
        "position": dataclasses.asdict(position),
        "sha256": {path.name: _digest(path) for path in sorted(folder.iterdir())},
    }
    _write_record(folder / "trainer.json", record)
    for path in folder.iterdir():
        _sync(path)
    _sync(folder)


def _write_record(path: Path, record: dict[str, Any]) -> None:
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _move_into_place(partial: Path, path: Path) -> None:
    if path.exists():  # written by a process that was killed later, and passed over because it was damaged
        old = path.with_name(f"{_PARTIAL}old-{path.name}")
        shutil.rmtree(old, ignore_errors=True)
        path.replace(old)
        partial.replace(path)
        shutil.rmtree(old)
    else:
        partial.replace(path)
    _sync(path.parent)


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Name each of the optimiser's tensors after its parameter."""
    return {
        f"{moment}/{name}": values.contiguous()
        for name, parameter in trainable_parameters(model)
        for moment, values in optimizer.state.get(parameter, {}).items()
    }


def _load_optimizer(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    saved: dict[str, dict[str, Tensor]] = {}
    for key, values in safetensors.torch.load_file(path / "optimizer.safetensors").items():
        moment, name = key.split("/", 1)
        saved.setdefault(name, {})[moment] = values
    for name, parameter in trainable_parameters(model):
        if name in saved:
            optimizer.state[parameter] = {
                moment: _like_parameter(values, parameter) for moment, values in saved[name].items()
            }


def _like_parameter(values: Tensor, parameter: nn.Parameter) -> Tensor:
    if values.ndim == 0:  # the step count
        return values.to(parameter.device) if parameter.device.type == "cuda" else values
    # The fused kernel walks parameter and moments together: they need one memory layout (channels-last, say).
    return torch.empty_like(parameter, requires_grad=False).copy_(values)


def _read_state(path: Path) -> tuple[dict[str, Tensor], str]:
    with safetensors.safe_open(path / "state.safetensors", framework="pt") as file:
        metadata: dict[str, Any] = file.metadata() or {}
        return {name: file.get_tensor(name) for name in file.keys()}, str(metadata.get("fingerprint"))  # noqa: SIM118


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
