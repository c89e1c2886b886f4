from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.planted import caption_source
from troth.data import CaptionAssignment, FolderSource, IndexedSource, Noise
from troth.data.caption_sets import CaptionSets
from troth.errors import UserError

captions = st.lists(st.lists(st.sampled_from("abcdefghij"), min_size=1, max_size=3), min_size=2, max_size=40)
unique = st.integers(2, 60).map(lambda count: [[f"caption {number}"] for number in range(count)])
fractions = st.floats(0.0, 1.0)


def texts(source: IndexedSource, reserve: IndexedSource | None, caption: int) -> set[str]:
    if caption < len(source):
        return set(source.captions(caption))
    assert reserve is not None
    return set(reserve.captions(caption - len(source)))


def check(assignment: CaptionAssignment, source: IndexedSource, reserve: IndexedSource | None = None) -> None:
    """What must hold of any static noise."""
    for index, (caption, wrong) in enumerate(zip(assignment.caption_of, assignment.mismatched, strict=True)):
        own, given_ = set(source.captions(index)), texts(source, reserve, int(caption))
        assert wrong == own.isdisjoint(given_)
        assert own.isdisjoint(given_) if caption != index else not wrong


@given(rows=unique, fraction=fractions, seed=st.integers(0, 2**40))
def test_uniform_noise_is_an_exact_derangement(rows: list[list[str]], fraction: float, seed: int) -> None:
    source = caption_source(rows)
    count = round(fraction * len(rows))
    if count == 1:
        with pytest.raises(UserError, match=r"noise\.fraction"):
            Noise(fraction=fraction).draw(source, seed)
        return
    assignment = Noise(fraction=fraction).draw(source, seed)
    check(assignment, source)
    assert assignment.mismatched.sum() == count
    assert sorted(assignment.caption_of) == list(range(len(rows)))
    moved = np.flatnonzero(assignment.caption_of != np.arange(len(rows)))
    assert np.array_equal(np.flatnonzero(assignment.mismatched), moved)


@given(rows=captions, fraction=fractions, seed=st.integers(0, 100))
def test_repeated_captions_never_make_a_mismatch_that_is_none(
    rows: list[list[str]], fraction: float, seed: int
) -> None:
    source = caption_source(rows)
    try:
        assignment = Noise(fraction=fraction).draw(source, seed)
    except UserError as error:
        assert error.where == "noise.fraction"  # noqa: PT017 - either outcome is right here
        return
    check(assignment, source)
    assert assignment.mismatched.sum() == round(fraction * len(rows))
    assert sorted(assignment.caption_of) == list(range(len(rows)))


@pytest.mark.parametrize("seed", range(5))
def test_captions_that_just_allow_it(seed: int) -> None:
    halves = caption_source([["a"]] * 50 + [["b"]] * 50)
    assert Noise(fraction=1.0).draw(halves, seed).mismatched.all()
    mostly = caption_source([["a"]] * 90 + [[f"{number}"] for number in range(10)])
    assignment = Noise(fraction=0.2).draw(mostly, seed)
    check(assignment, mostly)
    assert assignment.mismatched.sum() == 20


@pytest.mark.parametrize("rows", [[["a"]] * 10, [["a", "b"], ["b", "c"], ["c", "a"]], [["a"]] * 6 + [["b"]] * 4])
def test_the_impossible_is_a_user_error(rows: list[list[str]]) -> None:
    with pytest.raises(UserError, match=r"noise\.fraction: no way was found"):
        Noise(fraction=1.0).draw(caption_source(rows), 0)


@given(
    categories=st.lists(st.sampled_from(["x", "y", "z", "lone", None]), min_size=4, max_size=50),
    fraction=fractions,
    seed=st.integers(0, 100),
)
def test_same_category_noise_stays_within_categories(categories: list[str | None], fraction: float, seed: int) -> None:
    source = caption_source([[f"{number}"] for number in range(len(categories))], categories)
    count = round(fraction * len(categories))
    sizes = [categories.count(name) for name in {*categories} - {None}]
    sizes = [size for size in sizes if size > 1]
    # Any count can be made of groups of two or more, but one, all but one, and what pairs alone cannot give.
    odd_pairs = count % 2 == 1 and all(size == 2 for size in sizes)
    try:
        assignment = Noise(fraction=fraction, partners="same-category").draw(source, seed)
    except UserError as error:
        impossible = count == 1 or count > sum(sizes) or odd_pairs
        assert impossible or error.where == "noise.partners"  # noqa: PT017
        return
    check(assignment, source)
    assert assignment.mismatched.sum() == count
    for index in np.flatnonzero(assignment.mismatched):
        assert categories[index] is not None
        assert categories[index] == categories[assignment.caption_of[index]]


def test_same_category_counts_are_exact_with_small_categories() -> None:
    names = [f"{number // 2}" for number in range(40)] + ["odd"] * 3
    source = caption_source([[f"{number}"] for number in range(43)], names)
    for count in range(2, 44):
        assignment = Noise(fraction=count / 43, partners="same-category").draw(source, count)
        assert assignment.mismatched.sum() == count


def test_same_category_noise_avoids_categories_of_one_caption() -> None:
    rows = [["same"]] * 20 + [[f"{number}"] for number in range(20)]
    source = caption_source(rows, ["dull"] * 20 + ["rich"] * 20)
    assignment = Noise(fraction=0.5, partners="same-category").draw(source, 0)
    assert assignment.mismatched.sum() == 20
    assert not assignment.mismatched[:20].any()


@given(rows=captions, extra=captions, fraction=fractions, seed=st.integers(0, 100))
def test_foreign_captions_come_once_each_from_the_reserve(
    rows: list[list[str]], extra: list[list[str]], fraction: float, seed: int
) -> None:
    source, reserve = caption_source(rows), caption_source(extra)
    try:
        assignment = Noise(fraction=fraction, partners="foreign").draw(source, seed, reserve)
    except UserError as error:
        assert error.where in ("noise.reserve", "noise.fraction")  # noqa: PT017
        return
    check(assignment, source, reserve)
    used = assignment.caption_of[assignment.mismatched]
    assert len(used) == round(fraction * len(rows)) == len(set(used.tolist()))
    assert (used >= len(rows)).all()


def test_the_captions_of_the_reserve_are_part_of_the_identity(tmp_path: Path) -> None:
    source = caption_source([[f"{number}"] for number in range(10)])
    reserves = [caption_source([[f"{word} {number}"] for number in range(10)]) for word in ("one", "other", "one")]
    drawn = [Noise(fraction=0.5, partners="foreign").draw(source, 0, reserve) for reserve in reserves]
    assert np.array_equal(drawn[0].caption_of, drawn[1].caption_of)
    assert drawn[0].identity != drawn[1].identity
    assert drawn[0].identity == drawn[2].identity
    drawn[0].save(tmp_path / "noise.npz")
    loaded = CaptionAssignment.load(tmp_path / "noise.npz")
    assert loaded.identity == drawn[0].identity
    assert loaded.reserve_fingerprint == reserves[0].fingerprint


def test_foreign_noise_needs_a_reserve_that_is_large_enough() -> None:
    source = caption_source([[f"{number}"] for number in range(10)])
    with pytest.raises(UserError, match=r"noise\.reserve: foreign captions need a reserve"):
        Noise(fraction=0.5, partners="foreign").draw(source, 0)
    with pytest.raises(UserError, match=r"noise\.reserve: 5 foreign captions are needed and the reserve has 4"):
        Noise(fraction=0.5, partners="foreign").draw(source, 0, caption_source([["x"]] * 4))
    with pytest.raises(UserError, match="there is no folder"):
        Noise(fraction=0.5, partners="foreign", reserve=FolderSource(path="nowhere")).draw(source, 0)


def test_draws_depend_on_the_seed_alone() -> None:
    source = caption_source([[f"{number}"] for number in range(100)])
    first = Noise(fraction=0.3).draw(source, 1)
    assert np.array_equal(first.caption_of, Noise(fraction=0.3, seed=1).draw(source, 2).caption_of)
    assert not np.array_equal(first.caption_of, Noise(fraction=0.3).draw(source, 2).caption_of)
    chosen = sum(Noise(fraction=0.3).draw(source, seed).mismatched.astype(int) for seed in range(300))
    assert chosen.min() > 55
    assert chosen.max() < 130


def test_saving_and_loading(tmp_path: Path) -> None:
    source = caption_source([[f"{number}"] for number in range(10)])
    assignment = Noise(fraction=0.5).draw(source, 1)
    assignment.save(tmp_path / "noise.npz")
    loaded = CaptionAssignment.load(tmp_path / "noise.npz", source.fingerprint)
    assert np.array_equal(loaded.caption_of, assignment.caption_of)
    assert np.array_equal(loaded.mismatched, assignment.mismatched)
    with pytest.raises(UserError, match="another data set"):
        CaptionAssignment.load(tmp_path / "noise.npz", "other")
    old = {name: getattr(assignment, name) for name in ("caption_of", "mismatched", "fingerprint")}
    np.savez_compressed(tmp_path / "old.npz", **old)
    assert CaptionAssignment.load(tmp_path / "old.npz", source.fingerprint).identity == assignment.identity
    (tmp_path / "bad.npz").write_bytes(b"PK rubbish")
    for name in ("bad.npz", "none.npz"):
        with pytest.raises(UserError, match=name):
            CaptionAssignment.load(tmp_path / name)


@settings(max_examples=30)
@given(batch_size=st.integers(8, 64), fraction=st.floats(0.3, 1.0), step=st.integers(0, 1000))
def test_batch_noise_is_a_cyclic_shift_of_an_exact_number(batch_size: int, fraction: float, step: int) -> None:
    source = caption_source([[f"{number}"] for number in range(100)])
    noise = Noise(fraction=fraction, mode="batch").bind(source, 4)
    noise.check(batch_size)
    index = np.random.default_rng(step).permutation(100)[:batch_size].astype(np.int64)
    caption_of, mismatched = noise.draw(index, step)
    count = int(fraction * batch_size + 1e-9)
    assert mismatched.sum() == count
    assert sorted(caption_of) == sorted(index)
    follows = dict(zip(index.tolist(), caption_of.tolist(), strict=True))
    start = int(index[mismatched][0])
    cycle = [start]
    while follows[cycle[-1]] != start:
        cycle.append(follows[cycle[-1]])
    assert len(cycle) == count
    again = Noise(fraction=fraction, mode="batch").bind(source, 4).draw(index, step)
    assert np.array_equal(again[0], caption_of)
    assert not np.array_equal(noise.draw(index, step + 1)[0], caption_of) or count < 4


def test_batch_noise_between_equal_captions_is_no_mismatch() -> None:
    source = caption_source([["same"]] * 8 + [["a", "b"], ["b", "a"]])
    noise = Noise(fraction=1.0, mode="batch").bind(source, 0)
    index = np.arange(10)
    caption_of, mismatched = noise.draw(index, 0)
    assert (caption_of != index).all()
    expected = [set(source.captions(int(c))).isdisjoint(source.captions(i)) for i, c in enumerate(caption_of)]
    assert mismatched.tolist() == expected
    assert not mismatched.all()


def test_batch_noise_between_overlapping_captions_is_no_mismatch() -> None:
    source = caption_source([["a", "b"], ["b", "c"], ["c", "a"], ["x"], ["y", "x"], ["z"]])
    noise = Noise(fraction=1.0, mode="batch").bind(source, 0)
    index = np.arange(6)
    seen = set()
    for step in range(20):
        caption_of, mismatched = noise.draw(index, step)
        for row, (caption, wrong) in enumerate(zip(caption_of.tolist(), mismatched.tolist(), strict=True)):
            assert wrong == set(source.captions(caption)).isdisjoint(source.captions(row))
            assert noise.replaced(-1, row, caption) == (caption, wrong)
            seen.add(wrong)
    assert seen == {False, True}


def test_batch_noise_of_the_other_partners() -> None:
    names = [f"{number % 5}" for number in range(50)]
    source = caption_source([[f"{number}"] for number in range(50)], names)
    index = np.arange(0, 40)
    caption_of, mismatched = Noise(fraction=0.5, mode="batch", partners="same-category").bind(source, 0).draw(index, 3)
    assert mismatched.sum() == 20
    assert all(names[caption] == names[row] for row, caption in enumerate(caption_of))
    reserve = caption_source([[f"foreign {number}"] for number in range(25)])
    foreign = Noise(fraction=0.5, mode="batch", partners="foreign").bind(source, 0, reserve)
    caption_of, mismatched = foreign.draw(index, 3)
    assert mismatched.sum() == 20 == len(np.unique(caption_of[mismatched]))
    assert (caption_of[mismatched] >= 50).all()
    with pytest.raises(UserError, match=r"noise\.reserve"):
        foreign.check(60)
    with pytest.raises(UserError, match="no categories"):
        Noise(fraction=0.5, mode="batch", partners="same-category").bind(reserve, 0)


def test_batch_noise_too_small_for_the_batch_is_a_user_error() -> None:
    noise = Noise(fraction=0.1, mode="batch").bind(caption_source([["a"], ["b"]]), 0)
    with pytest.raises(UserError, match=r"0.1 of a batch of 16 is 1 pairs.*at least 0.125"):
        noise.check(16)


def test_no_noise_is_everyones_own_caption() -> None:
    source = caption_source([["a"], ["b"]])
    for mode in ("static", "batch"):
        noise = Noise(mode=mode).bind(source, 0)
        assert isinstance(noise, CaptionAssignment)
        assert noise.caption_of.tolist() == [0, 1]
        assert noise.identity == ""


@given(rows=captions)
def test_caption_sets_against_pythons(rows: list[list[str]]) -> None:
    source = caption_source(rows)
    sets = CaptionSets.of(source)
    count = len(rows)
    left, right = (part.ravel() for part in np.meshgrid(np.arange(count), np.arange(count)))
    own = [set(row) for row in rows]
    pairs = list(zip(left, right, strict=True))
    assert sets.intersect(left, right).tolist() == [not own[a].isdisjoint(own[b]) for a, b in pairs]
    assert sets.differ(left, right).tolist() == [own[a] != own[b] for a, b in pairs]
    labels = sets.components(np.arange(count))
    assert all(labels[a] == labels[b] for a, b in pairs if not own[a].isdisjoint(own[b]))
