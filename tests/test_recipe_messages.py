"""Everything a user can get wrong in a recipe: one line that names the field and says what would be right."""

from pathlib import Path

import pytest

from troth import recipe as recipes
from troth.data import EmbeddedSource, FolderSource
from troth.encoders import OpenClip, Small
from troth.errors import UserError
from troth.objectives import CleanPosterior, GeneralizedCE, InfoNCE, Reweighted, Sigmoid, Sum
from troth.run import build

#: (settings on top of heads-generalized-ce, what the one line must contain)
MISTAKES = [
    # a key that does not exist, at every depth
    (["foo=1"], ["foo: unknown key", "known here: description, seed, data"]),
    (["train.epoch=3"], ["train.epoch: unknown key", "did you mean 'epochs'?"]),
    (["train.optimizer.learning_rat=1"], ["train.optimizer.learning_rat", "did you mean 'learning_rate'?"]),
    (["train.schedule.warm=1"], ["train.schedule.warm", "known here: shape, warmup_fraction"]),
    (["data.sauce=1"], ["data.sauce", "did you mean 'source'?"]),
    (["data.source.path='x'"], ["data.source.path", "known here: kind, split"]),
    (["data.noise.fractoin=0.1"], ["data.noise.fractoin", "did you mean 'fraction'?"]),
    (["model.embed=1"], ["model.embed", "did you mean 'embed_dim'?"]),
    (["geometry.kind=sphere", "geometry.radius=1"], ["geometry.radius", "known here: kind"]),
    (["scale.temperature=0.07"], ["scale.temperature", "known here: init, cap, learnable, bias_init"]),
    (["objective.p=0.5"], ["objective.p", "known here: kind, q"]),
    (['evaluation.tasks=[{kind="zero-shot", nme="x"}]'], ["evaluation.tasks.0.nme", "did you mean 'name'?"]),
    (
        ['evaluation.tasks=[{kind="retrieval", source={kind="folder", pat="x"}}]'],
        ["evaluation.tasks.0.source.pat", "did you mean 'path'?"],
    ),
    # a kind that does not exist, or is missing
    (["objective.kind=infonec"], ["objective: unknown kind 'infonec'", "'infonce', 'sigmoid', 'generalized_ce'"]),
    (["model.kind=resnet"], ["model: unknown kind 'resnet'", "'open_clip'"]),
    (["data.source.kind=zip"], ["data.source: unknown kind 'zip'", "'folder'", "'webdataset'"]),
    (["geometry.kind=torus"], ["geometry", "'sphere'"]),
    (['evaluation.tasks=[{name="x"}]'], ["evaluation.tasks.0: the table has no 'kind'"]),
    (["objective={}"], ["objective: the table has no 'kind'", 'add kind = "..."']),
    # a wrong type
    (["seed=x"], ["seed: input should be a valid integer", "not 'x'"]),
    (["train.epochs=2.5"], ["train.epochs", "integer", "not 2.5"]),
    (["train.tensorboard=maybe"], ["train.tensorboard", "boolean", "not 'maybe'"]),
    (["model=3"], ["model: must be a table", "not 3"]),
    (["train=3"], ["train: must be a table", "not 3"]),
    (["data.source=3"], ["data.source: must be a table"]),
    (["evaluation.tasks=3"], ["evaluation.tasks: must be a list", "not 3"]),
    (["train.optimizer.betas=[0.9]"], ["train.optimizer.betas.1: a value is missing here"]),
    # a value that cannot be
    (["seed=-1"], ["seed", "greater than or equal to 0", "not -1"]),
    (["train.epochs=0"], ["train.epochs", "greater than 0", "not 0"]),
    (["train.batch_size=1"], ["train.batch_size", "greater than 1", "not 1"]),
    (["train.precision=float8"], ["train.precision", "'auto'", "'bfloat16'", "not 'float8'"]),
    (["train.optimizer.learning_rate=-1e-3"], ["train.optimizer.learning_rate", "greater than 0"]),
    (["train.optimizer.betas=[0.9, 1.0]"], ["train.optimizer.betas.1", "less than 1"]),
    (["train.optimizer.gradient_clip=0"], ["train.optimizer.gradient_clip", "greater than 0"]),
    (["train.schedule.warmup_fraction=2"], ["train.schedule.warmup_fraction", "less than or equal to 1"]),
    (["train.schedule.shape=linear"], ["train.schedule.shape", "'cosine' or 'constant'"]),
    (["objective.q=0"], ["objective.q", "greater than 0"]),
    (["objective.q=1.5"], ["objective.q", "less than or equal to 1", "not 1.5"]),
    (["scale.init=0.07"], ["scale", "at least 1", "multiplier 1 / temperature"]),
    (["scale.init=200"], ["scale", "init (200) must not exceed cap (100)"]),
    (["scale.cap=-5"], ["scale.cap", "greater than 0"]),
    (["data.noise.fraction=1.2"], ["data.noise.fraction", "less than or equal to 1", "not 1.2"]),
    (["data.noise.partners=any"], ["data.noise.partners", "'uniform', 'same-category' or 'foreign'"]),
    (["data.noise.mode=epoch"], ["data.noise.mode", "'static' or 'batch'"]),
    (["data.augmentation=mixup"], ["data.augmentation: no such augmentation", "simclr, protoclip", "not 'mixup'"]),
    (["data.augmentation=3"], ["data.augmentation: must be a table", "not 3"]),
    (["data.augmentation.crop_size=1"], ["data.augmentation.crop_size", "did you mean 'crop_scale'?"]),
    (["data.augmentation.crop_scale=[1.0, 0.5]"], ["data.augmentation.crop_scale", "the smaller number comes first"]),
    (["data.augmentation.color_jitter=[1, 1, 1, 0.6]"], ["data.augmentation.color_jitter.3", "0.5, not 0.6"]),
    (["data.augmentation.blur_kernel=8"], ["data.augmentation.blur_kernel", "odd number, not 8"]),
    (["data.source.split=test"], ["data.source.split", "'train', 'style-shift', 'retrieval' or 'concept'"]),
    (["model.dropout=1.0"], ["model.dropout", "less than 1"]),
    (['evaluation.tasks=[{kind="retrieval", name="a/b"}]'], ["evaluation.tasks.0.name", "not 'a/b'"]),
    (['evaluation.tasks=[{kind="retrieval", k=[0]}]'], ["evaluation.tasks.0.k.0", "greater than 0"]),
    (["evaluation.best=style-shift/top2"], ["evaluation", "best names no metric", "did you mean 'style-shift/top5'?"]),
    (["evaluation={tasks=[], best='x/top1'}"], ["evaluation", "best names no metric", "there are no tasks"]),
    (
        ['evaluation.tasks=[{kind="retrieval"}, {kind="retrieval"}]'],
        ["evaluation", "two tasks are called 'retrieval'", "a name of its own"],
    ),
    (["evaluation.best=retrieval/image_to_text/median_rank"], ["best names no metric"]),
    (['evaluation.tasks=[{kind="retrieval", k=[]}]'], ["evaluation.tasks.0.k", "at least 1 item"]),
    (['evaluation.tasks=[{kind="zero-shot", templates=[]}]'], ["evaluation.tasks.0.templates", "at least 1 item"]),
    (['evaluation.tasks=[{kind="zero-shot", templates=["x"]}]'], ["evaluation.tasks.0.templates.0", "not 'x'"]),
    (["seed=99999999999999999999999"], ["seed", "less than"]),
    # inside objectives that are made of objectives
    (["objective.kind=sum"], ["objective.terms: a value is missing here"]),
    (['objective={kind="sum", terms=[]}'], ["objective.terms: list should have at least 1 item"]),
    (['objective={kind="sum", terms=[{kind="infonce"}]}'], ["objective.terms.0: must be a list"]),
    (['objective={kind="sum", terms=[[1.0]]}'], ["objective.terms.0.1: a value is missing here"]),
    (['objective={kind="sum", terms=[[1.0, "infonce"]]}'], ["objective.terms.0.1: must be a table, not 'infonce'"]),
    (['objective={kind="sum", terms=[["x", {kind="infonce"}]]}'], ["objective.terms.0.0", "valid number", "not 'x'"]),
    (['objective={kind="sum", terms=[[nan, {kind="infonce"}]]}'], ["objective.terms.0.0", "a finite number"]),
    (
        ['objective={kind="sum", terms=[[1.0, {kind="infonce"}], [1, {kind="infonec"}]]}'],
        ["objective.terms.1.1: unknown kind 'infonec'", "'sum'"],
    ),
    (
        ['objective={kind="sum", terms=[[1.0, {kind="sum", terms=[[2, {kind="generalized_ce", Q=0.5}]]}]]}'],
        ["objective.terms.0.1.terms.0.1.Q: unknown key", "known here: kind, q"],
    ),
    (["objective={kind='reweighted', by={kind='given'}}"], ["objective.objective: a value is missing here"]),
    (
        ["objective={kind='reweighted', objective={kind='generalized_ce', q=2}, by={kind='given'}}"],
        ["objective.objective.q", "less than or equal to 1", "not 2"],
    ),
    (
        ["objective={kind='reweighted', objective={kind='infonce'}, by={kind='infonce'}}"],
        ["objective.by: unknown kind 'infonce'", "'clean_posterior', 'given'"],
    ),
    (
        ["objective={kind='reweighted', objective={kind='infonce'}, by={kind='clean_posterior', kep=0.5}}"],
        ["objective.by.kep: unknown key", "did you mean 'keep'?"],
    ),
    (
        ['objective={kind="sum", terms=[[1.0, {kind="infonce"}]]}', "objective.terms.1.0=2"],
        ["--set objective.terms.1.0=2: '1' is no place in a list of 1", "a number from 0 to 0"],
    ),
    (
        ['objective={kind="sum", terms=[[1.0, {kind="infonce"}]]}', "objective.terms.0.x=2"],
        ["'x' is no place in a list of 2"],
    ),
    # episodes
    (["episodes={sise=4096}"], ["episodes.sise", "did you mean 'size'?"]),
    (["episodes={size=1}"], ["episodes.size", "greater than 1"]),
    (["episodes={size=10}"], ["episodes", "images_per_prototype (10) must be at most half of size (10)"]),
    (["episodes={warmup_episodes=-1}"], ["episodes.warmup_episodes", "greater than or equal to 0"]),
    (["episodes={lock_image_from=0}"], ["episodes.lock_image_from", "greater than 0"]),
    (
        ["episodes={projection={scale_init=200.0}}"],
        ["episodes.projection", "scale_init (200) must not exceed scale_cap"],
    ),
    (["episodes={projection={scale_cap=0.5}}"], ["episodes.projection.scale_cap", "greater than or equal to 1"]),
    (["episodes={kmeans={iteration=3}}"], ["episodes.kmeans.iteration", "did you mean 'iterations'?"]),
    (["objective={kind='prototypes', target_temperature=0}"], ["objective.target_temperature", "greater than 0"]),
    # a setting that is none
    (["train.epochs"], ["--set train.epochs: not a setting", "field.field=value"]),
    (["=3"], ["--set =3: not a setting"]),
    (["seed.x=3"], ["--set seed.x=3: 'seed' is a value, not a table"]),
]


@pytest.mark.parametrize(("settings", "parts"), MISTAKES, ids=lambda value: value[0][:60])
def test_a_mistake_is_one_line_with_field_and_remedy(settings: list[str], parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        recipes.load("heads-generalized-ce", ["seed=0", *settings])
    line = str(caught.value)
    assert "\n" not in line
    for part in parts:
        assert part in line, line


#: Mistakes that only building can find: files, names and sizes. (recipe, settings, what the line must contain)
BUILDING = [
    (
        "small-infonce",
        ['data.source={kind="folder", path="no/such"}'],
        ["data.source.path: there is no folder 'no/such'"],
    ),
    ("small-infonce", ['data.source={kind="table", path="no.csv"}'], ["data.source.path: there is no table 'no.csv'"]),
    ("small-infonce", ['data.source={kind="webdataset", urls="no-{0..3}.tar"}'], ["data.source.urls", "no-0.tar"]),
    ("small-infonce", ["data.noise={fraction=0.2, partners='foreign'}"], ["data.noise.reserve", "name a source"]),
    ("small-infonce", ["data.noise={fraction=0.001, mode='batch'}"], ["data.noise.fraction", "raise it"]),
    ("heads-infonce", ["model.text_encoder=no-such-encoder"], ["model.text_encoder", "no-such-encoder"]),
    ("heads-infonce", ["model.image_encoder=vgg"], ["model.image_encoder", "efficientnet-lite0"]),
    ("heads-infonce", ["geometry={kind='oblique'}"], ["geometry.num_spheres: 16 spheres of 32", "num_spheres = 8"]),
    ("heads-infonce", ["geometry={kind='filip', sub_dim=100}"], ["geometry.sub_dim: features of 256 dimensions"]),
    ("open-clip", ["data.source={kind='embedded'}", "model.name=ViT-B-33"], ["model.name", "ViT-B-32"]),
    ("open-clip", ["data.source={kind='embedded'}", "model.pretrained=lion"], ["model.pretrained", "laion"]),
    (
        "heads-infonce",
        ["objective={kind='sum', terms=[[1.0, {kind='prototypes'}]]}"],
        ["episodes: the objective learns from the clusters of episodes", "add an [episodes] section"],
    ),
    (
        "heads-protoclip",
        ["objective.kind=external_prototypes"],
        ["episodes.external: the objective learns from an external teacher's clusters", "external = { kind ="],
    ),
    (
        "heads-protoclip",
        ["episodes.external={kind='text'}"],
        ["episodes.external: no part of the objective learns from an external teacher", "external_prototypes"],
    ),
    (
        "small-infonce",
        ["episodes={size=64}", "train.batch_size=65"],
        ["episodes.size: an episode of 64 samples has no whole batch of 65", "a smaller train.batch_size"],
    ),
    (
        "small-infonce",
        ["episodes={size=1000000, with_replacement=false}"],
        ["episodes.size: an episode of 1000000 samples from a set of", "draw with replacement"],
    ),
    ("small-infonce", ["train.batch_size=100000"], ["batch_size", "train.batch_size: a batch of 100000"]),
]


@pytest.mark.parametrize(("name", "settings", "parts"), BUILDING, ids=lambda value: str(value)[:60])
def test_what_only_building_can_find_is_one_line_too(name: str, settings: list[str], parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        build(recipes.load(name, settings)).stream()
    line = str(caught.value)
    assert "\n" not in line
    for part in parts:
        assert part in line, line


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"[train\nepochs = 3\n", "not valid TOML"),
        (b"seed = 1\nseed = 2\n", "not valid TOML"),
        (b'description = "\xff"\n', "not UTF-8"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, content: bytes, part: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=part) as caught:
        recipes.load(path)
    assert "mine.toml" in str(caught.value)


def test_an_unknown_recipe_suggests_the_closest_and_lists_all() -> None:
    with pytest.raises(UserError, match="did you mean 'heads-infonce'") as caught:
        recipes.load("head-infonce")
    assert all(name in str(caught.value) for name in recipes.shipped())


@pytest.mark.parametrize("name", recipes.shipped())
def test_a_shipped_recipe_is_valid_and_survives_being_written(name: str, tmp_path: Path) -> None:
    recipe = recipes.load(name)
    assert recipe.description
    recipes.save(recipe, tmp_path / "resolved.toml")
    assert recipes.load(tmp_path / "resolved.toml") == recipe
    assert sorted(path.name for path in tmp_path.iterdir()) == ["resolved.toml"]


def test_none_can_be_said() -> None:
    recipe = recipes.load("heads-infonce", ["scale.cap=none", "train.optimizer.gradient_clip='none'"])
    assert recipe.scale.cap is None
    assert recipe.train.optimizer.gradient_clip is None
    assert recipes.from_dict(recipes.to_dict(recipe)) == recipe


def test_changing_a_kind_drops_the_fields_of_the_old_one() -> None:
    recipe = recipes.load("heads-generalized-ce", ["objective.kind=infonce", "model.kind=small"])
    assert recipe.objective == InfoNCE()
    assert isinstance(recipe.model, Small)
    kept = recipes.load("heads-generalized-ce", ["objective.kind=generalized_ce"])
    assert kept.objective == GeneralizedCE(q=0.5)


def test_settings_are_toml_and_bare_words_are_strings() -> None:
    recipe = recipes.load(
        "open-clip",
        ['data.source={kind="folder", path="a b"}', "model.name=RN50", "objective.kind=sigmoid", "seed=7"],
    )
    assert recipe.data.source == FolderSource(path="a b")
    assert isinstance(recipe.model, OpenClip)
    assert recipe.model.name == "RN50"
    assert recipe.objective == Sigmoid()
    assert recipe.seed == 7
    assert recipes.load("heads-infonce").data.source == EmbeddedSource()


def test_the_order_of_settings_does_not_matter() -> None:
    settings = ["objective.q=0.7", "objective.kind=generalized_ce"]
    for order in (settings, settings[::-1]):
        assert recipes.load("heads-infonce", order).objective == GeneralizedCE(q=0.7)


NESTED = """
[objective]
kind = "sum"
terms = [
    [1.0, { kind = "infonce" }],
    [0.5, { kind = "reweighted", objective = { kind = "generalized_ce", q = 0.7 }, by = { kind = "clean_posterior" } }],
]
"""


def test_objectives_made_of_objectives_survive_being_written(tmp_path: Path) -> None:
    path = tmp_path / "nested.toml"
    path.write_text(NESTED)
    recipe = recipes.load(path)
    weighted = Reweighted(GeneralizedCE(q=0.7), by=CleanPosterior())
    assert recipe.objective == Sum(((1.0, InfoNCE()), (0.5, weighted)))
    recipes.save(recipe, tmp_path / "resolved.toml")
    assert recipes.load(tmp_path / "resolved.toml") == recipe


def test_settings_reach_into_lists(tmp_path: Path) -> None:
    path = tmp_path / "nested.toml"
    path.write_text(NESTED)
    settings = ["objective.terms.1.0=2", "objective.terms.1.1.by.keep=0.25", "objective.terms.0.1.kind=sigmoid"]
    weighted = Reweighted(GeneralizedCE(q=0.7), by=CleanPosterior(keep=0.25))
    for order in (settings, settings[::-1]):
        assert recipes.load(path, order).objective == Sum(((1.0, Sigmoid()), (2.0, weighted)))


def test_outer_kinds_come_before_inner_ones() -> None:
    settings = [
        "objective.objective.q=0.3",
        "objective.objective.kind=generalized_ce",
        "objective.by.kind=clean_posterior",
        "objective.kind=reweighted",
    ]
    expected = Reweighted(GeneralizedCE(q=0.3), by=CleanPosterior())
    for order in (settings, settings[::-1]):
        assert recipes.load("heads-generalized-ce", order).objective == expected
