"""The invariants of docs/architecture.md that no other test guards."""

import ast
import dataclasses
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from troth.geometry import GeometryConfig
from troth.objectives import ObjectiveConfig
from troth.recipe import Recipe

SOURCE = Path(__file__).resolve().parent.parent / "src" / "troth"
MODULES = sorted(SOURCE.rglob("*.py"))


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def test_only_distributed_imports_torch_distributed() -> None:
    users = {p.relative_to(SOURCE).as_posix() for p in MODULES if any("torch.distributed" in n for n in imported(p))}
    assert users == {"distributed.py"}


def test_no_objective_knows_of_ranks_tiles_devices_or_precision() -> None:
    forbidden = ("troth.distributed", "troth.geometry", "troth.encoders", "troth.data")
    for path in (SOURCE / "objectives").glob("*.py"):
        assert not [name for name in imported(path) if name.startswith(forbidden)], path.name
        text = path.read_text(encoding="utf-8")
        assert not [word for word in (".cuda", "autocast", "world_size", "tile=") if word in text], path.name


def test_the_theory_imports_numpy_torch_and_errors_only() -> None:
    allowed = {"numpy", "torch", *sys.stdlib_module_names}
    for path in (SOURCE / "theory").glob("*.py"):
        names = {name for name in imported(path) if not name.startswith(("troth.errors", "troth.theory"))}
        assert {name.split(".")[0] for name in names} <= allowed, path.name


def config_classes() -> list[type]:
    """Return every dataclass that a recipe can hold, found from the annotations."""
    found: dict[type, None] = {}

    def visit(annotation: object) -> None:
        if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
            if annotation not in found:
                found[annotation] = None
                for hint in get_type_hints(annotation, include_extras=True).values():
                    visit(hint)
            return
        for argument in get_args(annotation):
            visit(argument)

    visit(Recipe)
    return list(found)


@pytest.mark.parametrize("cls", config_classes(), ids=lambda cls: cls.__name__)
def test_what_a_recipe_holds_is_frozen_and_documents_every_field(cls: type) -> None:
    assert cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
    for item in dataclasses.fields(cls):
        if item.name != "kind":
            assert f"{item.name}:" in (cls.__doc__ or ""), f"{cls.__name__}.{item.name} is not in the docstring"


def test_the_recipe_reaches_the_unions() -> None:
    names = {cls.__name__ for cls in config_classes()}
    assert {"InfoNCE", "Sigmoid", "GeneralizedCE", "Sphere", "Heads", "Small", "FolderSource", "Noise"} <= names


METHODS = [*get_args(get_args(ObjectiveConfig)[0]), *get_args(get_args(GeometryConfig)[0])]


@pytest.mark.parametrize("cls", METHODS, ids=lambda cls: cls.__name__)
def test_methods_cite_their_source(cls: type) -> None:
    assert "Source:" in (cls.__doc__ or "")
    assert not hasattr(cls, "about") or cls.about.citation


def test_every_module_is_about_one_idea() -> None:
    long = {path.relative_to(SOURCE).as_posix(): len(path.read_text().splitlines()) for path in MODULES}
    assert not {name: lines for name, lines in long.items() if lines > 400}
    assert not [name for name in long if name.endswith("utils.py")]
