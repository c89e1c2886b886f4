"""Evidence is what the loop over pairs says, and what a sample was given never counts against it."""

import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits

from tests.judge.pairs import features
from troth.judge import Evidence, Whitened, caption_words
from troth.judge import evidence as module
from troth.judge.evidence import View, held_against_others, standardized
from troth.judge.repairings import blocks, folds, pairings


def test_a_pair_is_held_against_the_ten_best_others_of_either_side() -> None:
    draw = torch.Generator().manual_seed(0)
    view = View(torch.randn(25, 4, generator=draw), torch.randn(25, 4, generator=draw))
    owner = torch.arange(25).roll(3)
    products = (view.image @ view.text.T).double()
    for numbers, given in zip(
        held_against_others(view, [torch.arange(25), owner]), (torch.arange(25), owner), strict=True
    ):
        for i in (0, 11, 24):
            j = int(given[i])
            others_of_image = sorted(float(products[i, m]) for m in range(25) if m != i)[-10:]
            others_of_caption = sorted(float(products[m, j]) for m in range(25) if m != j)[-10:]
            fit = float(products[i, j])
            expected = [fit, fit - np.mean(others_of_image), fit - np.mean(others_of_caption)]
            assert numbers[i].tolist() == pytest.approx(expected, abs=1e-5)


def test_few_of_many_others_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(0)
    view = View(torch.randn(400, 4, generator=draw), torch.randn(400, 4, generator=draw))
    whole = held_against_others(view, [torch.arange(400)])[0]
    monkeypatch.setattr(module, "_CROWD", 40)
    part = held_against_others(view, [torch.arange(400)])[0]
    assert torch.equal(whole[:, 0], part[:, 0])
    assert bool((part[:, 1:] >= whole[:, 1:] - 1e-5).all()), "the best of fewer are no better"
    crowd = torch.linspace(0, 399, 40).long()
    products = view.image[5] @ view.text[crowd[crowd != 5]].T
    assert float(part[5, 0] - part[5, 1]) == pytest.approx(float(products.topk(10).values.mean()), abs=1e-5)


def test_a_folds_evidence_does_not_depend_on_what_its_pairs_were_given() -> None:
    """But for the mean of all captions, which every one of them is a part of: the captions change places in a fold."""
    image, text, _ = features(300, 0.2)
    rng = np.random.default_rng(0)
    parts = blocks(300, 3, rng)
    fold, owners = folds(parts, 3, rng), pairings(parts, 2)
    inside = np.flatnonzero(fold == 1)
    moved = np.arange(300)
    moved[inside] = np.roll(inside, 1)
    words = torch.from_numpy(rng.normal(size=(300, 6))).float()
    before = Evidence.of(image, text, words, 9).gather(torch.ones(300), fold, owners)
    assert before[0].shape == (300, 27)
    swapped = Evidence.of(image, text[moved], words[moved], 9)
    back = moved.argsort()
    after = swapped.gather(torch.ones(300), fold, [back[owner] for owner in owners])
    # Comparisons leave out what was given, which is another caption now; the products themselves must not move.
    for one, other in zip(before, after, strict=True):
        np.testing.assert_allclose(one[inside, ::3], other[inside, ::3], atol=1e-4)


def test_stages_add_views_by_sentences_and_by_words_and_their_neighbours_more() -> None:
    image, text, _ = features(300, 0.2)
    rng = np.random.default_rng(0)
    parts = blocks(300, 2, rng)
    fold, owners = folds(parts, 3, rng), pairings(parts, 1)
    words, stages = (torch.from_numpy(rng.normal(size=(300, size))).float() for size in (140, 150))
    for known, views in ((words, (9, 11, 14)), (None, (7, 8, 10))):
        gathered = [
            Evidence.of(image, text, known, 9, seen, near).gather(torch.ones(300), fold, owners)
            for seen, near in ((None, True), (stages, False), (stages, True))
        ]
        assert [each[0].shape[1] for each in gathered] == [3 * count for count in views]
        for less, more in pairwise(gathered):
            for one, other in zip(less, more, strict=True):
                np.testing.assert_array_equal(one, other[:, : one.shape[1]])
    # The view by sentences is the alignment of the standardised stages, fitted to the other folds.
    rows = torch.from_numpy(np.flatnonzero(fold == 2))
    seen = torch.from_numpy(stages.numpy() - stages.numpy().mean(axis=0))
    seen = seen / torch.from_numpy(stages.numpy().std(axis=0, ddof=1))
    seen = seen / seen.norm(dim=1, keepdim=True)
    outside = torch.from_numpy(fold != 2).float()
    alignment = Whitened(seen, text).align(outside, dim=128, shrinkage=1.0, power=1.0)
    expected = (alignment.image(seen[rows]) * alignment.text(text[rows])).sum(dim=1)
    found = Evidence.of(image, text, None, 9, stages).gather(torch.ones(300), fold, owners)
    np.testing.assert_allclose(found[0][rows.numpy(), 21], expected.numpy(), atol=1e-4)
    alignment = Whitened(seen, words).align(outside, dim=256, shrinkage=1.0, power=1.0)
    expected = (alignment.image(seen[rows]) * alignment.text(words[rows])).sum(dim=1)
    found = Evidence.of(image, text, words, 9, stages).gather(torch.ones(300), fold, owners)
    np.testing.assert_allclose(found[0][rows.numpy(), 30], expected.numpy(), atol=1e-4)


def test_pictures_near_by_their_stages_predict_captions_words_and_the_captions_stages() -> None:
    """Held against a loop in float64, for the pairs of one fold."""
    image, text, _ = features(300, 0.2)
    rng = np.random.default_rng(0)
    parts = blocks(300, 2, rng)
    fold, owners = folds(parts, 3, rng), pairings(parts, 1)
    words, stages = (torch.from_numpy(rng.normal(size=(300, size))).float() for size in (40, 20))
    weights = torch.from_numpy(rng.uniform(0.2, 1.0, 300)).float()
    found = Evidence.of(image, text, words, 9, stages).gather(weights, fold, owners)[0][:, 33::3]

    def unit(rows: np.ndarray) -> np.ndarray:
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    seen = stages.double().numpy()
    seen = unit((seen - seen.mean(axis=0)) / seen.std(axis=0, ddof=1))
    covariance = np.cov(seen.T, bias=True)
    values, vectors = np.linalg.eigh(covariance + 0.3 * np.trace(covariance) / 20 * np.eye(20))
    seen = unit((seen - seen.mean(axis=0)) @ vectors @ np.diag(values**-0.5) @ vectors.T)
    seen = unit(seen - seen.mean(axis=0))
    caption = text.double().numpy()
    caption = unit(caption - caption.mean(axis=0))
    word = words.double().numpy()
    voices = weights.double().numpy() * (fold != 1)

    def predicted(points: np.ndarray, i: int, of: np.ndarray) -> np.ndarray:
        cosines = points @ points[i]
        near = [n for n in np.argsort(-cosines) if n != i][:9]
        votes = voices[near] * np.exp(cosines[near] / 0.1)
        return votes @ of[near] / votes.sum() - of.mean(axis=0)

    for i in np.flatnonzero(fold == 1):
        expected = [
            predicted(seen, i, caption) @ caption[i],
            seen[i] @ predicted(caption, i, seen),
            predicted(seen, i, word) @ word[i],
        ]
        np.testing.assert_allclose(found[i], expected, atol=1e-4)


def test_standardized_features_are_of_one_scale_and_constants_are_nothing() -> None:
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(900, 3, generator=draw) * torch.tensor([1.0, 1e-8, 1e6]) + torch.tensor([0.0, 0.0, 1e6])
    constant = torch.full((900, 1), 12.7)
    found = standardized(torch.cat([features, constant, torch.zeros(900, 1)], dim=1))
    exact = features.double().numpy()
    expected = (exact - exact.mean(axis=0)) / exact.std(axis=0, ddof=1)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(found[:, :3].numpy(), expected, atol=1e-6)
    assert bool((found[:, 3:] == 0).all())


def test_words_are_unit_rows_and_none_where_pairs_share_none() -> None:
    words = caption_words([["a red cat"], ["a red dog", "red"], ["one red cat"], ["blue cat"], ["zebra"]])
    assert words is not None
    lengths = words.norm(dim=1)
    assert lengths[:4].tolist() == pytest.approx([1.0] * 4)
    assert float(lengths[4]) == 0.0
    assert caption_words([["one"], ["two"], ["three"], ["four"]]) is None
    assert caption_words([[]]) is None


def test_words_that_every_pair_has_tell_nothing() -> None:
    assert caption_words([[f"a picture of product number{i}"] for i in range(50)]) is None
    assert caption_words([["very big"] * (1 + i % 3) for i in range(50)]) is None
    two = caption_words([["big"], ["small"]] * 25)
    assert two is not None
    assert float((two[0] - two[1]).norm()) > 1


def test_words_are_the_same_to_the_last_bit_on_any_number_of_threads() -> None:
    draw = random.Random(0)
    captions = [[" ".join(f"word{draw.randrange(800)}" for _ in range(8))] for _ in range(300)]
    found = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            found.append(caption_words(captions))
    assert found[0] is not None
    assert found[1] is not None
    assert torch.equal(found[0], found[1])
