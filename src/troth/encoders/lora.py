"""Low-rank adapters on the trunk of a tower, and their merging into its weights."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import torch
from torch import nn

from troth.encoders.base import DualEncoder
from troth.encoders.names import closest
from troth.encoders.tower_training import LoRA, TowerSide
from troth.encoders.towers import OpenClipEncoder, first_line, seeded
from troth.errors import UserError

#: What names of adapters contain, and what peft puts into the names of the weights that they adapt.
ADAPTER = ".lora_"
ADAPTED = ".base_layer"


def add_adapters(encoder: DualEncoder, side: TowerSide, config: LoRA, seed: int) -> None:
    """Put adapters into one tower and fix the rest of its trunk; the projection behind the trunk goes on learning.

    Args:
        encoder: changed in place.
        side: which tower.
        config: rank, strength and places of the adapters.
        seed: the first matrices are drawn from it; the second ones start at zero, so that nothing changes at first.

    Raises:
        UserError: if peft is not installed, the tower is neither timm's nor Hugging Face's, or has no such layers.
    """
    trunk = _trunk(encoder, side)
    targets = _targets(trunk, side, config)
    trunk.requires_grad_(False)
    with seeded(seed):
        _inject(trunk, side, config, targets)
    if side == "image":
        _refuse_bypassed(trunk, encoder.image_size)
    encoder.architecture += f" {side} {config!r}"


def _trunk(encoder: DualEncoder, side: TowerSide) -> nn.Module:
    """Return the timm or Hugging Face module of a tower."""
    trunk = None
    if isinstance(encoder, OpenClipEncoder):
        tower: Any = encoder.clip.visual if side == "image" else getattr(encoder.clip, "text", None)
        if side == "image":
            trunk = getattr(tower, "trunk", None)
        elif any(cls.__name__ == "HFTextEncoder" for cls in type(tower).__mro__):
            trunk = tower.transformer
    if not isinstance(trunk, nn.Module):
        raise UserError(
            f"adapters go into timm image towers and Hugging Face text towers; this {side} tower is neither",
            where=f"{side}.lora",
            remedy="leave lora out, or lock the tower but its last groups",
        )
    return trunk


def _targets(trunk: nn.Module, side: TowerSide, config: LoRA) -> list[str]:
    """Return the names of the layers that get adapters."""
    where = f"{side}.lora.targets"
    if config.targets is None:
        linear = [name for name, part in trunk.named_modules() if isinstance(part, nn.Linear)]
        if not linear:
            raise UserError(f"the trunk of the {side} tower has no linear layers", where=where, remedy="name others")
        return linear
    names = {name for name, _ in trunk.named_modules() if name}
    for target in config.targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            known = sorted({last for name in names if not (last := name.rpartition(".")[2]).isdigit()})
            raise UserError(
                f"the trunk of the {side} tower has no layer {target!r}",
                where=where,
                remedy=closest(target, known, f"it has {', '.join(known[:12])}"),
            )
    return list(config.targets)


def _inject(trunk: nn.Module, side: TowerSide, config: LoRA, targets: list[str]) -> None:
    try:
        import peft
    except ImportError:
        raise UserError(
            "adapters need peft, which is not installed", where=f"{side}.lora", remedy="pip install 'troth[lora]'"
        ) from None
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # peft only divides by the rank
        lora_dropout=config.dropout,
        target_modules=targets,
    )
    try:
        peft.inject_adapter_in_model(settings, trunk)
    except ValueError as error:  # a layer of a kind that peft has no adapter for
        raise UserError(first_line(error), where=f"{side}.lora.targets", remedy="name linear layers") from error


@torch.no_grad()
def _refuse_bypassed(trunk: nn.Module, image_size: int) -> None:
    """Refuse adapters that the trunk passes by: some attention layers multiply by a layer's weight themselves."""
    adapted = {name: part for name, part in trunk.named_modules() if _is_adapted(part)}
    used: set[str] = set()
    hooks = [part.register_forward_hook(lambda *_, name=name: used.add(name)) for name, part in adapted.items()]
    tensors = {name: values.to("meta") for name, values in (*trunk.named_parameters(), *trunk.named_buffers())}
    training = trunk.training
    try:
        # Where a trunk cannot run without values, nothing can be said.
        with contextlib.suppress(RuntimeError, NotImplementedError, TypeError):
            trunk.eval()
            torch.func.functional_call(trunk, tensors, (torch.empty(1, 3, image_size, image_size, device="meta"),))
            passed = sorted(adapted.keys() - used)
            if passed:
                raise UserError(
                    f"the image tower uses the weight of {passed[0]} without the layer, past its adapter",
                    where="image.lora.targets",
                    remedy="name other layers",
                )
    finally:
        trunk.train(training)
        for hook in hooks:
            hook.remove()


def _is_adapted(part: nn.Module) -> bool:
    return hasattr(part, "base_layer") and hasattr(part, "lora_A")


def has_adapters(module: nn.Module) -> bool:
    """Say whether there are adapters in ``module``."""
    return any(_is_adapted(part) for part in module.modules())


def without_adapters(module: Any) -> Any:
    """Return a copy of ``module`` with the adapters merged into the weights; ``module`` itself if it has none."""
    if not has_adapters(module):
        return module
    merged = copy.deepcopy(module)
    for name, part in list(merged.named_modules()):
        if _is_adapted(part):
            part.merge()
            parent, _, child = name.rpartition(".")
            setattr(merged.get_submodule(parent), child, part.get_base_layer())
    return merged
