"""What a run's judge is given: the pairs that could be read, their features, their words, and what stages see."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from tests.judge.pairs import features
from troth.embed import FeatureCache
from troth.judge import Procedure, caption_words, judge
from troth.train.judging import JudgeConfig

PROCEDURE = Procedure(folds=3, rounds=2, neighbours=9, repairings=2)


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
