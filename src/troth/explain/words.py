"""The words of a tokenised caption, and which of its columns are theirs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from troth.errors import UserError

#: What begins a piece that begins a word: SentencePiece's and the byte-level byte pairs' space.
_BEGINNINGS = ("▁", "Ġ")


@dataclass(frozen=True)
class Words:
    """The words of one caption, as its tokeniser knows them.

    Attributes:
        words: in their order, as text.
        columns: the columns of the token ids that hold pieces of words; start, end, padding and other special tokens
            are not among them.
        word_of: for each of these the number of its word.
    """

    words: tuple[str, ...]
    columns: list[int]
    word_of: list[int]

    def strength(self, pieces: Float[Tensor, " T"]) -> Float[Tensor, " W"]:
        """Return each word's strength: that of its strongest piece, so that a rare word of many pieces loses nothing.

        Args:
            pieces: strengths of the pieces, none negative.
        """
        index = torch.tensor(self.word_of, device=pieces.device)
        return torch.stack([pieces[index == number].amax() for number in range(len(self.words))])


def words_of(tokenizer: Any, ids: Sequence[int]) -> Words:
    """Return the words of a row of token ids.

    Args:
        tokenizer: open_clip's byte-pair tokeniser, one of its wrappers of a transformers tokeniser, or the latter.
        ids: a row as the tower takes it.

    Raises:
        UserError: if there are no words in it.
    """
    if hasattr(tokenizer, "byte_decoder"):
        words = _byte_pairs(tokenizer, ids)
    else:
        words = _transformers(getattr(tokenizer, "tokenizer", tokenizer), ids)
    if not words.words:
        raise UserError("the text has no words", where="TEXT", remedy="describe what the picture might show")
    return words


def _byte_pairs(tokenizer: Any, ids: Sequence[int]) -> Words:
    """A word's last piece ends in ``</w>``. Padding is 0, which is also a piece: what counts is before the end."""
    end = ids.index(tokenizer.eot_token_id) if tokenizer.eot_token_id in ids else len(ids)
    columns = [column for column in range(end) if ids[column] not in tokenizer.all_special_ids]
    ends = [tokenizer.decoder[ids[column]].endswith("</w>") for column in columns]
    return _grouped(columns, [True, *ends][: len(ends)], lambda group: tokenizer.decode([ids[c] for c in group]))


def _transformers(tokenizer: Any, ids: Sequence[int]) -> Words:
    special = set(tokenizer.all_special_ids)
    columns = [column for column, piece in enumerate(ids) if piece not in special]
    pieces = tokenizer.convert_ids_to_tokens([ids[column] for column in columns])
    marks = _marks(tokenizer)
    if marks == "continuations":
        begins = [not piece.startswith("##") for piece in pieces]
    elif marks == "beginnings":
        begins = [piece.startswith(_BEGINNINGS) for piece in pieces]
    else:
        begins = [True] * len(pieces)
    piece_at = dict(zip(columns, pieces, strict=True))
    return _grouped(columns, begins, lambda group: tokenizer.convert_tokens_to_string([piece_at[c] for c in group]))


@lru_cache(maxsize=8)
def _marks(tokenizer: Any) -> Literal["continuations", "beginnings", "nothing"]:
    """What of a word a vocabulary marks. One caption does not show it: it may have no word of several pieces."""
    vocabulary = tokenizer.get_vocab()
    if any(piece.startswith("##") for piece in vocabulary):
        return "continuations"
    return "beginnings" if any(piece.startswith(_BEGINNINGS) for piece in vocabulary) else "nothing"


def _grouped(columns: list[int], begins: Sequence[bool], text_of: Any) -> Words:
    groups: list[list[int]] = []
    for column, begin in zip(columns, begins, strict=True):
        if begin or not groups:
            groups.append([])
        groups[-1].append(column)
    texts = [str(text_of(group)).strip() for group in groups]
    # A lone space of SentencePiece is a piece without a word.
    kept = [(group, text) for group, text in zip(groups, texts, strict=True) if text]
    return Words(
        tuple(text for _, text in kept),
        [column for group, _ in kept for column in group],
        [number for number, (group, _) in enumerate(kept) for _ in group],
    )
