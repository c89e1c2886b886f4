"""What a run's judge is given: the pairs that could be read, their features, their words, and what stages see."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.judge.pairs import features
from troth.embed import FeatureCache
from troth.errors import UserError
from troth.judge import Procedure, Whitened, caption_words, judge
from troth.train import MismatchEstimates
from troth.train.judging import JudgeConfig

PROCEDURE = Procedure(folds=3, rounds=2, neighbours=9, repairings=2, cluster_size=0)


def test_unreadable_pictures_are_left_out_with_their_words(tmp_path: Path) -> None:
    image, text, _ = features(300, 0.3)
    image[[4, 77]] = 0
    valid = torch.ones(300, dtype=torch.bool)
    valid[[4, 77]] = False
    topic = np.random.default_rng(0).integers(0, 9, 300)
    captions = [(f"topic{number} here", f"thing{number % 4}") for number in topic]
    found = JudgeConfig(procedure=PROCEDURE)._cached(image, text, captions, valid, None, 3, FeatureCache(tmp_path))
    kept = [group for group, read in zip(captions, valid.tolist(), strict=True) if read]
    expected = judge(image[valid], text[valid], PROCEDURE, 3, caption_words(kept, 3))
    assert bool(found.score[~valid].isnan().all())
    assert bool(found.p_mismatch[~valid].isnan().all())
    torch.testing.assert_close(found.score[valid], expected.score)
    assert found.noise_rate == expected.noise_rate

    silent = JudgeConfig(procedure=PROCEDURE, words=False)
    without = silent._cached(image, text, captions, valid, None, 3, FeatureCache(tmp_path))
    torch.testing.assert_close(without.score[valid], judge(image[valid], text[valid], PROCEDURE, 3).score)
    assert not torch.equal(without.score[valid], found.score[valid])


def test_what_stages_see_goes_along_and_is_not_taken_for_the_judgement_without(tmp_path: Path) -> None:
    image, text, _ = features(300, 0.3)
    valid = torch.ones(300, dtype=torch.bool)
    valid[9] = False
    stages = torch.randn(300, 5, generator=torch.Generator().manual_seed(0))
    config, captions = JudgeConfig(procedure=PROCEDURE, words=False), [("a",)] * 300
    without, found = (
        config._cached(image, text, captions, valid, seen, 3, FeatureCache(tmp_path)) for seen in (None, stages)
    )
    expected = judge(image[valid], text[valid], PROCEDURE, 3, stages=stages[valid])
    torch.testing.assert_close(found.score[valid], expected.score)
    assert not torch.equal(without.score[valid], found.score[valid])


def test_neighbours_by_stages_can_be_left_out_and_are_named_with_the_stages_alone(tmp_path: Path) -> None:
    image, text, _ = features(300, 0.3)
    valid, captions = torch.ones(300, dtype=torch.bool), [("a",)] * 300
    stages = torch.randn(300, 5, generator=torch.Generator().manual_seed(0))
    cache = FeatureCache(tmp_path)
    found = []
    for near in (True, False):
        procedure = replace(PROCEDURE, stage_neighbours=near)
        config = JudgeConfig(procedure=procedure, words=False)
        found.append(config._cached(image, text, captions, valid, stages, 3, cache))
        expected = judge(image, text, procedure, 3, stages=stages)
        torch.testing.assert_close(found[-1].score, expected.score)
    assert not torch.equal(found[0].score, found[1].score)
    configs = [JudgeConfig(procedure=replace(PROCEDURE, stage_neighbours=near)) for near in (True, False)]
    assert repr(configs[0]) == repr(configs[1]), "without stages, the judgement is the same one"


def test_wrong_captions_among_like_ones_are_cached_by_the_clusters_they_were_looked_for_in(tmp_path: Path) -> None:
    image, text, _ = features(300, 0.3)
    valid, captions, cache = torch.ones(300, dtype=torch.bool), [("a",)] * 300, FeatureCache(tmp_path)
    found = []
    for size in (0, 50, 100):
        config = JudgeConfig(procedure=replace(PROCEDURE, cluster_size=size), words=False)
        found.append(config._cached(image, text, captions, valid, None, 3, cache))
        torch.testing.assert_close(found[-1].score, judge(image, text, config.procedure, 3).score)
        assert config._by_clusters == (f"; clusters of {size}" if size else "")
    assert not any(torch.equal(found[one].score, found[other].score) for one, other in ((0, 1), (0, 2), (1, 2)))


def test_a_given_judgement_weighs_the_alignment_and_nothing_is_judged(tmp_path: Path) -> None:
    image, text, wrong = features(300, 0.3)
    image[4] = 0
    valid = torch.ones(300, dtype=torch.bool)
    valid[4] = False
    order = np.random.default_rng(1).permutation(300)
    probability, score = np.where(wrong, 0.9, 0.2), np.linspace(-1, 1, 300)
    path = tmp_path / "mine.parquet"
    MismatchEstimates(order, score[order], np.nan, probability[order]).write(path)
    config = JudgeConfig(file=str(path), procedure=replace(PROCEDURE, dim=5, shrinkage=0.5))
    found, content = config._given(path, image, text, valid, FeatureCache(tmp_path))
    np.testing.assert_array_equal(found.score[valid], score[valid])
    np.testing.assert_array_equal(found.p_mismatch[valid], probability[valid])
    assert bool(found.p_mismatch[4].isnan())
    assert found.noise_rate == pytest.approx(probability[valid].mean())
    unit = F.normalize(image[valid], dim=-1)
    weights = torch.from_numpy(1 - probability)[valid].float()
    expected = Whitened(unit, text[valid]).align(weights, dim=5, shrinkage=0.5)
    torch.testing.assert_close(found.alignment.image(unit), expected.image(unit))
    torch.testing.assert_close(found.alignment.text(text), expected.text(text))

    MismatchEstimates(order, score[order], 0.4, probability[order] / 2).write(path)
    other, other_content = config._given(path, image, text, valid, FeatureCache(tmp_path))
    assert other_content != content, "a run does not go on with another judgement"
    assert other.noise_rate == pytest.approx(probability[valid].mean() / 2), "not what the file says of itself"
    assert not torch.equal(other.alignment.image.matrix, found.alignment.image.matrix)


@pytest.mark.parametrize(
    ("ids", "p_mismatch", "message"),
    [
        (range(300), [np.nan] * 2 + [0.5] * 298, "2 of 300 pairs have no p_mismatch"),
        (range(299), [0.5] * 299, "1 of 300 pairs have no p_mismatch"),
        (range(300), [1.0] * 300, "all pairs are wrong"),
        (range(1, 301), [0.5] * 300, "its ids are not distinct numbers of 300 pairs"),
    ],
)
def test_a_given_judgement_must_know_every_pair(
    tmp_path: Path, ids: range, p_mismatch: list[float], message: str
) -> None:
    image, text, _ = features(300, 0.3)
    path = tmp_path / "mine.parquet"
    MismatchEstimates(np.array(ids), np.zeros(len(ids)), 0.1, np.array(p_mismatch)).write(path)
    with pytest.raises(UserError, match=rf"mine\.parquet: .*{message}.*judge\.file is a run's"):
        JudgeConfig(file=str(path))._given(path, image, text, torch.ones(300, dtype=torch.bool), FeatureCache(tmp_path))
