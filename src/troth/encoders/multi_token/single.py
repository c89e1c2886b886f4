"""What the parameters of towers with several class tokens were called, and shaped, when there was one."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from troth.encoders.base import DualEncoder
from troth.encoders.multi_token.rows import Added
from troth.encoders.towers import OpenClipEncoder

#: Where the text tower is in a model with several class tokens; open_clip's plain CLIP has its parts on the outside.
_TEXT = "clip.text."


class SingleToken:
    """The parameters of an encoder as they are in the same model with one class token.

    For an encoder with one class token, or none, nothing is another.

    Args:
        encoder: whose parameters.
        prefix: of their names.
    """

    def __init__(self, encoder: DualEncoder, prefix: str = "encoder.") -> None:
        self._prefix = prefix
        self._added: dict[str, Added] = {}
        self._text: str | None = None
        if isinstance(encoder, OpenClipEncoder) and encoder.multi is not None:
            self._text = prefix + _TEXT
            for side, tower in (("visual", encoder.clip.visual), ("text", encoder.clip.text)):
                self._added |= {f"{prefix}clip.{side}.{name}": added for name, added in tower.added.items()}

    def _is_plain(self, theirs: Iterable[str]) -> bool:
        """Whether ``theirs`` are names of open_clip's plain CLIP, and ours are not."""
        text = self._text
        return text is not None and not any(name.startswith(text) for name in theirs)

    def names(self, own: Iterable[str], theirs: Iterable[str]) -> dict[str, str]:
        """Return for each of our names which of ``theirs`` it was: itself, or a part of open_clip's plain CLIP."""
        if self._text is None or not self._is_plain(theirs):
            return {name: name for name in own}
        outside = self._prefix + "clip."
        return {name: name.replace(self._text, outside) if name.startswith(self._text) else name for name in own}

    def is_added(self, name: str, values: Tensor) -> bool:
        """Whether all of a parameter belongs to added class tokens."""
        added = self._added.get(name)
        return added is not None and added.number == values.shape[added.dim]

    def shapes(self, name: str, values: Tensor) -> list[tuple[int, ...]]:
        """Return the shapes that fit a parameter: its own, and those it has with one class token."""
        fitting, added = [tuple(values.shape)], self._added.get(name)
        if added is not None:
            shape = list(values.shape)
            shape[added.dim] -= added.number
            fitting.append(tuple(shape))
            if added.dim == 0 and shape[0] == 1:  # open_clip's one class embedding is a vector
                fitting.append(tuple(shape[1:]))
        return fitting

    @torch.no_grad()
    def put(self, name: str, values: Tensor, theirs: Tensor) -> None:
        """Write weights of one of :meth:`shapes` into a parameter; rows of added class tokens stay as they are."""
        if theirs.shape == values.shape:
            values.copy_(theirs)
            return
        added = self._added[name]
        kept = added.kept(values.shape[added.dim]).to(values.device)
        shape = list(values.shape)
        shape[added.dim] = len(kept)
        values.index_copy_(added.dim, kept, theirs.reshape(shape).to(values))
