"""Recipes with unpaired data: what they say, what is refused, and that they build."""

from pathlib import Path

import pytest

from troth import recipe as recipes
from troth.data import UnpairedStream
from troth.errors import UserError
from troth.run import build, train
from troth.run.training import show_dry_run
from troth.train import read_log

NAMES = [f"{towers}-unpaired-{matching}" for towers in ("heads", "small") for matching in ("top", "argmax")]
PART = 'source={kind="embedded"}'

#: (settings on top of small-unpaired-argmax, what the one line must contain)
MISTAKES = [
    (["unpaired.batch=3"], ["unpaired.batch: unknown key", "did you mean 'batch_size'?"]),
    (["unpaired.matching=best"], ["unpaired.matching", "'top', 'argmax', 'mutual' or 'hungarian'"]),
    (["unpaired.judge=teacher"], ["unpaired.judge", "'current' or 'best'"]),
    (["unpaired.judge=current"], ["unpaired", 'refresh_metric replaces a frozen judge: set judge = "best"']),
    (["unpaired.refresh_factor=0.9"], ["unpaired.refresh_factor", "greater than or equal to 1"]),
    (["unpaired.weight=0"], ["unpaired.weight", "greater than 0"]),
    (["unpaired.paired_weight=-1"], ["unpaired.paired_weight", "greater than or equal to 0"]),
    (["unpaired.batch_size=1"], ["unpaired.batch_size", "greater than 1"]),
    (["unpaired.order=paired"], ["unpaired.order", "'independent' or 'aligned'"]),
    (["unpaired.truth=class"], ["unpaired.truth", "'caption' or 'category'"]),
    (['unpaired={images={kind="embedded"}}'], ["unpaired.texts: a value is missing here"]),
    ([f"unpaired.images={{kind='part', {PART}, start=1.0}}"], ["unpaired.images.start", "less than 1"]),
    ([f"unpaired.images={{kind='part', {PART}, begin=0.5}}"], ["unpaired.images.begin", "known here: source, kind"]),
    ([f"unpaired.images={{kind='part', {PART}, start=0.5, stop=0.1}}"], ["unpaired.images", "start (0.5) must be"]),
    (["unpaired.images={kind='part'}"], ["unpaired.images.source: a value is missing here"]),
]

BUILDING = [
    (["unpaired.refresh_metric=validation/mean_recal"], ["unpaired.refresh_metric", "did you mean 'validation/mean_r"]),
    (
        ["evaluation.tasks=[]", "unpaired.refresh_metric=x/y"],
        ["unpaired.refresh_metric: the tasks have no metric 'x/y'", "there are no tasks"],
    ),
    (['unpaired.images={kind="folder", path="no/such"}'], ["unpaired.images.path: there is no folder 'no/such'"]),
    (['unpaired.texts={kind="table", path="no.csv"}'], ["unpaired.texts.path: there is no table 'no.csv'"]),
    (
        [f"unpaired.texts={{kind='part', {PART}, start=0.5}}", "unpaired.order=aligned"],
        ["unpaired.order", "cannot be read in one order", 'use "independent"'],
    ),
    (["unpaired.batch_size=100000"], ["unpaired.batch_size: a batch of 100000 from", "use at most"]),
    (
        ["train.epochs=4", "towers.text.lock_after_epochs=2"],
        ["towers.text.lock_after_epochs: epochs are of two lengths", "towers.text.locked = true"],
    ),
    # As many as the first stage has: this would be the end of the second.
    (["train.epochs=4", "towers.image.lock_after_epochs=4"], ["towers.image.lock_after_epochs: epochs are of two"]),
]


@pytest.mark.parametrize(("settings", "parts"), MISTAKES, ids=lambda value: value[0][:60])
def test_a_mistake_is_one_line_with_field_and_remedy(settings: list[str], parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        recipes.load("small-unpaired-argmax", settings)
    check(str(caught.value), parts)


@pytest.mark.parametrize(("settings", "parts"), BUILDING, ids=lambda value: value[0][:60])
def test_what_only_building_can_find_is_one_line_too(settings: list[str], parts: list[str]) -> None:
    recipe = recipes.load("small-unpaired-argmax", settings)
    with pytest.raises(UserError) as caught:
        build(recipe).stream()
    check(str(caught.value), parts)


def check(line: str, parts: list[str]) -> None:
    assert "\n" not in line
    assert all(part in line for part in parts), line


@pytest.mark.parametrize("name", NAMES)
def test_what_a_shipped_recipe_validates_on_is_kept_out_of_everything_else(name: str) -> None:
    recipe = recipes.load(name)
    assert recipe.unpaired is not None
    (task,) = (task for task in recipe.evaluation.tasks if task.name == "validation")
    validation = task.source.open()
    held_out = {validation.key(index) for index in range(len(validation))}
    assert len(held_out) > 800
    for source in (recipe.data.source, recipe.unpaired.images, recipe.unpaired.texts):
        opened = source.open()
        assert not held_out & {opened.key(index) for index in range(len(opened))}


def test_a_recipe_builds_a_stream_of_both_stages() -> None:
    recipe = recipes.load("small-unpaired-top", ["train.num_workers=0", "unpaired.batch_size=32"])
    stream = build(recipe).stream()
    assert isinstance(stream, UnpairedStream)
    (loaded,) = stream.batches(stream.paired_steps, stream.paired_steps + 1)
    assert loaded.unpaired is not None
    assert loaded.batch.image.shape == (32, 3, 64, 64)
    assert loaded.unpaired.text_truth.min() > 0


#: What makes the recipes on vectors short.
SHORT = ["train.tensorboard=false", "train.epochs=1", "unpaired.epochs=1", "train.evaluate_every_epochs=1"]


def short(source: str) -> list[str]:
    return [f"unpaired.images={source}", f"unpaired.texts={source}", *SHORT]


def test_the_published_synthetic_setting_finds_pairs_because_its_batches_hold_them(tmp_path: Path) -> None:
    source = '{kind="spiked", split="unpaired", num_samples=1000}'
    settings = [*short(source), "evaluation.tasks=[]", "train.epochs=20"]
    right = {}
    for order in ("aligned", "independent"):
        folder = tmp_path / order
        train(recipes.load("spiked-unpaired", [*settings, f"unpaired.order={order}"]), folder, progress=False)
        (*_, last) = read_log(folder, "train")
        right[order] = last["detected_right"]
        assert (last["detectable"] == 1) == (order == "aligned")
    assert right["aligned"] > 0.4 > 2 * right["independent"]


def test_the_digits_second_stage_follows_its_validation(repository: Path, tmp_path: Path) -> None:
    folder = repository / "benchmarks" / "data" / "digits"
    source = f'{{kind="vectors", path="{folder}/validation.npz"}}'
    tasks = f'evaluation.tasks=[{{kind="class-matching", name="validation", source={source}}}]'
    pairs = f'data.source={{kind="vectors", path="{folder}/paired.npz"}}'
    recipe = recipes.load("digits-unpaired", [*short(source), tasks, pairs])
    assert recipe.unpaired is not None
    assert (recipe.unpaired.order, recipe.unpaired.truth) == ("independent", "category")
    train(recipe, tmp_path / "run", progress=False)
    (*_, last) = read_log(tmp_path / "run", "train")
    assert last["detectable"] == 1
    assert last["learning_rate"] == pytest.approx(2e-5)


@pytest.mark.parametrize("name", ["digits-paired", "digits-unpaired"])
def test_away_from_the_repository_the_digits_are_told_to_be_there(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        build(recipes.load(name))
    check(str(caught.value), ["benchmarks/data/digits/paired.npz", "Troth's repository", "python -m tools.digits"])


def test_a_dry_run_counts_both_stages(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["train.num_workers=0", "train.batch_size=16", "unpaired.batch_size=16", "unpaired.paired_weight=1"]
    show_dry_run(recipes.load("small-unpaired-top", [*small, "evaluation.tasks=[]", "train.epochs=1"]))
    said = " ".join(capsys.readouterr().out.split())
    assert "of 16 images and captions, with pairs" in said
