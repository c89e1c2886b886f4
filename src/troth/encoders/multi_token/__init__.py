"""Several class tokens in each tower: the multi-token form of the oblique manifold."""

from __future__ import annotations

from typing import Any

from troth.encoders.multi_token.config import Multi, TextAttention, Trained

__all__ = ["Multi", "TextAttention", "Trained", "give_tokens"]


def give_tokens(
    clip: Any, multi: Multi | None, model_cfg: dict[str, Any], trained: Trained = "nothing"
) -> Multi | None:
    """Replace both towers of a model by towers with several class tokens that begin with their weights.

    Args:
        clip: an ``open_clip.CustomTextCLIP``, changed in place.
        multi: how many tokens, how wide; None leaves everything as it is.
        model_cfg: open_clip's configuration that ``clip`` was built from; its ``embed_dim`` becomes that of a token.
        trained: which of the weights come from training.

    Returns:
        ``multi`` with what it left open filled in.

    Raises:
        UserError: if a tower cannot have several class tokens.
    """
    if multi is None:
        return None
    # open_clip takes seconds to import, and a recipe should be readable without it.
    from troth.encoders.multi_token.build import replace_towers

    return replace_towers(clip, multi, model_cfg, trained)
