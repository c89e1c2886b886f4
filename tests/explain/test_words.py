"""Which tokens are words."""

from types import SimpleNamespace

import open_clip
import pytest
import torch

from tests.explain.towers import small
from troth.encoders import FrozenTextEncoder
from troth.errors import UserError
from troth.explain.places import TextPlace, last_layer, text_place
from troth.explain.words import words_of


def test_byte_pairs_become_words_without_start_end_and_padding() -> None:
    tokenizer = open_clip.SimpleTokenizer(context_length=16)
    ids = tokenizer(["A unicornfish!!! déjà vu"])[0].tolist()
    words = words_of(tokenizer, ids)
    assert words.words == ("a", "unicornfish", "!!!", "déjà", "vu")
    end = ids.index(tokenizer.eot_token_id)
    assert words.columns == list(range(1, end))
    assert len(words.word_of) == len(words.columns) > len(words.words)
    assert words.word_of == sorted(words.word_of)


def test_the_exclamation_mark_is_not_taken_for_padding() -> None:
    """Its piece within a word has the number 0, as padding has."""
    tokenizer = open_clip.SimpleTokenizer(context_length=8)
    start, end = tokenizer.all_special_ids
    row = [start, 0, tokenizer.encoder["?</w>"], end, 0, 0, 0, 0]
    words = words_of(tokenizer, row)
    assert (words.words, words.columns) == (("!?",), [1, 2])


def test_what_is_cut_off_is_not_a_word() -> None:
    tokenizer = open_clip.SimpleTokenizer(context_length=5)
    assert words_of(tokenizer, tokenizer(["one two three four five"])[0].tolist()).words == ("one", "two", "three")


def test_word_pieces_become_words() -> None:
    pipeline = FrozenTextEncoder().pipeline
    ids = pipeline.token_ids(["A unicornfish, twice"])[0]
    words = words_of(pipeline.tokenizer, [*ids, pipeline.pad_id, pipeline.pad_id])
    assert words.words == ("a", "unicornfish", ",", "twice")
    assert words.columns == list(range(1, len(ids) - 1))


class SentencePieces:
    """As a transformers tokeniser of SentencePiece's kind looks from outside."""

    all_special_ids = (0, 1)
    pieces = ("<pad>", "</s>", "▁", "▁a", "▁uni", "corn", "fish")

    def get_vocab(self) -> dict[str, int]:
        return {piece: number for number, piece in enumerate(self.pieces)}

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [self.pieces[number] for number in ids]

    def convert_tokens_to_string(self, pieces: list[str]) -> str:
        return "".join(pieces).replace("▁", " ")


def test_sentence_pieces_become_words_also_behind_open_clips_wrapper() -> None:
    words = words_of(SimpleNamespace(tokenizer=SentencePieces()), [3, 2, 4, 5, 6, 1, 0, 0])
    assert words.words == ("a", "unicornfish")
    assert words.columns == [0, 2, 3, 4]
    assert words.word_of == [0, 1, 1, 1]
    assert words.strength(torch.tensor([0.5, 0.1, 0.7, 0.2])).tolist() == pytest.approx([0.5, 0.7])


def test_a_text_without_words_is_refused() -> None:
    tokenizer = open_clip.SimpleTokenizer(context_length=8)
    with pytest.raises(UserError, match="TEXT: the text has no words"):
        words_of(tokenizer, tokenizer([" "])[0].tolist())


def test_a_tower_says_which_column_stands_where() -> None:
    """Class tokens may be added anywhere; words are found by their columns."""
    order = torch.tensor([[-1, -1, 0, 1, 3, 2]])
    place = TextPlace(lambda _: lambda: None, places=lambda ids: order.expand(len(ids), -1))
    values = torch.arange(6.0)[None, :, None]
    assert place.pieces(values, torch.zeros(1, 4, dtype=torch.int64), [1, 2, 3])[:, 0].tolist() == [3.0, 5.0, 4.0]
    plain = TextPlace(lambda _: lambda: None, batch_first=False)
    assert plain.pieces(values.transpose(0, 1), torch.zeros(1, 6), [4, 5])[:, 0].tolist() == [4.0, 5.0]


def test_the_last_layer_of_a_transformers_model_is_found() -> None:
    from transformers import BertConfig, BertModel

    bert = BertModel(
        BertConfig(hidden_size=8, num_hidden_layers=3, num_attention_heads=1, intermediate_size=8, vocab_size=20)
    )
    assert last_layer(bert) is bert.encoder.layer[2]
    wrapped = SimpleNamespace(text=SimpleNamespace(transformer=bert))
    assert text_place(wrapped).batch_first
    with pytest.raises(UserError, match="no list of layers"):
        last_layer(torch.nn.Linear(1, 1))


def test_the_place_of_a_plain_clip_is_behind_the_last_blocks_first_norm() -> None:
    clip = small().clip
    norm = clip.transformer.resblocks[-1].ln_1
    remove = text_place(clip).site(lambda values: values)
    assert norm._forward_hooks
    remove()
    assert not norm._forward_hooks
