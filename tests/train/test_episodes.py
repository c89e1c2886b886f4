"""Episodes: what is encoded and clustered, who learns from it, and what resuming refuses."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.train.episodic import (
    BOTH,
    CONFIG,
    PLAN,
    EpisodicStream,
    episodes,
    episodic_model,
    teachers_features,
    trainer,
)
from tests.train.small import small_config, small_model
from tests.train.small import trainer as plain_trainer
from troth.clustering import KMeans, group_means
from troth.data import EpisodePlan, LoadedBatch
from troth.data.ledger import LedgerEntry
from troth.encoders.prototype_heads import ProjectionConfig
from troth.errors import UserError
from troth.objectives import InfoNCE, Prototypes, Sum
from troth.state import State
from troth.train import Episodes, EpisodesConfig, Trainer, dry_run, read_log
from troth.train.external_teacher import ExternalFeatures


def fresh(made: Episodes) -> State:
    state = State(40, "f")
    made.declare(state)
    return state


def encoded(stream: EpisodicStream, step: int) -> tuple[Tensor, Tensor]:
    """The projections of the episode's other view, as a plain loop over its steps makes them."""
    model, parts = episodic_model().eval(), []
    with torch.no_grad():
        for loaded in stream.batches(step, step + 5, view=1):
            features = model(loaded.batch.image, loaded.batch.text)
            parts.append((features.image_projection, features.text_projection))
    return tuple(torch.cat(rows) for rows in zip(*parts, strict=True))


def test_prototypes_are_those_of_a_direct_computation() -> None:
    made, stream, model = episodes(), EpisodicStream(), episodic_model().train()
    state, before = fresh(made), {name: x.clone() for name, x in model.state_dict().items()}
    made.begin(5, stream, model, state, None)
    image, text = encoded(stream, 5)
    ids = torch.cat([torch.from_numpy(PLAN.indices(step)) for step in range(5, 10)])
    spaces = {"image": image, "text": text, "external": teachers_features()[ids]}
    students = {"image": ["text"], "text": ["image"], "external": ["image", "text"]}
    own = state.scope("episodes")
    for name, points in spaces.items():
        clusters = KMeans(iterations=5).fit(points, 10, seed=PLAN.seed + 1)
        assert torch.equal(own.value(f"{name}/label").long(), clusters.labels)
        assert torch.equal(own.value(f"{name}/prototypes"), clusters.centroids)
        for student in students[name]:
            means = group_means(spaces[student], clusters.labels, 10)
            torch.testing.assert_close(own.value(f"{name}/{student}"), means)
    # Encoding has left no trace: not in the batch norm's averages, not in the mode of any part.
    assert all(torch.equal(values, before[name]) for name, values in model.state_dict().items())
    assert all(module.training for module in model.modules())


def test_parts_in_evaluation_mode_stay_in_it() -> None:
    model = episodic_model().train()
    model.encoder.image_tower.eval()
    made = episodes()
    made.begin(5, EpisodicStream(), model, fresh(made), None)
    assert not any(module.training for module in model.encoder.image_tower.modules())
    assert model.prototype_heads.image_head[1].training


def test_the_mode_is_restored_after_an_error() -> None:
    class Broken(EpisodicStream):
        def batches(self, start_step: int, stop_step: int, *, view: int = 0):
            yield from super().batches(start_step, start_step + 1, view=view)
            raise InterruptedError

    model, made = episodic_model().train(), episodes()
    with pytest.raises(InterruptedError):
        made.begin(5, Broken(), model, fresh(made), None)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("step", [5, 7, 9])
def test_a_batch_has_the_labels_of_its_place_in_the_episode(step: int) -> None:
    """Not of its sample ids: a sample that comes twice has two views and may have two labels."""
    made, stream, model = episodes(), EpisodicStream(), episodic_model()
    state = fresh(made)
    made.begin(5, stream, model, state, None)
    loaded = next(iter(stream.batches(step, step + 1)))
    features = model(loaded.batch.image, loaded.batch.text)
    pairs = made.pairs(step, features, state)
    own, rows = state.scope("episodes"), slice(8 * (step - 5), 8 * (step - 4))
    assert pairs.image is features.image_projection
    assert pairs.text is features.text_projection
    assert pairs.scale is features.prototype_scale
    assert set(pairs.clusters) == {"image", "text", "external"}
    for name, clusters in pairs.clusters.items():
        labels = own.value(f"{name}/label").long()
        assert torch.equal(clusters.label, labels[rows])
        assert clusters.occupied.tolist() == [bool((labels == k).any()) for k in range(10)]
        assert torch.equal(clusters.prototypes, own.value(f"{name}/prototypes"))
    assert pairs.clusters["image"].image is None
    assert torch.equal(pairs.clusters["image"].text, own.value("image/text"))
    assert pairs.clusters["text"].text is None
    assert torch.equal(pairs.clusters["text"].image, own.value("text/image"))


@pytest.mark.parametrize("step", [0, 4, 20, 29])
def test_warm_up_and_locked_episodes_carry_no_clusters(step: int) -> None:
    made, stream, model = episodes(), EpisodicStream(), episodic_model()
    state = fresh(made)
    before = {name: x.clone() for name, x in state.state_dict().items()}
    made.begin(step - step % 5, stream, model, state, None)
    assert all(torch.equal(x, before[name]) for name, x in state.state_dict().items())
    loaded = next(iter(stream.batches(step, step + 1)))
    pairs = made.pairs(step, model(loaded.batch.image, loaded.batch.text), state)
    assert pairs.clusters == {}


def test_phases_and_the_step_of_the_lock() -> None:
    made = episodes()
    assert [made.phase(step) for step in (0, 4, 5, 19, 20, 500)] == [
        "warmup", "warmup", "prototypes", "prototypes", "locked", "locked",
    ]  # fmt: skip
    assert made.lock_step == 20
    unlocked = episodes(replace(CONFIG, warmup_episodes=0, lock_image_from=None))
    assert unlocked.phase(0) == unlocked.phase(500) == "prototypes"
    assert unlocked.lock_step is None


def test_only_the_first_step_of_an_episode_begins_it() -> None:
    made, state = episodes(), None
    state = fresh(made)
    for step in (6, 7, 8, 9):
        assert not made.begin(step, EpisodicStream(), episodic_model(), state, None)
    assert not state.scope("episodes").value("image/prototypes").any()


def test_the_teachers_clusters_are_those_of_the_samples_that_were_read() -> None:
    """A stream may number its samples otherwise than its plan, and put one sample in another's place."""

    class Elsewhere(EpisodicStream):
        def indices(self, step: int) -> Tensor:
            return 39 - super().indices(step)

    made, stream = episodes(), Elsewhere()
    state = fresh(made)
    made.begin(5, stream, episodic_model(), state, None)
    ids = torch.cat([stream.indices(step) for step in range(5, 10)])
    clusters = KMeans(iterations=5).fit(teachers_features()[ids], 10, seed=PLAN.seed + 1)
    assert torch.equal(state.scope("episodes").value("external/label").long(), clusters.labels)


def test_what_the_encoding_skips_is_told() -> None:
    skipped = (LedgerEntry("broken.jpg", "corrupt-image"),)
    made, stream = episodes(), EpisodicStream(skipped=skipped)
    assert made.begin(5, stream, episodic_model(), fresh(made), None).keys() == {"broken.jpg"}
    assert not made.begin(0, stream, episodic_model(), fresh(made), None)


def test_a_run_learns_and_logs_its_episodes(tmp_path: Path) -> None:
    plan = replace(PLAN, seed=3)
    config = replace(CONFIG, lock_image_from=None)
    model, objective = episodic_model(), Sum(((0.0, InfoNCE()), (1.0, Prototypes(target_temperature=None))))
    result = trainer(
        tmp_path,
        model=model,
        objective=objective,
        stream=EpisodicStream(plan),
        made=episodes(config, plan),
        epochs=40,
    ).run()
    log = read_log(tmp_path, "train")
    note = "1-prototypes/image_finds_cluster"
    early, late = (
        sum(record[note] for record in log if record["step"] in steps) / len(steps)
        for steps in (range(6, 11), range(161, 186))
    )
    assert late > early + 0.3  # a tenth would be chance
    assert note not in log[0]
    assert log[0]["loss"] == 0  # the warm-up learns pairs alone, and nothing here does
    told = read_log(tmp_path, "episode")
    assert [record["episode"] for record in told] == list(range(1, 38))
    assert [record["step"] for record in told] == list(range(5, 186, 5))
    assert result.step == 185
    assert [record["phase"] for record in told] == ["warmup"] + ["prototypes"] * 36
    first, second = told[:2]
    assert first["features_seconds"] == first["clustering_seconds"] == 0
    assert first["occupied"] == {}
    assert all(second[f"{what}_seconds"] > 0 for what in ("features", "clustering", "training"))
    assert second["occupied"].keys() == {"image", "text", "external"}
    assert all(1 < number <= 10 for number in second["occupied"].values())


def test_objectives_without_prototypes_neither_encode_nor_cluster(tmp_path: Path) -> None:
    """The order of episodes alone, as the source's plain CLIP has it: on a model without heads."""

    class Single(EpisodicStream):
        def batches(self, start_step: int, stop_step: int, *, view: int = 0):
            assert view == 0
            return super().batches(start_step, stop_step)

    made = episodes(with_prototypes=False)
    running = trainer(tmp_path, model=small_model(), stream=Single(), objective=InfoNCE(), made=made, epochs=2)
    running.run()
    assert not running.state.state_dict()
    assert [record["phase"] for record in read_log(tmp_path, "episode")] == ["pairs", "pairs"]
    assert made.phase(25) == "locked"


def test_a_model_without_heads_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^episodes\.projection: the model has no prototype heads"):
        trainer(tmp_path / "a", model=small_model()).run()
    config = replace(CONFIG, warmup_episodes=0)
    with pytest.raises(UserError, match=r"^episodes\.projection: the model has no prototype heads"):
        trainer(tmp_path / "b", model=small_model(), made=episodes(config)).run()


def test_too_few_samples_for_two_prototypes_is_a_user_error() -> None:
    config = EpisodesConfig(size=20, images_per_prototype=9)
    with pytest.raises(UserError, match=r"^episodes\.images_per_prototype: .*16 samples has 1 prototypes.* at most 8"):
        Episodes(config, config.plan(40, 8, 0))
    with pytest.raises(ValueError, match=r"images_per_prototype \(9\) must be at most half of size \(17\)"):
        EpisodesConfig(size=17, images_per_prototype=9)


OTHERS = {
    "kmeans": episodes(replace(CONFIG, kmeans=KMeans(iterations=6))),
    "warm-up": episodes(replace(CONFIG, warmup_episodes=0)),
    "lock": episodes(replace(CONFIG, lock_image_from=None)),
    "prototypes": episodes(replace(CONFIG, images_per_prototype=5)),
    "teacher": Episodes(CONFIG, PLAN, ExternalFeatures(teachers_features(), "teacher b")),
}


@pytest.mark.parametrize("name", OTHERS)
def test_resuming_with_other_episodes_is_refused(tmp_path: Path, name: str) -> None:
    trainer(tmp_path, epochs=1).run()
    with pytest.raises(UserError, match=r"^episodes: the episodes \(or their external teacher\) was EpisodesConfig"):
        trainer(tmp_path, made=OTHERS[name], epochs=1).run(resume=True)


def test_resuming_with_episodes_what_had_none_is_refused_and_the_other_way_round(tmp_path: Path) -> None:
    def plain() -> Trainer:
        return plain_trainer(tmp_path / "plain", stream=EpisodicStream(), seed=11, config={"epochs": 1})

    def episodic(folder: str) -> Trainer:
        made = episodes(with_prototypes=False)
        return trainer(tmp_path / folder, model=small_model(), objective=InfoNCE(), made=made, epochs=1)

    plain().run()
    with pytest.raises(UserError, match=r"^episodes: .* was none when .* and is EpisodesConfig"):
        episodic("plain").run(resume=True)
    episodic("episodic").run()
    with pytest.raises(UserError, match=r"^episodes: .* was EpisodesConfig.* and is none now"):
        plain_trainer(tmp_path / "episodic", stream=EpisodicStream(), seed=11, config={"epochs": 1}).run(resume=True)


def test_a_dry_run_makes_a_step_with_prototypes_and_clusters_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KMeans, "fit", None)
    views = []

    class Watched(EpisodicStream):
        def batches(self, start_step: int, stop_step: int, *, view: int = 0):
            views.append(view)
            return super().batches(start_step, stop_step, view=view)

    model, made = episodic_model(), episodes()
    before = {name: x.clone() for name, x in model.encoder.state_dict().items()}
    report = dry_run(model, BOTH, Watched(), small_config(epochs=6), episodes=made)
    assert views == [0]
    assert report.total_steps == 30
    assert all(torch.equal(x, before[name]) for name, x in model.encoder.state_dict().items())
    # Prototypes of zeros: each of the ten is as likely as any other, for three losses of half, half and a half weight.
    pairs = dry_run(episodic_model(), InfoNCE(), Watched(), small_config(epochs=6), episodes=made)
    assert report.loss - pairs.loss == pytest.approx(1.5 * torch.log(torch.tensor(10.0)).item(), rel=1e-4)
    heads = sum(parameter.numel() for parameter in model.prototype_heads.parameters())
    assert report.other.total == heads + 1


def test_a_dry_run_of_a_run_that_never_learns_prototypes() -> None:
    made = episodes(replace(CONFIG, lock_image_from=1))
    assert made.rehearsal_step == 0
    report = dry_run(episodic_model(), BOTH, EpisodicStream(), small_config(epochs=6), episodes=made)
    pairs = dry_run(episodic_model(), BOTH.terms[0][1], EpisodicStream(), small_config(epochs=6), episodes=made)
    assert report.loss == pairs.loss


def test_an_episode_that_one_batch_fills(tmp_path: Path) -> None:
    plan = EpisodePlan(40, 8, 11, 8)
    config = EpisodesConfig(size=8, images_per_prototype=4, projection=ProjectionConfig(hidden_dim=16, dim=6))
    result = trainer(tmp_path, stream=EpisodicStream(plan), made=episodes(config, plan), epochs=1).run()
    assert result.step == 5
    assert len(read_log(tmp_path, "episode")) == 5


def test_batches_of_the_first_view_do_not_depend_on_the_second(tmp_path: Path) -> None:
    seen: list[LoadedBatch] = []

    class Watched(EpisodicStream):
        def batches(self, start_step: int, stop_step: int, *, view: int = 0):
            for loaded in super().batches(start_step, stop_step, view=view):
                if view == 0:
                    seen.append(loaded)
                yield loaded

    trainer(tmp_path, stream=Watched(), epochs=3).run()
    expected = list(EpisodicStream().batches(0, 15))
    assert [loaded.batch.index.tolist() for loaded in seen] == [loaded.batch.index.tolist() for loaded in expected]
    assert all(torch.equal(a.batch.image, b.batch.image) for a, b in zip(seen, expected, strict=True))


def test_the_image_tower_is_locked_from_its_episode_on_and_the_text_tower_learns(tmp_path: Path) -> None:
    trainer(tmp_path, checkpoint_every_steps=10, keep_last=3).run()
    weights = [load_file(tmp_path / "checkpoints" / f"step-{step:08d}" / "model.safetensors") for step in (10, 20, 30)]

    def same(prefix: str, first: int, second: int) -> bool:
        names = [name for name in weights[0] if name.startswith(f"encoder.{prefix}")]
        assert names
        return all(torch.equal(weights[first][name], weights[second][name]) for name in names)

    assert not same("image_tower", 0, 1)
    assert same("image_tower", 1, 2)
    assert not same("text_tower", 1, 2)
    phases = [record["phase"] for record in read_log(tmp_path, "episode")]
    assert phases == ["warmup", "prototypes", "prototypes", "prototypes", "locked", "locked"]


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        (
            {"size": 400, "lock_image_from": None},
            r"^episodes.size: none of the run's 1 episodes of 400 samples",
        ),
        ({"lock_image_from": 2}, r"^episodes.size: none of the run's 6 episodes"),
        ({"lock_image_from": 7}, r"^episodes.lock_image_from: .* from episode 7 on, and the run has 6"),
    ],
)
def test_a_run_in_which_no_episode_learns_prototypes_is_refused(changes: dict, place: str) -> None:
    config = replace(CONFIG, **changes)
    with pytest.raises(UserError, match=place):
        Episodes(config, config.plan(40, 8, 11)).check(epochs=6)
    if changes.get("lock_image_from") is None:
        Episodes(config, config.plan(40, 8, 11), with_prototypes=False).check(epochs=6)


def test_encoding_keeps_to_micro_batches_and_finds_the_same(tmp_path: Path) -> None:
    def clusters(rows: int | None) -> dict[str, torch.Tensor]:
        seen: list[int] = []
        model, state = episodic_model(dtype=torch.float64), State(40, "f")
        model.register_forward_hook(lambda module, inputs, outputs: seen.append(len(inputs[0])))
        made = episodes()
        made.declare(state)
        made.begin(PLAN.steps_per_episode, EpisodicStream(dtype=torch.float64), model, state, None, rows)
        assert max(seen) == (rows or PLAN.batch_size)
        return state.state_dict()

    whole, parts = clusters(None), clusters(3)
    assert all(torch.allclose(whole[name], parts[name]) for name in whole)
    assert any(values.any() for values in whole.values())
