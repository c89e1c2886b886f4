"""open_clip's text transformer with several class tokens."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from open_clip.transformer import TextTransformer
from torch import Tensor

from troth.encoders.multi_token.rows import Added, adopt, grown, new_projection, no_intermediates, project
from troth.errors import UserError

#: open_clip's standard deviation of the positions that a text tower starts with.
_POSITIONS = 0.01


class MultiTokenText(TextTransformer):  # type: ignore[misc]
    """open_clip's text transformer with ``m`` class tokens, which are copies of one word at positions of their own.

    .. code-block:: text

        bidirectional:  first token, its m - 1 copies, the words, end of text | padding, which nobody sees
        causal:         first token, the words, end of text, its m - 1 copies | padding, which comes later

    Where the text ends is known from its end-of-text token. The id of its padding says nothing: in the byte-pair
    vocabulary 0 is the exclamation mark, too. The words keep their positions; those of the copies are the last rows of
    ``positional_embedding``.

    Args:
        tower: whose modules and parameters it takes over.
        num_tokens: ``m``.
        sub_dim: dimensions of a token's embedding; a new projection is drawn if the tower's has others.
        attention: which of the two.

    Attributes:
        num_tokens: as above.
        attention: as above.
        added: the parameters that have rows of the added class tokens.

    Raises:
        UserError: if the tower does not end in the embedding of the end-of-text token.
    """

    def __init__(
        self, tower: TextTransformer, num_tokens: int, sub_dim: int, attention: Literal["bidirectional", "causal"]
    ) -> None:
        _check_pooling(tower)
        adopt(self, tower)
        self.num_tokens, self.attention = num_tokens, attention
        extra = num_tokens - 1
        self.added = {"positional_embedding": Added(0, tower.num_pos, extra)}
        positions = _POSITIONS * torch.randn(extra, tower.width)
        self.positional_embedding = grown(tower.positional_embedding, self.added["positional_embedding"], positions)
        self.num_pos = tower.num_pos + extra
        for container in (self._buffers, self.__dict__):
            container.pop("attn_mask", None)
        mask = self.build_causal_mask() if attention == "causal" else None
        self.register_buffer("attn_mask", mask, persistent=False)
        if sub_dim != tower.output_dim:
            self.text_projection = new_projection(tower.width, sub_dim)
        self.output_dim = num_tokens * sub_dim

    def ends(self, text: Int64[Tensor, "B L"]) -> Int64[Tensor, " B"]:
        """Return the column of each text's end-of-text token."""
        if self.pool_type == "argmax":  # it is the largest id of the vocabulary
            return text.argmax(dim=-1)
        ends: Tensor = (text == self.eos_id).int().argmax(dim=-1)
        return ends

    def places(self, text: Int64[Tensor, "B L"]) -> Int64[Tensor, "B S"]:
        """Return for each place of the transformer's sequence the column of ``text`` there, -1 for added tokens."""
        extra = self.num_tokens - 1
        place = torch.arange(text.shape[1] + extra, device=text.device)
        copied = self._copied(text)[:, None]
        columns = torch.where(place <= copied, place, place - extra)
        return columns.masked_fill((place > copied) & (place <= copied + extra), -1)

    def class_places(self, text: Int64[Tensor, "B L"]) -> Int64[Tensor, "B m"]:
        """Return where in the transformer's sequence the class tokens stand."""
        return self._copied(text)[:, None] + torch.arange(self.num_tokens, device=text.device)

    def _copied(self, text: Int64[Tensor, "B L"]) -> Int64[Tensor, " B"]:
        return self.ends(text) if self.attention == "causal" else text.new_zeros(len(text))

    def _embeds(self, text: Int64[Tensor, "B L"]) -> tuple[Float[Tensor, "B S E"], Tensor]:
        dtype = self.transformer.get_cast_dtype()
        places = self.places(text)
        copies = places < 0
        words = text.gather(1, torch.where(copies, self._copied(text)[:, None], places))
        rows = torch.where(copies, self.context_length - 1 + copies.cumsum(1), places)
        if self.attention == "bidirectional":
            rows = rows[:1]  # the same for all texts
        x = self.token_embedding(words).to(dtype) + F.embedding(rows, self.positional_embedding).to(dtype)
        length = x.shape[1]
        if self.attention == "causal":
            return x, self.attn_mask[:length, :length]
        unseen = torch.zeros(places.shape, dtype=dtype, device=text.device)
        unseen.masked_fill_(places > self.ends(text)[:, None], float("-inf"))
        # Attention takes (B heads, S, S); a view serves, since all that ask see the same.
        return x, unseen.repeat_interleave(self.heads, 0)[:, None].expand(-1, length, -1)

    def forward(self, text: Int64[Tensor, "B L"]) -> Float[Tensor, "B D"]:
        """Return the projected class tokens of each text, side by side: ``D = m n``."""
        x, mask = self._embeds(text)
        x = self.transformer(x, attn_mask=mask)
        tokens = x.gather(1, self.class_places(text)[..., None].expand(-1, -1, x.shape[-1]))
        return project(self.ln_final(tokens), self.text_projection)

    def forward_intermediates(self, *_: Any, **__: Any) -> Any:
        """Raise a UserError: open_clip's counts on one token for each word."""
        raise no_intermediates()


def _check_pooling(tower: TextTransformer) -> None:
    if tower.cls_emb is not None:
        problem = "its class token stands behind the padding, and a decoder takes its words (CoCa)"
    elif tower.pool_type not in ("argmax", "eos"):
        problem = f"its pooling is {tower.pool_type!r}, so that nothing says where a text ends"
    elif tower.output_tokens:
        problem = "a decoder takes its words"
    else:
        return
    raise UserError(
        f"the text tower cannot have several class tokens: {problem}",
        where="model.multi",
        remedy="take a model whose text tower ends in its end-of-text token, such as ViT-B-16, or BERT",
    )
