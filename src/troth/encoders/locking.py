"""Making the towers of a model learn as their settings say."""

from __future__ import annotations

from torch import nn

from troth.encoders.contrastive import ContrastiveModel
from troth.encoders.lora import add_adapters
from troth.encoders.tower_groups import tower_groups
from troth.encoders.tower_training import Towers, TowerSide, TowerTraining
from troth.errors import UserError


def apply_towers(model: ContrastiveModel, towers: Towers, seed: int = 0) -> None:
    """Lock, adapt and freeze the towers of a new ``model``, and note how they learn for its optimiser.

    Args:
        model: changed in place; its optimiser is made afterwards.
        towers: how they learn.
        seed: adapters are drawn from it.

    Raises:
        UserError: if a tower has no such groups, adapters or batch norms, or nothing of the model learns.
    """
    model.towers = towers
    fixed: list[str] = []
    for side, training in towers.sides():
        if training.lora is not None:
            add_adapters(model.encoder, side, training.lora, seed)
        locked = _lock(model, side, training)
        if training.freeze_batch_norm:
            fixed += _batch_norms(model, side, locked if training.locked else None)
    model.fixed_statistics = tuple(fixed)
    model.train(model.training)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError("nothing in the model learns", remedy="leave one tower, or the scale, to be learned")


def _lock(model: ContrastiveModel, side: TowerSide, training: TowerTraining) -> set[str]:
    """Fix the locked groups of a tower and return their names."""
    groups = tower_groups(model.encoder, side)
    if not training.locked:
        return set()
    if training.unlocked_groups >= len(groups):
        raise UserError(
            f"the {side} tower has {len(groups)} groups",
            where=f"{side}.unlocked_groups",
            remedy=f"at most {len(groups) - 1}, or locked = false",
        )
    locked = {name for group in groups[: len(groups) - training.unlocked_groups] for name in group}
    for name in locked:
        model.encoder.get_parameter(name).requires_grad_(False)
    return locked


def _batch_norms(model: ContrastiveModel, side: TowerSide, locked: set[str] | None) -> list[str]:
    """Return the names in ``model`` of a tower's batch norms: of those in locked groups only, if there are some."""
    own = {name for group in tower_groups(model.encoder, side) for name in group}
    found = []
    for name, part in model.encoder.named_modules():
        if not isinstance(part, nn.modules.batchnorm._BatchNorm):
            continue
        parameters = {f"{name}.{parameter}" for parameter, _ in part.named_parameters()}
        if parameters and parameters <= (own if locked is None else locked):
            found.append(f"encoder.{name}")
    if not found:
        raise UserError(
            f"the {side} tower has no batch norms" + ("" if locked is None else " in its locked groups"),
            where=f"{side}.freeze_batch_norm",
            remedy="leave it out",
        )
    return found
