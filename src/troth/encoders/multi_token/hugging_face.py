"""Hugging Face's BERT and its kin with several class tokens."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from open_clip.hf_model import ClsPooler, HFTextEncoder
from torch import Tensor, nn

from troth.encoders.multi_token.rows import Added, adopt, grown, new_linear, project
from troth.errors import UserError

_POSITIONS = "transformer.embeddings.position_embeddings.weight"


class MultiTokenHFText(HFTextEncoder):  # type: ignore[misc]
    """A BERT with ``m`` class tokens, as open_clip's text tower: the first token, its ``m - 1`` copies, the words.

    All tokens see all class tokens and words, and no padding. The words keep their positions; those of the copies are
    the last rows of the position embeddings. What BERT's own pooler does to its class token is done to each.

    Args:
        tower: whose modules and parameters it takes over; its class token is token 0.
        num_tokens: ``m``.
        sub_dim: dimensions of a token's embedding; a new projection is drawn if the tower's has others.

    Attributes:
        num_tokens: as above.
        added: the parameters that have rows of the added class tokens.

    Raises:
        UserError: if the tower has no table of absolute positions, such as mT5.
    """

    attention = "bidirectional"

    def __init__(self, tower: HFTextEncoder, num_tokens: int, sub_dim: int) -> None:
        table = getattr(getattr(tower.transformer, "embeddings", None), "position_embeddings", None)
        if not isinstance(table, nn.Embedding):
            raise UserError(
                f"the text tower cannot have several class tokens: {tower.config.model_type} has no table of absolute"
                " positions",
                where="model.multi",
                remedy="take a model whose text tower is BERT, RoBERTa or XLM-RoBERTa, or open_clip's own",
            )
        adopt(self, tower)
        self.num_tokens = num_tokens
        size, width = table.weight.shape
        self.added = {_POSITIONS: Added(0, size, num_tokens - 1)}
        drawn = float(self.config.initializer_range) * torch.randn(num_tokens - 1, width)
        table.weight = grown(table.weight, self.added[_POSITIONS], drawn)
        table.num_embeddings = size + num_tokens - 1
        if sub_dim != tower.output_dim:
            self.proj = new_linear(width, sub_dim)
        self.output_dim = num_tokens * sub_dim

    def places(self, text: Int64[Tensor, "B L"]) -> Int64[Tensor, "B S"]:
        """Return for each place of the transformer's sequence the column of ``text`` there, -1 for added tokens."""
        columns = torch.arange(text.shape[1], device=text.device)
        added = columns.new_full((self.num_tokens - 1,), -1)
        return torch.cat([columns[:1], added, columns[1:]]).expand(len(text), -1)

    def class_places(self, text: Int64[Tensor, "B L"]) -> Int64[Tensor, "B m"]:
        """Return where in the transformer's sequence the class tokens stand."""
        return torch.arange(self.num_tokens, device=text.device).expand(len(text), -1)

    def forward(self, x: Int64[Tensor, "B L"]) -> Float[Tensor, "B D"]:
        """Return the projected class tokens of each text, side by side: ``D = m n``."""
        columns = self.places(x).clamp(min=0)  # the copies are of the first token
        words = x.gather(1, columns)
        seen = (words != self.config.pad_token_id).long()
        output = self.transformer(
            input_ids=words,
            attention_mask=seen,
            position_ids=self._positions(x),
            token_type_ids=torch.zeros_like(words),
        )
        tokens = torch.take_along_dim(output.last_hidden_state, self.class_places(x)[..., None], dim=1)
        pooler = getattr(self.transformer, "pooler", None)
        if isinstance(self.pooler, ClsPooler) and self.pooler.use_pooler_output and pooler is not None:
            # BERT's pooler takes the first token of a sequence.
            tokens = pooler(tokens.flatten(0, 1)[:, None]).unflatten(0, tokens.shape[:2])
        return project(tokens, self.proj)

    def _positions(self, text: Int64[Tensor, "B L"]) -> Int64[Tensor, "B S"]:
        """Return the rows of the position embeddings: of words those of the tower alone, of copies the last ones."""
        table = self.transformer.embeddings.position_embeddings
        if table.padding_idx is None:
            own = torch.arange(text.shape[1], device=text.device).expand_as(text)
        else:  # RoBERTa counts from behind the row of padding
            words = (text != table.padding_idx).long()
            own = words.cumsum(1) * words + table.padding_idx
        extra = self.num_tokens - 1
        added = torch.arange(table.num_embeddings - extra, table.num_embeddings, device=text.device)
        return torch.cat([own[:, :1], added.expand(len(text), -1), own[:, 1:]], dim=1)
