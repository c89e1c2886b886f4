"""Pairs of class tokens of towers that have several, explained one by one."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.encoders.multi_token.towers import MULTI, TIMM_VIT
from tests.encoders.multi_token.towers import SMALL as BASE
from tests.explain.test_explainer import plain_grad_cam, run_block
from tests.explain.towers import model_of, picture
from troth.encoders import OpenClipEncoder
from troth.explain import explain
from troth.geometry import Oblique

SMALL = replace(BASE, image_size=48, context_length=10, multi=MULTI)
TIMM = replace(TIMM_VIT, image_size=48, context_length=10, multi=MULTI)
GEOMETRY = Oblique(sub_dim=8, num_spheres=3)
CAPTION = "one unicornfish"


@pytest.fixture(scope="module")
def towers() -> OpenClipEncoder:
    return SMALL.build(1).double()


def test_a_token_pairs_map_is_that_of_its_own_inner_product(towers: OpenClipEncoder) -> None:
    model = model_of(towers, GEOMETRY)
    found = explain(model, picture(), CAPTION, spheres=[0, 1, 2])
    image = towers.image_transform(train=False)(picture())[None].double()
    visual, last = towers.clip.visual, towers.clip.visual.transformer.resblocks[-1]
    with torch.no_grad():
        v = model.embed_text(towers.tokenize([CAPTION])).view(3, 8)
        stream = visual._embeds(image)
        for block in visual.transformer.resblocks[:-1]:
            stream = block(stream)
        normed = last.ln_1(stream)
    normed.requires_grad_()
    out = visual.ln_post(run_block(last, stream, normed, None)[0, :3]) @ visual.proj
    scores = (out / out.norm(dim=1, keepdim=True) * v).sum(dim=1)
    whole = torch.autograd.grad(scores.sum(), normed, retain_graph=True)[0]
    np.testing.assert_allclose(
        found.full.cell_strength.ravel(), plain_grad_cam(normed.detach()[0, 3:], whole[0, 3:]), rtol=1e-4
    )
    assert found.full.score == pytest.approx(float(scores.detach().sum()), rel=1e-4)
    for number, part in found.spheres.items():
        own = torch.autograd.grad(scores[number], normed, retain_graph=True)[0]
        cells = plain_grad_cam(normed.detach()[0, 3:], own[0, 3:])
        np.testing.assert_allclose(part.cell_strength.ravel(), cells, rtol=1e-4, atol=1e-9)
        assert part.score == pytest.approx(float(scores.detach()[number]), rel=1e-4)
    assert not np.allclose(found.spheres[0].cell_strength, found.spheres[1].cell_strength)
    assert found.words == ("one", "unicornfish")


@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
def test_words_are_found_beside_the_copies_of_the_class_token(attention: str) -> None:
    encoder = replace(SMALL, multi=replace(MULTI, text_attention=attention)).build(1).double()
    model = model_of(encoder, GEOMETRY)
    found = explain(model, picture(), CAPTION)
    text, last = encoder.clip.text, encoder.clip.text.transformer.resblocks[-1]
    ids = encoder.tokenize([CAPTION])
    end = int(ids.argmax())
    # Copies of the first token stand behind it, those of the last behind the end of the text.
    first, classes = (3, [0, 1, 2]) if attention == "bidirectional" else (1, [end, end + 1, end + 2])
    with torch.no_grad():
        u = model.embed_image(encoder.image_transform(train=False)(picture())[None].double())
        stream, mask = text._embeds(ids)
        for block in text.transformer.resblocks[:-1]:
            stream = block(stream, attn_mask=mask)
        normed = last.ln_1(stream)
    normed.requires_grad_()
    tokens = (text.ln_final(run_block(last, stream, normed, mask)[:, classes]) @ text.text_projection).flatten(1)
    score = GEOMETRY.paired_similarity(u, GEOMETRY.project(tokens))
    gradient = torch.autograd.grad(score.sum(), normed)[0]
    part = slice(first, first + end - 1)
    pieces = plain_grad_cam(normed.detach()[0, part], gradient[0, part])
    assert found.words == ("one", "unicornfish")
    assert len(pieces) > 2
    np.testing.assert_allclose(found.full.word_strength, [pieces[0], max(pieces[1:])], rtol=1e-4, atol=1e-12)


def test_timms_registers_that_became_class_tokens_are_no_cells() -> None:
    found = explain(model_of(TIMM.build(1), GEOMETRY), picture(), CAPTION, spheres=[2])
    assert found.full.cell_strength.shape == (3, 3)
    assert found.spheres[2].cell_strength.shape == (3, 3)
