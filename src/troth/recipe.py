"""One frozen tree that says a whole run: TOML in, resolved TOML out.

A recipe is validated before anything is built: an unknown key, a wrong type or an impossible value is one line that
names the field and says what would be right. What a run used is written back, resolved, beside its results; running
that file again is the same run.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, field, fields, is_dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import tomli_w
from pydantic import Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from troth.data import Augmentation, AugmentationConfig, EmbeddedSource, Noise, SourceConfig, atomic_path
from troth.encoders import Heads, ModelConfig, ScaleConfig, Towers
from troth.errors import UserError
from troth.evaluate.tasks import ConceptTask, RetrievalTask, TaskConfig, ZeroShotTask
from troth.geometry import GeometryConfig, Sphere
from troth.objectives import InfoNCE, ObjectiveConfig
from troth.train import EpisodesConfig, JudgeConfig, TeacherConfig, TrainConfig, UnpairedConfig
from troth.types import STRICT

#: How a recipe says None, for which TOML has no word: ``scale.cap = "none"``.
NONE = "none"


@dataclass(frozen=True, config=STRICT)
class DataConfig:
    """Which pairs to train on.

    Attributes:
        source: where the pairs come from.
        noise: which captions to make wrong on purpose, for experiments; none by default.
        augmentation: how training pictures of towers are changed at random: ``none`` (a crop of most of the picture),
            ``simclr``, ``protoclip``, or a table.
    """

    source: SourceConfig = field(default_factory=EmbeddedSource)
    noise: Noise = field(default_factory=Noise)
    augmentation: AugmentationConfig = field(default_factory=Augmentation)


@dataclass(frozen=True, config=STRICT)
class EvaluationConfig:
    """What to measure; ``train.evaluate_every_epochs`` says how often.

    Attributes:
        tasks: the tasks, each on data of its own; by default those of the embedded data set.
        best: the metric, as ``task/metric``, whose best checkpoint is kept; None keeps the last ones only.
    """

    tasks: tuple[TaskConfig, ...] = (
        ZeroShotTask(name="style-shift", source=EmbeddedSource(split="style-shift")),
        ConceptTask(name="concept", source=EmbeddedSource(split="concept")),
        RetrievalTask(name="retrieval", source=EmbeddedSource(split="retrieval")),
    )
    best: str | None = None

    @model_validator(mode="after")
    def _names_fit(self) -> EvaluationConfig:
        names = [task.name for task in self.tasks]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"two tasks are called {repeated[0]!r}: give each a name of its own")
        known = [f"{task.name}/{metric}" for task in self.tasks for metric in task.metric_names()]
        if self.best is not None and self.best not in known:
            close = difflib.get_close_matches(self.best, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"one of: {', '.join(known) or 'there are no tasks'}"
            raise ValueError(f"best names no metric of the tasks, {self.best!r}: {hint}")
        return self


@dataclass(frozen=True, config=STRICT)
class Recipe:
    """A whole run.

    Attributes:
        description: what the recipe is for, in a sentence.
        seed: every random draw of the run follows from it.
        data: which pairs.
        model: which towers.
        towers: how each of them learns, where it is not as the rest: learning rates, locks, adapters.
        start_from: the folder of another run whose weights this one begins with (its best checkpoint, the average if it
            has one), or ``FOLDER@STEP``; None for the weights that the model section says.
        geometry: where their embeddings live.
        scale: the multiplier of the similarities.
        objective: what is minimised.
        teacher: whose image features an objective copies; None, unless the objective needs one.
        judge: who says, by frozen features and words, which pairs are right; its weights and points go with the pairs.
            None: nobody does.
        episodes: how training is cut into episodes whose clusters an objective learns from; None: it is not.
        unpaired: images and captions without pairs, learned from after the pairs; None: there are none.
        train: epochs, batch, optimiser, learning rate, precision, checkpoints.
        evaluation: what is measured.
    """

    description: str = ""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=Heads)
    towers: Towers = field(default_factory=Towers)
    start_from: str | None = None
    geometry: GeometryConfig = field(default_factory=Sphere)
    scale: ScaleConfig = field(default_factory=ScaleConfig)
    objective: ObjectiveConfig = field(default_factory=InfoNCE)
    teacher: TeacherConfig | None = None
    judge: JudgeConfig | None = None
    episodes: EpisodesConfig | None = None
    unpaired: UnpairedConfig | None = None
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


@cache
def _adapter() -> TypeAdapter[Recipe]:
    return TypeAdapter(Recipe)


def shipped() -> dict[str, Path]:
    """Return the recipes that come with the package, by name."""
    folder = Path(str(resources.files("troth"))) / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def load(name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read, override and validate a recipe.

    Args:
        name: a TOML file, or the name of a shipped recipe.
        overrides: ``a.b=value`` settings, the value in TOML (a bare word is a string). Setting a ``kind`` to another
            one drops the fields that belonged to the old kind, setting the tasks drops the ``best`` of the old ones.
            A number is a place in a list, the first is 0: ``objective.terms.1.0=0.5``.

    Raises:
        UserError: one line with the file or field and the remedy.
    """
    return from_dict(_with_overrides(_read(name), overrides), where=str(name))


def from_dict(tree: Mapping[str, Any], *, where: str = "recipe") -> Recipe:
    """Validate a nested dictionary as a recipe.

    Raises:
        UserError: one line with the field and the remedy.
    """
    try:
        return _adapter().validate_python(_map_leaves(tree, lambda leaf: None if leaf == NONE else leaf))
    except ValidationError as error:
        raise _explain(error, tree, where) from None


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """Return the whole tree as nested dictionaries, every default written out, None as :data:`NONE`."""
    tree: dict[str, Any] = _map_leaves(
        _adapter().dump_python(recipe, mode="json"), lambda leaf: NONE if leaf is None else leaf
    )
    return tree


def to_toml(recipe: Recipe) -> str:
    """Return the resolved recipe as TOML; :func:`load` reads it back to an equal recipe."""
    return tomli_w.dumps(to_dict(recipe))


def save(recipe: Recipe, path: Path) -> None:
    """Write the resolved recipe, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(to_toml(recipe), encoding="utf-8")


def _map_leaves(node: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(node, Mapping):
        return {key: _map_leaves(value, change) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [_map_leaves(value, change) for value in node]
    return change(node)


def _read(name: str | Path) -> dict[str, Any]:
    path = Path(name)
    if not path.is_file():
        recipes = shipped()
        if str(name) not in recipes:
            close = difflib.get_close_matches(str(name), recipes, n=1)
            remedy = f"did you mean {close[0]!r}? " if close else ""
            raise UserError(
                "no such recipe", where=str(name), remedy=f"{remedy}give a .toml file, or one of: {', '.join(recipes)}"
            )
        path = recipes[str(name)]
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"not valid TOML: {error}", where=str(name)) from None
    except UnicodeDecodeError:
        raise UserError("not UTF-8 text", where=str(name), remedy="save the file as UTF-8") from None


def _with_overrides(tree: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    # What drops other fields comes first, the outer ones before the inner, so that the order given does not matter.
    for override in sorted(overrides, key=_precedence):
        name, separator, text = override.partition("=")
        steps = name.strip().split(".")
        if not separator or not all(steps):
            raise UserError(
                "not a setting",
                where=f"--set {override}",
                remedy="write it as field.field=value, such as train.epochs=3",
            )
        node: Any = tree
        for step in steps[:-1]:
            node = node[_item(node, step, override)] if isinstance(node, list) else node.setdefault(step, {})
            if not isinstance(node, (dict, list)):
                raise UserError(f"{step!r} is a value, not a table", where=f"--set {override}")
        value = _value(text.strip())
        if isinstance(node, list):
            node[_item(node, steps[-1], override)] = value
            continue
        if steps[-1] == "kind" and node.get("kind") != value:
            node.clear()
        if name.strip() == "evaluation.tasks":
            node.pop("best", None)
        node[steps[-1]] = value
    return tree


def _precedence(override: str) -> tuple[bool, int]:
    """Sort settings that drop fields of an old value first, and those by depth; leave the others in order."""
    name = override.partition("=")[0].strip()
    drops = name.endswith(".kind") or name == "evaluation.tasks"
    return not drops, name.count(".") if drops else 0


def _item(node: list[Any], step: str, override: str) -> int:
    if not step.isascii() or not step.isdigit() or int(step) >= len(node):
        raise UserError(
            f"{step!r} is no place in a list of {len(node)}",
            where=f"--set {override}",
            remedy=f"a number from 0 to {len(node) - 1}" if node else "the list is empty: set it whole",
        )
    return int(step)


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


#: Pydantic's words for Python's shapes, in TOML's.
_PLAINER = {
    "dataclass_type": "must be a table",
    "model_attributes_type": "must be a table",
    "tuple_type": "must be a list",
    "missing": "a value is missing here",
}


def _explain(error: ValidationError, tree: Mapping[str, Any], where: str) -> UserError:
    """Turn the first of pydantic's findings into one line: the field, what is wrong, what would be right."""
    finding = error.errors()[0]
    place = _place(finding["loc"], tree)
    dotted = ".".join(place)
    if finding["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        known = _known_fields(place[:-1], tree)
        close = difflib.get_close_matches(place[-1], known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(known)}"
        return UserError("unknown key", where=f"{where}: {dotted}", remedy=hint)
    if finding["type"] == "union_tag_invalid":
        expected = finding.get("ctx", {}).get("expected_tags", "")
        given = finding.get("ctx", {}).get("tag", "")
        return UserError(f"unknown kind {given!r}", where=f"{where}: {dotted}", remedy=f"one of: {expected}")
    if finding["type"] == "union_tag_not_found":
        remedy = f'add kind = "..." (on the command line --set {dotted}.kind=... beside its other settings)'
        return UserError("the table has no 'kind'", where=f"{where}: {dotted}", remedy=remedy)
    message = _PLAINER.get(finding["type"]) or finding["msg"].removeprefix("Value error, ").replace("Tuple ", "List ")
    message = message[0].lower() + message[1:]
    given = finding.get("input")
    shown = "" if isinstance(given, (Mapping, list, tuple)) or is_dataclass(given) else f", not {given!r}"
    return UserError(f"{message}{shown}", where=f"{where}: {dotted}")


def _place(location: tuple[int | str, ...], tree: Mapping[str, Any]) -> list[str]:
    """Drop from pydantic's location the names of union members, which are no part of the user's tree."""
    place: list[str] = []
    node: Any = tree
    for position, step in enumerate(location):
        last = position == len(location) - 1
        in_table = isinstance(node, Mapping) and step in node
        in_list = isinstance(node, (list, tuple)) and isinstance(step, int) and step < len(node)
        if in_table or in_list:
            node = node[step]
        elif not last or (isinstance(node, Mapping) and node.get("kind") == step):
            continue
        place.append(str(step))
    return place


def _known_fields(place: Sequence[str], tree: Mapping[str, Any]) -> list[str]:
    """Return the fields of the configuration class that stands at ``place`` of the user's tree."""
    annotation: Any = Recipe
    node: Any = tree
    for step in place:
        if isinstance(node, (list, tuple)):  # an item of a list: same annotation, whose classes are the items'
            node = node[int(step)]
            continue
        owner = _class_at(annotation, node)
        annotation = get_type_hints(owner, include_extras=True)[step]
        node = node[step]
    return [item.name for item in fields(_class_at(annotation, node))]


def _class_at(annotation: Any, node: Any) -> Any:
    """Return the dataclass of ``annotation`` that ``node`` is meant to be, going by its kind."""
    classes = _classes(annotation)
    kind = node.get("kind") if isinstance(node, Mapping) else None
    return next((owner for owner in classes if kind is not None and _kind(owner) == kind), classes[0])


def _classes(annotation: Any) -> list[type]:
    """Return the dataclasses in a (possibly annotated, optional, union or tuple) annotation."""
    if isinstance(annotation, type) and is_dataclass(annotation):
        return [annotation]
    return [found for argument in get_args(annotation) for found in _classes(argument)]


def _kind(owner: type) -> Any:
    item = next((item for item in fields(owner) if item.name == "kind"), None)
    return None if item is None or item.default is MISSING else item.default
