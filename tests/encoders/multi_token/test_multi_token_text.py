"""Text towers with several class tokens: who sees whom, told by changing what is seen."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.encoders.multi_token.towers import TEXTS, custom_clip, hugging_face_cfg, small, tokens_of
from troth.encoders import Multi
from troth.encoders.multi_token import give_tokens

ATTENTIONS = ("bidirectional", "causal")
PAD, START, END = 0, 49406, 49407


def tower_and_ids(attention: str, **fields: int) -> tuple[nn.Module, Tensor]:
    encoder = small(attention, **fields).build(0).double().eval()
    ids = encoder.tokenize(TEXTS)
    ids[::2, 2] = PAD  # an exclamation mark within a word, such as "so!so"
    return encoder.clip.text, ids


@torch.no_grad()
def push(values: Tensor) -> None:
    """Change some vectors of a parameter, in a direction that a layer norm does not take out."""
    values += torch.linspace(-1, 1, values.shape[-1], dtype=values.dtype) ** 3


def ends(ids: Tensor) -> list[int]:
    return [row.tolist().index(END) for row in ids]


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_places_are_those_of_the_words_and_of_copies(attention: str) -> None:
    tower, ids = tower_and_ids(attention)
    places = tower.places(ids)
    assert places.dtype == torch.int64
    assert places.shape == (3, 12 + 2)
    for row, end in zip(places.tolist(), ends(ids), strict=True):
        copied = 0 if attention == "bidirectional" else end
        words = list(range(12))
        assert row == [*words[: copied + 1], -1, -1, *words[copied + 1 :]]
    classes = tower.class_places(ids)
    assert classes.tolist() == [
        [copied, copied + 1, copied + 2] for copied in ([0] * 3 if attention == "bidirectional" else ends(ids))
    ]


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("grad", [True, False])
def test_padding_is_seen_by_nobody(attention: str, grad: bool) -> None:
    tower, ids = tower_and_ids(attention)
    with torch.set_grad_enabled(grad):
        before = tower(ids)
        changed = ids.clone()
        for row, end in zip(changed, ends(ids), strict=True):
            row[end + 1 :] = torch.randint(1, 5000, row[end + 1 :].shape)
        assert not torch.equal(changed, ids)
        torch.testing.assert_close(tower(changed), before, rtol=0, atol=0)
        # Nor what stands there: positions behind the longest text. Their id is that of a word, though.
        longest = max(ends(ids))
        push(tower.positional_embedding[longest + 1 : 12])
        torch.testing.assert_close(tower(ids), before, rtol=0, atol=0)
        push(tower.token_embedding.weight[PAD])
        after = tower(ids)
    assert torch.equal(after[1], before[1]), "this text has no exclamation mark"
    assert (tokens_of(after - before)[[0, 2]].abs().amax(-1) > 1e-6).all(), "an exclamation mark is a word"


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_every_class_token_sees_every_word(attention: str) -> None:
    tower, ids = tower_and_ids(attention)
    before = tower(ids)
    for number, end in enumerate(ends(ids)):
        for column in range(1, end):
            changed = ids.clone()
            changed[number, column] = 777
            moved = tokens_of(tower(changed) - before).abs().amax(-1)
            assert (moved[number] > 1e-6).all(), (number, column)
            others = [other for other in range(3) if other != number]
            assert (moved[others] == 0).all()


def sequence(tower: nn.Module, ids: Tensor, layer: int = -1) -> Tensor:
    """The states of all places behind a layer."""
    found: list[Tensor] = []
    hook = tower.transformer.resblocks[layer].register_forward_hook(lambda *arguments: found.append(arguments[-1]))
    tower(ids)
    hook.remove()
    return found[0]


def test_causal_tokens_see_what_comes_before_them() -> None:
    tower, ids = tower_and_ids("causal")
    end, places = ends(ids)[0], tower.places(ids)[0].tolist()
    before = sequence(tower, ids)[0]
    for column in range(1, end):
        changed = ids.clone()
        changed[0, column] = 777
        moved = (sequence(tower, changed)[0] - before).abs().amax(-1)
        place = places.index(column)
        assert (moved[:place] == 0).all()
        assert (moved[place : end + 3] > 1e-6).all()
    # Of the class tokens, the k-th sees the first k only.
    push(tower.positional_embedding[12 + 1])  # of class token 2
    moved = (sequence(tower, ids)[0] - before).abs().amax(-1)
    assert (moved[: end + 2] == 0).all()
    assert moved[end + 2] > 1e-6


def test_bidirectional_words_see_all_words_and_all_class_tokens() -> None:
    tower, ids = tower_and_ids("bidirectional")
    end, places = ends(ids)[0], tower.places(ids)[0].tolist()
    before = sequence(tower, ids)[0]
    last = places.index(end)
    for column in (1, end - 1):
        changed = ids.clone()
        changed[0, column] = 777
        moved = (sequence(tower, changed)[0] - before).abs().amax(-1)
        assert (moved[: last + 1] > 1e-6).all()
    push(tower.positional_embedding[12 + 1])
    moved = (sequence(tower, ids)[0] - before).abs().amax(-1)
    assert (moved[: last + 1] > 1e-6).all()


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_class_tokens_differ_by_their_positions(attention: str) -> None:
    tower, ids = tower_and_ids(attention)
    found = tokens_of(tower(ids))
    for one in range(3):
        for other in range(one):
            assert (found[:, one] - found[:, other]).abs().amax(-1).min() > 1e-3
    ids = ids[:1]
    row = tower.class_places(ids)[0, 0]  # that of token 0, which is a word
    with torch.no_grad():
        tower.positional_embedding[12:] = tower.positional_embedding[row]
    same = tokens_of(tower(ids))
    # Two causal class tokens at one position see each other from two sides; bidirectional ones are equal.
    assert torch.allclose(same, same[:, :1].expand_as(same), rtol=0, atol=1e-12) == (attention == "bidirectional")


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_text_that_fills_the_context_has_its_class_tokens(attention: str) -> None:
    encoder = small(attention).build(0).eval()
    ids = encoder.tokenize(["a b c d e f g h i j k l m n", "a b c d e f g h i j k l"])
    assert (ids != PAD).all()
    assert encoder.encode_text(ids).isfinite().all()
    assert (tokens_of(encoder.encode_text(ids)).std(dim=1) > 0).all()


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_shorter_texts_may_be_cut(attention: str) -> None:
    tower, ids = tower_and_ids(attention)
    torch.testing.assert_close(tower(ids[:, : max(ends(ids)) + 1]), tower(ids), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_tower_moves_and_trains_in_bfloat16(attention: str) -> None:
    encoder = small(attention).build(0).train()
    ids = encoder.tokenize(TEXTS)
    exact = encoder.encode_text(ids)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = encoder.encode_text(ids)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, rtol=0.1, atol=0.1)
    rounded.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.clip.text.parameters())
    assert not any("attn_mask" in name for name in encoder.state_dict())


# Hugging Face's towers


def hugging_face(folder: Path, kind: str, pooler: str = "cls_pooler", num_tokens: int = 3) -> tuple[nn.Module, Tensor]:
    cfg = hugging_face_cfg(folder, kind, hf_pooler_type=pooler)
    clip = custom_clip(cfg)
    multi = give_tokens(clip, Multi(sub_dim=8, num_tokens=num_tokens), cfg)
    assert multi == Multi(sub_dim=8, num_tokens=num_tokens, text_attention="bidirectional")
    pad = clip.text.config.pad_token_id
    ids = torch.tensor([[2, 10, 11, 12, 3, pad, pad, pad], [2, 20, 3, pad, pad, pad, pad, pad]])
    return clip.text.double().eval(), ids


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("pooler", ["cls_pooler", "mean_pooler"])
def test_bert_sees_words_and_class_tokens_and_no_padding(tmp_path: Path, kind: str, pooler: str) -> None:
    tower, ids = hugging_face(tmp_path, kind, pooler)
    pad = tower.config.pad_token_id
    assert tower.places(ids)[0].tolist() == [0, -1, -1, 1, 2, 3, 4, 5, 6, 7]
    assert tower.class_places(ids).tolist() == [[0, 1, 2]] * 2
    before = tower(ids)
    assert before.shape == (2, 24)
    found = tokens_of(before)
    assert (found[:, 1:] - found[:, :1]).abs().amax(-1).min() > 1e-5
    push(tower.transformer.embeddings.word_embeddings.weight[pad])
    torch.testing.assert_close(tower(ids), before, rtol=0, atol=0)
    torch.testing.assert_close(tower(ids[:, :5]), before, rtol=1e-10, atol=1e-10)
    for column in (1, 2, 3):
        changed = ids.clone()
        changed[0, column] = 33
        moved = tokens_of(tower(changed) - before).abs().amax(-1)
        assert (moved[0] > 1e-7).all()
        assert (moved[1] == 0).all()
    rows = tower.transformer.embeddings.position_embeddings.weight
    assert len(rows) == 14 + 2
    push(rows[-1])  # of class token 2, which all others see
    assert (tokens_of(tower(ids) - before).abs().amax(-1) > 1e-7).all()
