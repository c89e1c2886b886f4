"""The rows of the yardstick: what each method trains, and what all of them have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from troth import recipe as recipes
from troth.bench.data import pairs_source
from troth.bench.settings import Place, Setting
from troth.data import Plan
from troth.errors import UserError
from troth.recipe import EvaluationConfig, Recipe

Regime = Literal["heads", "small"]
REGIMES: tuple[Regime, ...] = ("heads", "small")

#: What the small towers are cut to, so that a run takes minutes on one core.
SMALL = (
    "model.vision_layers=4",
    "model.text_layers=2",
    "model.context_length=16",
    "train.epochs=6",
    "train.evaluate_every_epochs=6",
    "train.num_workers=0",
)

#: The row that every other is measured against.
PLAIN = "InfoNCE"


@dataclass(frozen=True)
class Method:
    """A row.

    Attributes:
        name: of the row.
        heads: the recipe on frozen features, by its shipped name; None: the row has none.
        small: that of small towers, likewise.
        settings: what is changed in either recipe.
        small_settings: what is changed for small towers only, chosen on noisy pairs where the recipe hardly learns.
        data: the pairs as ``given``, or only the ``right`` ones, which no method could know: an oracle.
        noise: the only settings it is run on; empty: all.
    """

    name: str
    heads: str | None
    small: str | None = None
    settings: tuple[str, ...] = ()
    small_settings: tuple[str, ...] = field(default=(), kw_only=True)
    data: Literal["given", "right"] = "given"
    noise: tuple[str, ...] = ()

    @property
    def slug(self) -> str:
        """The name as a folder's."""
        return "-".join("".join(letter if letter.isalnum() else " " for letter in self.name.lower()).split())

    def recipe_name(self, regime: Regime) -> str | None:
        """Return the recipe of a regime; None if the row has none or it is not shipped."""
        name = self.heads if regime == "heads" else self.small
        return name if name in recipes.shipped() else None

    def runs_on(self, setting: Setting) -> bool:
        """Say whether the row is run there, and more than a repetition: all pairs of a clean setting are right."""
        return (self.data == "given" or setting.percent > 0) and (not self.noise or setting.name in self.noise)


_INFONCE_BY_POSTERIOR = '{kind="reweighted", objective={kind="infonce"}, by={kind="clean_posterior"}}'

#: Where the robust recipes are taken apart.
ABLATION_NOISE = ("uniform-40", "same-category-40")


def _ablation(name: str, *settings: str, heads: bool = True, small: bool = True) -> Method:
    """Return a row of the robust recipes' ablation."""
    recipe_names = ("robust" if heads else None, "robust-small" if small else None)
    return Method(f"robust, {name}", *recipe_names, settings, noise=ABLATION_NOISE)


METHODS = (
    Method(PLAIN, "heads-infonce", "small-infonce"),
    Method("GCE", "heads-generalized-ce", "small-infonce", ("objective.kind=generalized_ce",)),
    Method(
        "clean posterior",
        "heads-infonce",
        "small-infonce",
        (f"objective={_INFONCE_BY_POSTERIOR}",),
    ),
    Method("robust", "robust", "robust-small"),
    Method("oracle: InfoNCE on the right pairs", "heads-infonce", "small-infonce", data="right"),
    Method("oracle: robust objective on the right pairs", "robust", "robust-small", data="right"),
    Method(
        "SigLIP",
        "heads-sigmoid",
        "small-infonce",
        ("objective.kind=sigmoid", "scale.init=10.0", "scale.bias_init=-10.0"),
    ),
    Method("noise mixture", "heads-infonce", "small-infonce", ("objective.kind=noise_mixture",)),
    Method("soft targets", "heads-infonce", "small-infonce", ("objective.kind=soft_targets",)),
    Method("self distillation", "heads-infonce", "small-infonce", ("objective.kind=self_distillation",)),
    Method("global InfoNCE", "heads-infonce", "small-infonce", ("objective.kind=global_infonce",)),
    Method("DeCL", "heads-infonce", "small-infonce", ("objective.kind=decl",), small_settings=("objective.keep=0.2",)),
    Method(
        "Gamma weights",
        "heads-gamma-weights",
        "small-infonce",
        ("objective.kind=gamma_weights", "objective.similarity=cosine"),
    ),
    Method("SaCo", "heads-saco", "small-saco"),
    Method("SaCo + mimic", "heads-saco-mimic", "small-saco-mimic"),
    Method("ProtoCLIP", "heads-protoclip", "small-protoclip"),
    Method("GCE + SaCo + mimic", "heads-saco-mimic", "small-saco-mimic", ("objective.terms.0.1.kind=generalized_ce",)),
    Method(
        "clean posterior + SaCo + mimic",
        "heads-saco-mimic",
        "small-saco-mimic",
        (f"objective.terms.0.1={_INFONCE_BY_POSTERIOR}",),
    ),
    _ablation("no weights", 'objective.terms.0.1={kind="infonce"}', "judge.draw_wrong=1.0"),
    _ablation("no drawing", "judge.draw_wrong=1.0", heads=False),
    _ablation("no distillation", "objective.terms.1.0=0.0"),
    _ablation("no feature distillation", "objective.terms.2.0=0.0", heads=False),
    _ablation("no affinities", "objective.terms.3.0=0.0", "objective.terms.4.0=0.0", heads=False),
    _ablation("no words", "judge.words=false"),
    _ablation("no stages", "judge.stages=false"),
    _ablation("no like captions", "judge.procedure.cluster_size=0"),
    # Without the map there is nothing that the usual learning rate would undo.
    _ablation("no map", "model.skip=none", "train.optimizer.learning_rate=1e-3", small=False),
    _ablation("map alone", "train.optimizer.learning_rate=1e-9", small=False),
)

#: The rows of ``--quick``.
QUICK = METHODS[:6]


def method_named(name: str) -> Method:
    """Return the row of a name, upper and lower case alike.

    Raises:
        UserError: if there is none.
    """
    for method in METHODS:
        if method.name.lower() == name.lower():
            return method
    raise UserError("no such method", where=name, remedy=f"one of: {', '.join(method.name for method in METHODS)}")


def regimes_named(name: str | None) -> tuple[Regime, ...]:
    """Return the regime of a name, or all for None. Raises UserError for another name."""
    found = tuple(regime for regime in REGIMES if name in (None, regime))
    if not found:
        raise UserError("no such regime", where=f"--regime {name}", remedy=f"one of: {', '.join(REGIMES)}")
    return found


def base_recipe(method: Method, regime: Regime, seed: int, settings: Sequence[str] = ()) -> Recipe:
    """Return a method's recipe with a seed, without tasks and on the embedded pairs still.

    For small towers it is cut, and has the settings that the row has for them alone.

    Raises:
        UserError: if the row has no recipe in this regime, or a setting does not fit it.
    """
    name = method.recipe_name(regime)
    if name is None:
        raise UserError(f"{method.name} has no recipe for {regime}", where="--regime", remedy="choose another method")
    small = (*method.small_settings, *SMALL) if regime == "small" else ()
    common = (f"seed={seed}", "train.tensorboard=false", "train.num_workers=0", "data.noise={}")
    loaded = recipes.load(name, [*method.settings, *small, *common, *settings])
    return replace(loaded, evaluation=EvaluationConfig(tasks=()))


def plain_steps(regime: Regime, num_pairs: int) -> int:
    """Return how many steps plain InfoNCE makes on so many pairs, which is what every row makes."""
    return _steps(base_recipe(METHODS[0], regime, 0), num_pairs)


def run_recipe(method: Method, regime: Regime, place: Place) -> Recipe:
    """Return the recipe of one run on the data of ``place``, with the steps of plain InfoNCE on the given pairs.

    A method whose epochs are shorter, such as an oracle's on fewer pairs, has more of them, and the last is cut.
    """
    data = pairs_source(place.pairs if method.data == "given" else place.right)
    steps = plain_steps(regime, len(pairs_source(place.pairs).open()))
    recipe = base_recipe(method, regime, place.seed)
    num_pairs = len(data.open())
    while _steps(recipe, num_pairs) < steps:
        recipe = replace(recipe, train=replace(recipe.train, epochs=recipe.train.epochs + 1))
    train = replace(recipe.train, max_steps=steps, evaluate_every_epochs=recipe.train.epochs)
    return replace(recipe, data=replace(recipe.data, source=data), train=train)


def _steps(recipe: Recipe, num_pairs: int) -> int:
    size = recipe.train.batch_size
    if recipe.episodes is not None:
        return recipe.episodes.plan(num_pairs, size, recipe.seed).total_steps(recipe.train.epochs)
    return Plan(num_pairs, size, recipe.seed).total_steps(recipe.train.epochs)
