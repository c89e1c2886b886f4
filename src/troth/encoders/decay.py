"""Which parameters weight decay must leave alone."""

from __future__ import annotations

import re

from torch import nn

#: Last components of names that are positions, class tokens, scales or biases whatever their shape.
_EXEMPT_NAMES = frozenset(
    {
        "positional_embedding",
        "class_embedding",
        "cls_emb",
        "cls_token",
        "dist_token",
        "reg_token",
        "pos_embed",
        "relative_position_bias_table",
        "log_scale",
        "logit_scale",
        "logit_bias",
        "bias",
    }
)
_NORMS = (
    nn.LayerNorm,
    nn.GroupNorm,
    nn.modules.batchnorm._NormBase,
    nn.RMSNorm,
    nn.LocalResponseNorm,
)
#: open_clip's names for norms, as whole components: ``bn1``, ``ln_pre``, ``ln``.
_NORM_NAME = re.compile(r"(^|\.)(bn|ln)(\d*|_\w+)(\.|$)")


def no_decay(module: nn.Module) -> set[str]:
    """Return the names of the parameters that get no weight decay.

    These are open_clip's exclusions (vectors and scalars, everything in a norm, biases, the logit scale) plus
    positional and class embeddings and whatever a tower itself lists in ``no_weight_decay()``, as timm towers do.
    The names are those of ``module.named_parameters()``; frozen parameters are listed too.

    Source: the training script of open_clip (``p.ndim < 2 or "bn" in n or "ln" in n or "bias" in n or
    "logit_scale" in n``), with names compared by component so that a tower called ``helnet`` keeps its decay.
    """
    exempt: set[str] = set()
    for prefix, part in module.named_modules():
        start = f"{prefix}." if prefix else ""
        if isinstance(part, _NORMS):
            exempt.update(start + name for name, _ in part.named_parameters(recurse=False))
        listed = getattr(part, "no_weight_decay", None)
        if callable(listed):
            exempt.update(start + name for name in listed())
    return {
        name
        for name, parameter in module.named_parameters()
        if name in exempt or parameter.ndim < 2 or name.rpartition(".")[2] in _EXEMPT_NAMES or _NORM_NAME.search(name)
    }
