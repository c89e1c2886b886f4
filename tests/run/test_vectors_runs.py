"""Recipes on vectors, from the file to the audit."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from troth import recipe as recipes
from troth.audit import AuditTable
from troth.embed import Embedder, FeatureCache, embed_source
from troth.encoders import ContrastiveModel, Heads, Plain
from troth.errors import UserError
from troth.geometry import Sphere
from troth.recipe import Recipe
from troth.run import build, evaluate, resume, train
from troth.run.arguments import data_argument
from troth.run.build import Built, build_model
from troth.run.opened import open_run
from troth.run.scoring import audit, check_data, embed

MATCHING = '{kind="matching", name="test", source={kind="spiked", split="test", num_samples=60}, topk=[1, 5]}'
SMALL = [
    "train.epochs=4",
    "train.batch_size=20",
    "train.tensorboard=false",
    "train.evaluate_every_epochs=2",
    "train.optimizer.learning_rate=2e-2",
    "data.source.num_samples=80",
    f"evaluation.tasks=[{MATCHING}]",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vectors") / "run"
    recipe = recipes.load(
        "spiked-paired", [*SMALL, "data.noise.fraction=0.2", 'evaluation.best="test/image_to_text/top1"']
    )
    train(recipe, folder, progress=False)
    return folder


def scores(folder: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((folder / "evaluation.json").read_text())["metrics"]
    return found


def test_a_run_learns_and_writes_the_dimensions_it_took_from_the_data(run: Path) -> None:
    assert scores(run)["test/image_to_text/top5"] > 3 * 5 / 60
    assert set(scores(run)) == {f"test/{way}/top{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5)}
    written = recipes.load(run / "recipe.toml").model
    assert written == Plain(embed_dim=10, hidden=(), bias=False, image_dim=40, text_dim=39)


def test_evaluating_again_gives_the_same_numbers(run: Path) -> None:
    before = scores(run)
    evaluate(run, "last")
    assert scores(run) == pytest.approx(before)


def test_an_audit_lists_every_pair_with_the_name_of_its_vector(run: Path, tmp_path: Path) -> None:
    audit(run, "last", tmp_path / "audit.parquet")
    table = AuditTable.read(tmp_path / "audit.parquet")
    assert len(table) == 80
    assert set(table.key) == {f"train-{row}" for row in range(80)}
    with np.load(run / "noise.npz") as noise:
        owners = noise["caption_of"]
    for key, caption, owner in zip(table.key, table.caption, table.caption_key, strict=True):
        assert owner == f"train-{owners[int(key.removeprefix('train-'))]}"
        assert caption.startswith(f"text {owner} (")


def test_points_are_those_of_the_towers(run: Path, tmp_path: Path) -> None:
    embed(run, "last", f"recipe:{run / 'recipe.toml'}", tmp_path / "points.safetensors")
    points = load_file(tmp_path / "points.safetensors")
    model = open_run(run, "last").model
    source = recipes.load(run / "recipe.toml").data.source.open()
    with torch.no_grad():
        torch.testing.assert_close(points["image"], model.embed_image(source.image_vectors))
        torch.testing.assert_close(points["text"], model.embed_text(source.text_vectors))


def test_an_interrupted_run_resumes_to_the_same_weights(run: Path, tmp_path: Path, monkeypatch) -> None:
    from troth.data import FeatureStream

    recipe = recipes.load(run / "recipe.toml")
    whole = FeatureStream.batches

    def broken_off(self, start_step: int, stop_step: int):
        yield from whole(self, start_step, 11)
        raise InterruptedError

    monkeypatch.setattr(FeatureStream, "batches", broken_off)
    with pytest.raises(InterruptedError):
        train(recipe, tmp_path / "run", progress=False)
    monkeypatch.setattr(FeatureStream, "batches", whole)
    resume(tmp_path / "run", progress=False)
    one, other = (
        load_file(next(folder.glob("checkpoints/*16/model.safetensors"))) for folder in (run, tmp_path / "run")
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def vectors_file(folder: Path, num_samples: int = 60) -> Path:
    """Write pairs of four classes whose vectors are their class and noise."""
    draws = np.random.default_rng(0)
    label = np.arange(num_samples) % 4
    image = 3 * np.eye(4, 6)[label] + draws.normal(size=(num_samples, 6))
    text = 3 * np.eye(4, 5)[label] + draws.normal(size=(num_samples, 5))
    path = folder / "pairs.npz"
    np.savez(path, image=image.astype(np.float32), text=text.astype(np.float32), label=label)
    return path


def digits(path: Path, *settings: str) -> Recipe:
    source = f'{{kind="vectors", path="{path}"}}'
    tasks = (
        f'evaluation.tasks=[{{kind="class-matching", name="test", source={source}}}, '
        f'{{kind="retrieval", source={source}}}]'
    )
    return recipes.load("digits-paired", [*SMALL[:5], f"data.source={source}", tasks, *settings])


@pytest.mark.parametrize("model", ['{kind="plain", embed_dim=4}', '{kind="heads", hidden_dim=8, embed_dim=4}'])
def test_a_file_of_vectors_trains_perceptrons_and_heads_without_frozen_encoders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    def refuse(self: Heads) -> None:
        raise AssertionError("no frozen encoder is needed")

    monkeypatch.setattr(Heads, "open_encoders", refuse)
    path = vectors_file(tmp_path)
    recipe = digits(path, f"model={model}", 'objective.kind="sum"', 'teacher={kind="input"}', *SUM)
    train(recipe, tmp_path / "run", progress=False)
    assert scores(tmp_path / "run")["test/image_to_text/top1"] > 0.5
    audit(tmp_path / "run", "last", tmp_path / "audit.parquet")
    assert len(AuditTable.read(tmp_path / "audit.parquet")) == 60


def test_the_average_of_the_weights_may_teach_on_vectors(tmp_path: Path) -> None:
    momentum = ["train.average={decay=0.9}", 'objective.kind="sum"', 'teacher={kind="momentum"}', *SUM]
    result = train(recipes.load("spiked-paired", [*SMALL, *momentum]), tmp_path / "run", progress=False)
    assert result.step == 16
    assert scores(tmp_path / "run")["test/image_to_text/top5"] > 2 * 5 / 60


EXTERNAL = [
    "episodes={size=40}",
    'objective={kind="sum", terms=[[1.0, {kind="prototypes"}], [1.0, {kind="external_prototypes"}]]}',
]


def test_features_of_a_file_may_teach_episodes_of_vectors(tmp_path: Path) -> None:
    np.savez(tmp_path / "taught.npz", features=np.random.default_rng(0).normal(size=(80, 4)).astype(np.float32))
    external = f'episodes.external={{kind="file", path="{tmp_path / "taught.npz"}", dims="none"}}'
    recipe = recipes.load("spiked-paired", [*SMALL, *EXTERNAL, external, "train.epochs=1"])
    assert train(recipe, tmp_path / "run", progress=False).step == 4


SUM = ['objective.terms=[[1.0, {kind="infonce"}], [0.1, {kind="mimic"}]]']


def test_foreign_texts_come_from_a_reserve_of_vectors(tmp_path: Path) -> None:
    reserve = 'data.noise.reserve={kind="spiked", split="unpaired", num_samples=50}'
    recipe = recipes.load("spiked-paired", [*SMALL, "data.noise.fraction=0.5", "data.noise.partners=foreign", reserve])
    train(recipe, tmp_path / "run", progress=False)
    audit(tmp_path / "run", "last", tmp_path / "audit.parquet")
    table = AuditTable.read(tmp_path / "audit.parquet")
    assert sum(key.startswith("unpaired-") for key in table.caption_key) == 40


def test_the_command_line_knows_files_of_vectors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = vectors_file(tmp_path)
    assert data_argument(str(path)).open().image_vectors.shape == (60, 6)
    check_data(str(path))
    said = capsys.readouterr().out
    assert "60 samples" in said
    assert "every vector is finite; nothing was skipped" in said


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["model={kind='small'}"],
            "model.kind: spiked train carries vectors, and a model of kind 'small' takes pictures",
        ),
        (["model.image_dim=12"], "model.image_dim: the vectors of spiked train have 40 dimensions, not 12"),
        (["model={kind='heads', text_feature_dim=384}"], "model.text_feature_dim: .* have 39 dimensions, not 384"),
        (["data.source={kind='embedded', split='concept'}"], "model.kind: a plain encoder takes vectors"),
        (["teacher={kind='cached'}", 'objective={kind="mimic"}'], "teacher.kind: there is no picture"),
        (
            [*EXTERNAL, "episodes.external={kind='text'}"],
            "episodes.external: a teacher of kind 'text' reads captions, and spiked train carries vectors",
        ),
        (
            [*EXTERNAL, "episodes.external={kind='image'}"],
            "episodes.external: a teacher of kind 'image' sees pictures, and spiked train carries vectors",
        ),
    ],
)
def test_what_does_not_fit_is_one_line_before_anything_is_trained(settings: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build(recipes.load("spiked-paired", settings))
    assert "\n" not in str(caught.value)


PICTURES = "{kind='embedded', split='concept'}"
OTHER = "{kind='spiked', split='unpaired', num_samples=80, image_dim=41, text_dim=38, rank=3}"
WIDE = "{kind='spiked', split='unpaired', num_samples=80, image_dim=41}"
ALIKE = "{kind='spiked', split='unpaired', num_samples=80}"
FOREIGN = ["data.noise.fraction=0.5", "data.noise.partners=foreign"]
TOWERS = [f"data.source={PICTURES}", "model={kind='small'}", "evaluation.tasks=[]", "train.num_workers=0"]


def unpaired(images: str, texts: str) -> str:
    return f"unpaired={{images={images}, texts={texts}, batch_size=20}}"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([unpaired(PICTURES, ALIKE)], "unpaired.images: embedded concept carries pictures, .* spiked train vectors"),
        ([unpaired(ALIKE, PICTURES)], "unpaired.texts: embedded concept carries pictures, .* spiked train vectors"),
        ([unpaired(OTHER, ALIKE)], "unpaired.images: the image vectors of .* have 41 dimensions, .* train 40"),
        ([unpaired(ALIKE, OTHER)], "unpaired.texts: the text vectors of .* have 38 dimensions, .* train 39"),
        ([*FOREIGN, f"data.noise.reserve={PICTURES}"], "data.noise.reserve: embedded concept carries pictures"),
        ([*FOREIGN, f"data.noise.reserve={OTHER}"], "data.noise.reserve: the text vectors .* have 38 dimensions"),
        ([*TOWERS, unpaired(ALIKE, PICTURES)], "unpaired.images: spiked unpaired carries vectors, .* concept pictures"),
        ([*TOWERS, unpaired(PICTURES, ALIKE)], "unpaired.texts: spiked unpaired carries vectors, .* concept pictures"),
        ([*TOWERS, *FOREIGN, f"data.noise.reserve={ALIKE}"], "data.noise.reserve: spiked unpaired carries vectors"),
    ],
)
def test_sources_that_carry_something_else_are_refused_before_training(settings: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build(recipes.load("spiked-paired", [*SMALL, *settings])).stream()
    assert "\n" not in str(caught.value)


def task(kind: str, **sources: str) -> str:
    named = "".join(f", {name}={source}" for name, source in sources.items())
    return f"evaluation.tasks=[{{kind='{kind}'{named}}}]"


def part(source: str) -> str:
    return f"{{kind='part', source={source}}}"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([task("zero-shot")], "kind: a zero-shot task asks in words"),
        ([task("matching", source=PICTURES)], "source: the model takes vectors, and embedded concept carries pictures"),
        ([task("knn", source=ALIKE)], "train_source: the model takes vectors, and embedded train carries pictures"),
        ([task("matching", source=WIDE)], "source: the image vectors of spiked unpaired have 41 dimensions, .* 40"),
        ([task("matching", source=part(OTHER))], "source: the image vectors of .* have 41 dimensions"),
        ([task("matching", source=part("{kind='vectors', path='no.npz'}"))], "source.source.path: there is no file"),
        ([*TOWERS, task("matching", source=ALIKE)], "source: the model takes pictures, .* unpaired carries vectors"),
        ([*TOWERS, task("matching", source=part(ALIKE))], "source: the model takes pictures, .* carries vectors"),
        (
            [*TOWERS, "model={kind='heads', image_feature_dim=40, text_feature_dim=7}", task("matching", source=ALIKE)],
            "source: the text vectors of spiked unpaired have 39 dimensions, the model takes 7",
        ),
    ],
)
def test_tasks_that_the_model_cannot_do_are_found_before_anything_is_trained(
    tmp_path: Path, settings: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Built, "stream", lambda self, ledger=None: pytest.fail("features would be computed here"))
    with pytest.raises(UserError, match=rf"evaluation\.tasks\.0\.{message}") as caught:
        train(recipes.load("spiked-paired", [*SMALL, *settings]), tmp_path / "run", progress=False)
    assert "\n" not in str(caught.value)


def test_only_texts_are_taken_of_unpaired_texts_and_of_a_reserve() -> None:
    both = [*SMALL, unpaired(ALIKE, WIDE), *FOREIGN, f"data.noise.reserve={WIDE}"]
    stream = build(recipes.load("spiked-paired", both)).stream()
    (loaded,) = stream.batches(stream.paired_steps, stream.paired_steps + 1)
    assert loaded.batch.image.shape == (20, 40)


def test_a_model_without_data_needs_its_dimensions() -> None:
    with pytest.raises(UserError, match=r"model\.image_dim: no data to take the dimension from"):
        build_model(recipes.load("spiked-paired"))


def test_an_embedder_answers_for_the_vectors_of_sources_it_met() -> None:
    recipe = recipes.load("spiked-paired", SMALL)
    built = build(recipe)
    other = recipe.evaluation.tasks[0].source.open()
    embedder = Embedder(built.model, FeatureCache())
    name = other.captions(3)[0]
    with pytest.raises(UserError, match="the model takes vectors, and 'text test-3"):
        embedder.texts([name])
    embedder.meet(other)
    with torch.no_grad():
        torch.testing.assert_close(embedder.texts([name])[0], built.model.embed_text(other.text_vectors[3:4])[0])
    whole = embed_source(built.model, other)
    torch.testing.assert_close(whole.text[whole.rows([name])], embedder.texts([name]))


def test_vectors_of_other_dimensions_are_refused() -> None:
    model = ContrastiveModel(Plain(image_dim=40, text_dim=7).build(), Sphere())
    source = recipes.load("spiked-paired", SMALL).data.source.open()
    with pytest.raises(UserError, match=r"model\.text_dim: the features have 39 dimensions, the model takes 7"):
        embed_source(model, source)
