"""The judge finds wrong pairs and how many there are, and nothing it says is learnt by heart."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score

from tests.judge.pairs import features
from troth.errors import UserError
from troth.judge import Mismatch, NeighbourPredictions, Procedure, caption_words, judge, judgement, mismatch
from troth.judge.judgement import Kind, Round
from troth.judge.repairings import Repairings, blocks, folds, pairings

QUICK = Procedure(folds=3, rounds=2, neighbours=9, repairings=2, cluster_size=0)


@pytest.mark.parametrize("wrong", [0.2, 0.4, 0.6])
def test_wrong_pairs_are_found_and_counted(wrong: float) -> None:
    image, text, truth = features(1500, wrong)
    found = judge(image, text, QUICK)
    assert roc_auc_score(truth, found.p_mismatch.numpy()) > 0.95
    assert found.noise_rate == pytest.approx(wrong, abs=0.08)
    assert float(found.p_mismatch.mean()) == pytest.approx(wrong, abs=0.1)
    assert bool(((found.p_mismatch >= 0) & (found.p_mismatch <= 1)).all())


def test_right_pairs_are_left_alone() -> None:
    image, text, _ = features(1500, 0.0)
    found = judge(image, text, QUICK)
    assert found.noise_rate < 0.03
    assert float((found.p_mismatch > 0.5).double().mean()) < 0.03


def test_features_without_anything_in_common_are_all_wrong_and_nothing_is_learnt_by_heart() -> None:
    """As many dimensions as there are pairs in a fold: an alignment could fit every pair it has seen."""
    draw = torch.Generator().manual_seed(0)
    image, text = torch.randn(400, 200, generator=draw), torch.randn(400, 200, generator=draw)
    found = judge(image, text, QUICK)
    assert found.noise_rate > 0.7


def test_the_same_pairs_are_judged_the_same() -> None:
    image, text, _ = features(400, 0.3)
    first, second = judge(image, text, QUICK, seed=3), judge(image, text, QUICK, seed=3)
    assert torch.equal(first.p_mismatch, second.p_mismatch)
    assert torch.equal(first.alignment.image.matrix, second.alignment.image.matrix)


def test_the_score_is_the_mean_over_the_rounds_from_the_second_on(monkeypatch: pytest.MonkeyPatch) -> None:
    image, text, _ = features(240, 0.2)
    draw = np.random.default_rng(0)
    rounds = [(draw.normal(size=240), draw.normal(size=480) - 2) for _ in range(3)]
    left = iter(rounds)
    monkeypatch.setattr(judgement, "discriminate", lambda *_: next(left))
    found = judge(image, text, replace(QUICK, rounds=3))
    np.testing.assert_allclose(found.score.numpy(), (rounds[1][0] + rounds[2][0]) / 2)
    expected = mismatch((rounds[1][0] + rounds[2][0]) / 2, (rounds[1][1] + rounds[2][1]) / 2)
    np.testing.assert_allclose(found.p_mismatch.numpy(), expected.p_mismatch)


def test_words_that_do_not_fit_are_a_users_mistake() -> None:
    image, text, _ = features(200, 0.0)
    with pytest.raises(UserError, match="199 rows of word features for 200 images"):
        judge(image, text, words=torch.randn(199, 4))
    with pytest.raises(UserError, match="all word features are the same"):
        judge(image, text, words=torch.ones(200, 4))
    with pytest.raises(UserError, match="201 rows of stage features for 200 images"):
        judge(image, text, stages=torch.randn(201, 4))


def test_words_are_evidence_too() -> None:
    """Features that say little, captions that name what they say little of."""
    draw = np.random.default_rng(0)
    topic = draw.integers(0, 12, 900)
    image = torch.from_numpy(np.eye(12)[topic] + 0.3 * draw.normal(size=(900, 12))).float()
    text = torch.from_numpy(np.eye(12)[topic] + 3.0 * draw.normal(size=(900, 12))).float()
    given = topic.copy()
    given[:270] = np.roll(given[:270], 1)
    text[:270] = text[:270].roll(1, 0)
    words = caption_words([[f"a picture of topic{number}"] for number in given])
    assert words is not None
    wrong = given != topic
    without = roc_auc_score(wrong, judge(image, text, QUICK).p_mismatch.numpy())
    assert roc_auc_score(wrong, judge(image, text, QUICK, words=words).p_mismatch.numpy()) > max(0.95, without + 0.1)


@pytest.mark.parametrize("with_words", [False, True])
def test_what_stages_see_is_evidence_too(with_words: bool) -> None:
    """Features that say little, and others of the same pictures, far from unit scale, that say what they leave out."""
    draw = np.random.default_rng(0)
    topic = draw.integers(0, 12, 900)
    image = torch.from_numpy(np.eye(12)[topic] + 3.0 * draw.normal(size=(900, 12))).float()
    text = torch.from_numpy(np.eye(12)[topic] + 0.2 * draw.normal(size=(900, 12))).float()
    stages = torch.from_numpy(np.eye(12)[topic] + 0.2 * draw.normal(size=(900, 12))).float()
    stages = torch.cat([1e3 * stages[:, :6] + 5e3, 1e-3 * stages[:, 6:], torch.ones(900, 1)], dim=1)
    given = topic.copy()
    given[:270] = np.roll(given[:270], 1)
    text[:270] = text[:270].roll(1, 0)
    words = caption_words([[f"a picture of topic{number}"] for number in given]) if with_words else None
    wrong = given != topic
    without = roc_auc_score(wrong, judge(image, text, QUICK, words=words).p_mismatch.numpy())
    found = judge(image, text, QUICK, words=words, stages=stages)
    assert roc_auc_score(wrong, found.p_mismatch.numpy()) > max(0.95, without + 0.1)


def test_too_few_pairs_and_broken_features_are_a_users_mistake() -> None:
    image, text, _ = features(199, 0.0)
    with pytest.raises(UserError, match="199 pairs are too few"):
        judge(image, text)
    image, text, _ = features(200, 0.0)
    text[7, 3] = torch.nan
    with pytest.raises(UserError, match="some text features are not finite"):
        judge(image, text)


@pytest.mark.parametrize(
    ("procedure", "message"),
    [
        (Procedure(repairings=59, cluster_size=0), r"blocks of 60 \(fewer folds or repairings\)"),
        (Procedure(repairings=9), r"blocks of 100 \(fewer folds or repairings, or cluster_size 0\)"),
    ],
)
def test_more_folds_than_there_are_blocks_are_a_users_mistake(procedure: Procedure, message: str) -> None:
    image, text, _ = features(200, 0.0)
    with pytest.raises(UserError, match=f"200 pairs do not make 5 folds of 40 in {message}"):
        judge(image, text, procedure)


def test_captions_that_are_all_the_same_are_a_users_mistake() -> None:
    image, text, _ = features(200, 0.0)
    with pytest.raises(UserError, match="all text features are the same"):
        judge(image, text[:1].expand(200, -1))


def test_repaired_samples_keep_their_fold_and_lose_their_captions() -> None:
    draw = np.random.default_rng(0)
    parts = blocks(51, 4, draw)
    owners, fold = pairings(parts, 3), folds(parts, 5, draw)
    assert (owners[0] == np.arange(51)).all()
    for owner in owners[1:]:
        assert sorted(owner) == list(range(51))
        assert (owner != np.arange(51)).all()
        assert (fold[owner] == fold).all()
    assert len({tuple(owner) for owner in owners}) == 4
    assert sorted(np.bincount(fold)) == [8, 8, 8, 12, 15]


def test_the_share_of_wrong_pairs_is_read_where_no_right_pair_is() -> None:
    draw = np.random.default_rng(0)
    given = np.concatenate([draw.normal(0, 1, 3000), draw.normal(5, 1, 7000)])
    found = mismatch(given, draw.normal(0, 1, 20_000))
    assert 0.3 <= found.noise_rate <= 0.34
    order = given.argsort()
    assert (np.diff(found.p_mismatch[order]) <= 1e-12).all()
    # Bayes, where both densities are known: at 2.5 right pairs are 7 / 3 times as many as wrong ones
    middle = np.abs(given - 2.5) < 0.15
    assert float(found.p_mismatch[middle].mean()) == pytest.approx(0.3, abs=0.12)


def test_neighbours_predict_what_the_loop_says() -> None:
    image, text, _ = features(60, 0.2)
    weights = torch.from_numpy(np.random.default_rng(2).uniform(0, 1, 60)).float()
    near = NeighbourPredictions.of(image, text, 7)
    caption_of_image, image_of_caption = near.predict(weights, 5, torch.arange(60))
    for rows, others, predicted in (
        (near.image, near.text, caption_of_image),
        (near.text, near.image, image_of_caption),
    ):
        for i in (0, 17, 59):
            cosines = (rows @ rows[i]).double()
            cosines[i] = -9
            nearest = cosines.topk(5).indices
            votes = torch.exp(cosines[nearest] / 0.1) * weights[nearest].double()
            expected = (votes[:, None] * others[nearest].double()).sum(0) / votes.sum() - others.double().mean(0)
            torch.testing.assert_close(predicted[i].double(), expected, atol=1e-4, rtol=1e-3)


def test_neighbours_without_weight_predict_nothing() -> None:
    image, text, _ = features(60, 0.2)
    near = NeighbourPredictions.of(image, text, 7)
    rows = torch.tensor([17, 3])
    outside = torch.ones(60)
    outside[near.near_image[3]] = 0
    caption_of_image, _ = near.predict(outside, 5, rows)
    torch.testing.assert_close(caption_of_image[1], -near.text.mean(dim=0))
    kept = near.near_image[17, :5][outside[near.near_image[17, :5]] > 0]
    votes = torch.exp(near.image[kept] @ near.image[17] / 0.1)
    expected = (votes[:, None] * near.text[kept]).sum(dim=0) / votes.sum() - near.text.mean(dim=0)
    torch.testing.assert_close(caption_of_image[0], expected, atol=1e-4, rtol=1e-3)


def test_nobody_is_their_own_neighbour_even_among_equals() -> None:
    image = torch.nn.functional.one_hot(torch.arange(40) // 10, 8).float() + 0.01
    near = NeighbourPredictions.of(image, F.normalize(torch.randn(40, 5), dim=-1), 4)
    assert near.near_image.shape == (40, 4)
    assert not (near.near_image == torch.arange(40)[:, None]).any()


def grouped(size: int, wrong: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Pairs of eight topics, in which every sample has something of its own; wrong captions are of the same topic."""
    draw = np.random.default_rng(seed)
    topic = draw.integers(0, 8, size)
    common = np.concatenate([3 * np.eye(8)[topic], draw.normal(size=(size, 6))], axis=1)
    image = common @ draw.normal(size=(14, 32)) + 0.5 * draw.normal(size=(size, 32))
    text = common @ draw.normal(size=(14, 24)) + 0.5 * draw.normal(size=(size, 24))
    owner = np.arange(size)
    for each in range(8):
        chosen = draw.permutation(np.flatnonzero(topic == each))
        chosen = chosen[: round(wrong * len(chosen))]
        owner[chosen] = np.roll(chosen, 1)
    return torch.from_numpy(image).float(), torch.from_numpy(text[owner]).float(), owner != np.arange(size)


def test_wrong_captions_of_the_same_topic_are_found_and_counted_among_like_ones() -> None:
    image, text, truth = grouped(1600, 0.3)
    alone = judge(image, text, QUICK)
    found = judge(image, text, replace(QUICK, cluster_size=100))
    assert alone.noise_rate < 0.15
    assert found.noise_rate == pytest.approx(0.3, abs=0.1)
    assert roc_auc_score(truth, found.p_mismatch.numpy()) > 0.9
    assert roc_auc_score(truth, found.score.numpy() * -1) > roc_auc_score(truth, -alone.score.numpy())


def test_words_and_stages_are_evidence_among_like_ones_too() -> None:
    """Features that say little of what the samples have of their own, which words and stages do."""
    draw = np.random.default_rng(3)
    image, text, truth = grouped(1600, 0.3)
    blurred = [each + 2.0 * torch.from_numpy(draw.normal(size=each.shape)).float() for each in (image, text)]
    looking = replace(QUICK, cluster_size=100)
    alone = judge(*blurred, looking)
    found = judge(*blurred, looking, words=text, stages=image)
    assert found.evidence == ("features", "words", "stages")
    assert roc_auc_score(truth, -found.score.numpy()) > roc_auc_score(truth, -alone.score.numpy()) + 0.05
    assert found.noise_rate == pytest.approx(0.3, abs=0.12)


@pytest.mark.parametrize("wrong", [0.0, 0.4])
def test_looking_among_like_ones_adds_no_wrong_pairs_where_captions_were_moved_at_random(wrong: float) -> None:
    image, text, truth = features(1600, wrong)
    found = judge(image, text, replace(QUICK, cluster_size=100))
    assert found.noise_rate == pytest.approx(wrong, abs=0.1)
    assert float(found.p_mismatch[torch.from_numpy(~truth)].mean()) < 0.12


def test_captions_move_among_like_ones_and_within_parts() -> None:
    draw = np.random.default_rng(0)
    topic = draw.integers(0, 7, 203)
    text = torch.from_numpy(np.eye(7)[topic] + 0.01 * draw.normal(size=(203, 7))).float()
    made = Repairings.among_alike(text, 29, 3, draw)
    assert sorted(np.concatenate(made.parts)) == list(range(203))
    own, *moved = made.at_random
    assert (own == np.arange(203)).all()
    assert len(moved) == len(made.alike) == 3
    part = np.empty(203, dtype=int)
    for number, rows in enumerate(made.parts):
        part[rows] = number
    for owner in (*moved, *made.alike):
        assert (owner != own).all()
        assert (part[owner] == part).all()
    assert all((topic[near] == topic).mean() > 0.95 for near in made.alike)
    assert all((topic[at_random] == topic).mean() < 0.4 for at_random in moved)
    fold = folds(made.parts, 3, draw)
    assert all(len(set(fold[rows].tolist())) == 1 for rows in made.parts)


def test_a_round_of_two_kinds_adds_up_their_odds() -> None:
    first, second = np.array([0.0, 2.0]), np.array([1.0, -1.0])
    one = Kind(first, np.zeros(1), Mismatch(np.array([0.5, 0.0]), 0.2))
    other = Kind(second, np.zeros(1), Mismatch(np.array([0.2, 0.4]), 0.5))
    both = Round(one, other)
    np.testing.assert_allclose(both.p_mismatch, [0.6, 0.4])
    assert both.noise_rate == pytest.approx(0.6)
    np.testing.assert_allclose(both.score, -np.log(0.2 * np.exp(-first) + 0.4 * np.exp(-second)))
    alone = Round(one)
    assert (alone.p_mismatch is one.found.p_mismatch, alone.noise_rate, alone.score is first) == (True, 0.2, True)


def test_pairs_that_are_wrong_in_another_way_do_not_count() -> None:
    draw = np.random.default_rng(0)
    right, wrong, other = draw.normal(3, 1, 1000), draw.normal(0, 1, 500), draw.normal(-1, 1, 700)
    given, repaired = np.concatenate([right, wrong, other]), draw.normal(0, 1, 5000)
    weights = np.repeat([1.0, 1.0, 0.0], [1000, 500, 700])
    found = mismatch(given, repaired, weights)
    expected = mismatch(given[:1500], repaired)
    assert found.noise_rate == pytest.approx(expected.noise_rate, rel=1e-4)
    np.testing.assert_allclose(found.p_mismatch[:1500], expected.p_mismatch, atol=1e-3)


def test_pairs_that_share_their_captions_are_not_taken_for_wrong() -> None:
    draw = np.random.default_rng(0)
    topic = draw.integers(0, 10, 1500)
    image = torch.from_numpy(np.eye(10)[topic] + 0.3 * draw.normal(size=(1500, 10))).float()
    text = torch.from_numpy(draw.normal(size=(10, 12)))[topic].float()
    assert judge(image, text, replace(QUICK, cluster_size=100)).noise_rate < 0.05


@pytest.mark.parametrize("seed", [0, 1, 4, 7])
def test_where_all_is_wrong_at_random_nothing_is_left_to_be_wrong_among_like_ones(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    image, text = torch.randn(600, 16, generator=draw), torch.randn(600, 12, generator=draw)
    found = judge(image, text, replace(QUICK, cluster_size=100, rounds=3, repairings=3))
    assert found.noise_rate > 0.7


def test_clusters_too_small_are_a_users_mistake_and_no_procedure_names_them() -> None:
    image, text, _ = features(400, 0.0)
    with pytest.raises(UserError, match=r"procedure\.cluster_size: clusters of 2 captions are too small"):
        judge(image, text, replace(QUICK, cluster_size=2))
    for size in (0, 50, 100):  # what is cached without them is found again
        assert repr(Procedure(cluster_size=size)) == repr(Procedure(cluster_size=0))
        assert "cluster" not in repr(Procedure(cluster_size=size))
