"""Episodes: which samples they have, how many there are, and views that draw anew."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.data.planted import caption_source, jpeg, tokenize, words, write_all
from troth.data import EpisodePlan, FeatureStream, FolderSource, ImageTextStream, LoadedBatch, Plan
from troth.data.draws import hash64
from troth.data.plan import chosen_captions, of_view
from troth.errors import UserError

PLANS = {
    "num_samples": st.integers(1, 40),
    "batch_size": st.integers(1, 12),
    "episode_size": st.integers(1, 50),
    "with_replacement": st.booleans(),
    "seed": st.integers(0, 2**40),
}


@st.composite
def plans(draw: st.DrawFn) -> EpisodePlan:
    values = {name: draw(strategy) for name, strategy in PLANS.items()}
    if not values["with_replacement"]:
        values["num_samples"] = max(values["num_samples"], values["episode_size"])
    values["batch_size"] = min(values["batch_size"], values["episode_size"])
    return EpisodePlan(**values)


def episode(plan: EpisodePlan, number: int) -> list[int]:
    steps = range(number * plan.steps_per_episode, (number + 1) * plan.steps_per_episode)
    return [int(sample) for step in steps for sample in plan.indices(step)]


@given(plan=plans(), number=st.integers(0, 5))
def test_an_episode_is_a_pure_function_of_seed_and_number(plan: EpisodePlan, number: int) -> None:
    met = episode(plan, number)
    assert len(met) == plan.steps_per_episode * plan.batch_size
    assert len(met) == plan.episode_size - plan.episode_size % plan.batch_size  # the last ones sit it out
    assert all(0 <= sample < plan.num_samples for sample in met)
    if not plan.with_replacement:
        assert len(set(met)) == len(met)
    plan.indices(0)[:] = -1  # what is handed out may be written to
    for other in range(3):
        episode(plan, number + other)  # and in between others may be asked for
    again = EpisodePlan(plan.num_samples, plan.batch_size, plan.seed, plan.episode_size, plan.with_replacement)
    assert episode(again, number) == met
    last = (number + 1) * plan.steps_per_episode - 1
    assert again.indices(last).tolist() == met[-plan.batch_size :]
    assert {plan.epoch(step) for step in range(number * plan.steps_per_episode, last + 1)} == {number}


@given(plan=plans(), epochs=st.integers(1, 40))
def test_a_run_has_as_many_samples_as_its_epochs_to_the_nearest_episode(plan: EpisodePlan, epochs: int) -> None:
    episodes = plan.episodes(epochs)
    assert episodes >= 1
    assert plan.total_steps(epochs) == episodes * plan.steps_per_episode
    difference = abs(episodes * plan.episode_size - epochs * plan.num_samples)
    assert episodes == 1 or difference <= plan.episode_size / 2
    assert plan.steps_per_epoch >= 1
    assert abs(plan.steps_per_epoch - plan.steps_per_episode * plan.num_samples / plan.episode_size) <= 1


def test_the_papers_run_has_400_episodes() -> None:
    """32 epochs of 2.5 million pairs in episodes of 200,000 and batches of 512 (its table I; 40 warm-up episodes are
    the 15,600 or so steps of its schedule)."""
    plan = EpisodePlan(2_500_000, 512, 0, 200_000)
    assert plan.episodes(32) == 400
    assert plan.steps_per_episode == 390
    assert plan.total_steps(32) == 156_000


def test_episodes_and_seeds_differ() -> None:
    episodes = {tuple(episode(EpisodePlan(50, 10, seed, 40), number)) for seed in range(3) for number in range(3)}
    assert len(episodes) == 9


def test_draws_are_even_and_with_replacement_only_if_asked_for() -> None:
    twice = [sample for number in range(200) for sample in episode(EpisodePlan(20, 5, 1, 20), number)]
    counts = np.bincount(twice, minlength=20)
    assert abs(counts - 200).max() < 5 * 200**0.5
    with_replacement = [len(set(episode(EpisodePlan(20, 5, 1, 20), number))) for number in range(20)]
    assert max(with_replacement) < 20
    without = [len(set(episode(EpisodePlan(20, 5, 1, 20, with_replacement=False), number))) for number in range(20)]
    assert set(without) == {20}


@given(plan=plans(), step=st.integers(0, 60))
def test_stand_ins_are_the_next_samples_and_reach_everything(plan: EpisodePlan, step: int) -> None:
    planned = int(plan.indices(step)[0])
    reached = [plan.replacement(step, 0, attempt) for attempt in range(1, plan.attempts() + 1)]
    assert reached == [(planned + attempt) % plan.num_samples for attempt in range(1, plan.num_samples + 1)]
    assert set(reached) == set(range(plan.num_samples))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((100, 32, 0, 31), r"^episodes\.size: .*31 samples has no whole batch of 32"),
        ((100, 32, 0, 128, False), r"^episodes\.size: an episode of 128 samples from a set of 100 .*at most 100"),
    ],
)
def test_what_does_not_fit_is_a_user_error(arguments: tuple, message: str) -> None:
    with pytest.raises(UserError, match=message):
        EpisodePlan(*arguments)


def test_view_0_draws_what_was_drawn_before_there_were_views() -> None:
    ids, counts = np.arange(50), np.full(50, 3)
    before = (hash64(7, "caption", 2, ids) % np.uint64(3)).astype(np.int64)
    assert chosen_captions(7, 2, ids, counts).tolist() == before.tolist()
    assert chosen_captions(7, 2, ids, counts, 0).tolist() == before.tolist()
    assert chosen_captions(7, 2, ids, counts, 1).tolist() != before.tolist()
    assert of_view("augment", 0) == "augment"
    assert len({of_view(purpose, view) for purpose in ("augment", "caption") for view in range(3)}) == 6


def drawing(data: bytes) -> Tensor:
    """A transform that draws from all three global generators."""
    return torch.tensor([float(torch.rand(())), np.random.random(), random.random()])  # noqa: NPY002


def rows(batches: list[LoadedBatch]) -> tuple[list[int], Tensor, list[str]]:
    batch = [loaded.batch for loaded in batches]
    texts = [text for each in batch for text in words(each.text)]
    return torch.cat([each.index for each in batch]).tolist(), torch.cat([each.image for each in batch]), texts


@pytest.fixture
def several(tmp_path: Path) -> FolderSource:
    """24 samples of three captions; one picture cannot be read."""
    write_all(tmp_path, {f"{number:02}.jpg": jpeg(number) for number in range(24)})
    write_all(tmp_path, {f"{number:02}.txt": b"one\ntwo\nthree" for number in range(24)})
    (tmp_path / "05.jpg").write_bytes(b"broken")
    return FolderSource(path=str(tmp_path))


def decoding(data: bytes) -> Tensor:
    from troth.data import ImageTransform

    return torch.cat([drawing(data), ImageTransform(image_size=4, train=False)(data).flatten()[:1]])


@pytest.mark.parametrize("workers", [0, 2])
def test_another_view_of_pictures_has_the_same_samples_and_other_draws(several: FolderSource, workers: int) -> None:
    source = several.open()
    plan = EpisodePlan(len(source), 8, seed=5, episode_size=24)
    options = {"image_transform": decoding, "tokenize": tokenize}
    running = ImageTextStream(source, plan, num_workers=workers, **options)
    views = [rows(list(running.batches(0, 6, view=view))) for view in (0, 1, 1, 0)]
    assert rows(list(ImageTextStream(source, plan, **options).batches(0, 6)))[0] == views[0][0]
    index, image, text = views[0]
    assert 5 not in index
    assert 5 in [sample for number in range(2) for sample in episode(plan, number)]
    assert views[1][0] == index  # stand-ins included: clusters are by place
    assert not (views[1][1][:, :3] == image[:, :3]).any()
    different = sum(one != other for one, other in zip(text, views[1][2], strict=True)) / len(text)
    assert 0.4 < different < 0.95  # two of three
    assert torch.equal(views[2][1], views[1][1])
    assert torch.equal(views[3][1], image)
    assert (views[2][2], views[3][2]) == (views[1][2], text)


def test_a_view_can_be_read_while_training_reads_another(several: FolderSource) -> None:
    source = several.open()
    running = ImageTextStream(
        source, EpisodePlan(len(source), 8, 5, 24), image_transform=decoding, tokenize=tokenize, num_workers=1
    )
    expected = rows(list(running.batches(0, 6)))
    met = []
    for step, loaded in enumerate(running.batches(0, 6)):
        if step % 3 == 0:
            other = rows(list(running.batches(step, step + 3, view=1)))
            assert other[0] == expected[0][8 * step : 8 * step + 24]
        met.append(loaded)
    assert torch.equal(rows(met)[1], expected[1])


def test_view_0_of_pictures_is_what_it_was_before_there_were_views(several: FolderSource) -> None:
    """The generators are seeded by (seed, epoch, sample): a run that began before must resume bit for bit."""
    source = several.open()
    plan = Plan(len(source), 8, seed=5)
    running = ImageTextStream(source, plan, image_transform=decoding, tokenize=tokenize)
    index, image, _ = rows(list(running.batches(3, 6)))
    for sample, drawn in zip(index, image, strict=True):
        bits = int(hash64(5, "augment", 1, np.array([sample]))[0])
        torch.manual_seed(bits)
        assert float(drawn[0]) == float(torch.rand(()))


def features(plan: EpisodePlan, rank: int = 0, world_size: int = 1) -> FeatureStream:
    captions = [[f"{number} {which}" for which in range(3)] for number in range(24)]
    found = [text for texts in captions for text in texts]
    return FeatureStream(
        caption_source(captions),
        plan,
        image_features=torch.arange(24.0)[:, None],
        captions=found,
        text_features=torch.arange(72.0)[:, None],
        rank=rank,
        world_size=world_size,
    )


def test_another_view_of_features_has_the_same_samples_and_other_captions() -> None:
    plan = EpisodePlan(24, 8, seed=5, episode_size=48)
    running = features(plan)
    first, second = (
        [torch.cat([getattr(loaded.batch, name) for loaded in running.batches(0, 6, view=view)]) for view in (0, 1)]
        for name in ("index", "text")
    )
    assert torch.equal(*first)
    assert torch.equal(first[0], torch.from_numpy(np.concatenate([plan.indices(step) for step in range(6)])))
    assert all(torch.equal((text[:, 0] // 3).long(), first[0]) for text in second)
    assert 0.4 < (second[0] != second[1]).double().mean() < 0.95
    chosen = chosen_captions(5, 0, first[0].numpy(), np.full(48, 3))
    assert (second[0][:, 0].long() % 3).tolist() == chosen.tolist()


@pytest.mark.parametrize("view", [0, 1])
def test_ranks_share_an_episode_in_order(view: int) -> None:
    plan = EpisodePlan(24, 8, seed=5, episode_size=29)
    whole = [loaded.batch for loaded in features(plan).batches(0, 6, view=view)]
    parts = [[each.batch for each in features(plan, rank, 2).batches(0, 6, view=view)] for rank in range(2)]
    for one, left, right in zip(whole, *parts, strict=True):
        assert torch.equal(torch.cat([left.index, right.index]), one.index)
        assert torch.equal(torch.cat([left.text, right.text]), one.text)
