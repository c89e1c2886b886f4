"""Write the generated parts of docs/objectives.md: the table of objectives, and a section with the options of each.

    python -m tools.docs.objectives_table [--check]

Everything between the page's two markers is replaced by what the classes say: the table and the facts come from
``Objective.about``, the options from the dataclass fields and the "Attributes:" of the docstrings. ``--check`` writes
nothing and fails if the page is stale.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import re
import sys
from pathlib import Path
from typing import Any, get_args

from tools.docs.pages import GeneratedPage

from troth.objectives import ObjectiveConfig, WeightConfig
from troth.objectives.base import About

ROOT = Path(__file__).resolve().parents[2]


def markdown(text: str) -> str:
    """Return a piece of a docstring as Markdown on one line."""
    text = re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)(?:\(\))?`", r"`\1`", text)
    return re.sub(r"\s+", " ", text.replace("``", "`")).strip()


def cell(text: str) -> str:
    """Return text that may stand in a table."""
    return text.replace("|", r"\|")


def attributes(cls: type) -> dict[str, str]:
    """Return what the docstring says of each attribute.

    Raises:
        ValueError: if the class has fields and no "Attributes:".
    """
    _, found, after = inspect.cleandoc(cls.__doc__ or "").partition("\nAttributes:\n")
    if not found:
        if options(cls):
            raise ValueError(f"{cls.__name__} has fields and no 'Attributes:' in its docstring")
        return {}
    entries: dict[str, str] = {}
    name = ""
    for line in inspect.cleandoc(after).splitlines():
        start = re.match(r"(\w+): (.*)", line)
        if start:
            name = start[1]
        entries[name] = f"{entries.get(name, '')} {start[2] if start else line}"
    return {name: markdown(text) for name, text in entries.items()}


def options(cls: type) -> list[dataclasses.Field[Any]]:
    """Return the fields a user may set."""
    return [each for each in dataclasses.fields(cls) if each.name != "kind"]


def default(option: dataclasses.Field[Any]) -> str:
    """Return an option's default as TOML has it."""
    value = option.default
    if value is dataclasses.MISSING:
        return "required"
    shown = str(value).lower() if isinstance(value, bool) else f'"{value}"' if isinstance(value, str) else f"{value}"
    return f"`{shown}`"


def option_table(cls: type) -> list[str]:
    """Return the table of a class's options."""
    if not options(cls):
        return ["No options."]
    meanings = attributes(cls)
    rows = [f"| `{each.name}` | {cell(default(each))} | {cell(meanings[each.name])} |" for each in options(cls)]
    return ["| option | default | meaning |", "|---|---|---|", *rows]


def summary(cls: type) -> str:
    """Return the first paragraph of a class's docstring."""
    return markdown(inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0])


def formula(equation: str) -> str:
    """Return an equation up to the first comma or semicolon outside brackets: its remarks are left out."""
    depth = 0
    for place, (character, following) in enumerate(itertools.pairwise(equation)):
        depth += (character in "([<⟨") - (character in ")]>⟩")
        if depth == 0 and character in ",;" and following == " ":
            return equation[:place]
    return equation


def overview(classes: list[type]) -> list[str]:
    """Return one row for each objective."""
    rows = [
        f"| [`{kind(each)}`](#{kind(each)}) | {cell(f'`{formula(about(each).equation)}`')} | {cell(about(each).when)} |"
        for each in classes
    ]
    costs = [
        f"| [`{kind(each)}`](#{kind(each)}) | {cell(facts.inputs)} | {cell(facts.state)} | {cell(facts.cost)} | "
        f"{cell(facts.relation)} |"
        for each in classes
        for facts in (about(each),)
    ]
    return [
        "| objective | loss of pair i | when to use it |",
        "|---|---|---|",
        *rows,
        "",
        "What each needs beside embeddings and scale, remembers, and costs:",
        "",
        "| objective | inputs | state | cost | relation to others |",
        "|---|---|---|---|---|",
        *costs,
    ]


def section(cls: type) -> list[str]:
    """Return the section of one objective."""
    facts = about(cls)
    return [
        f"### {kind(cls)}",
        "",
        f"`troth.objectives.{cls.__name__}`. {summary(cls)}",
        "",
        f"- **Loss of pair i**: `{facts.equation}`",
        *(f"- **{name}**: {value}." for name, value in _facts(facts)),
        "",
        *option_table(cls),
    ]


def _facts(facts: About) -> list[tuple[str, str]]:
    return [
        ("Needs", facts.inputs),
        ("Remembers", facts.state),
        ("Cost", facts.cost),
        ("Relation", facts.relation),
        ("Source", facts.citation.removesuffix(".")),
    ]


def weight_section(cls: type) -> list[str]:
    """Return the section of one kind of weight."""
    return [f"### by = {kind(cls)}", "", f"`troth.objectives.{cls.__name__}`. {summary(cls)}", "", *option_table(cls)]


def about(cls: Any) -> About:
    """Return what an objective says of itself."""
    facts: About = cls.about
    return facts


def kind(cls: Any) -> str:
    """Return a class's name in recipes."""
    return str(cls.__dataclass_fields__["kind"].default)


def generated() -> str:
    """Return everything that belongs between the markers."""
    objectives = list(get_args(get_args(ObjectiveConfig)[0]))
    parts = ["\n".join(overview(objectives)), "## Each objective"]
    parts += ["\n".join(section(each)) for each in objectives]
    parts += ["## Weights of `reweighted`"]
    parts += ["\n".join(weight_section(each)) for each in get_args(get_args(WeightConfig)[0])]
    return "\n\n".join(parts)


PAGE = GeneratedPage(ROOT / "docs" / "objectives.md", "tools.docs.objectives_table", generated)

if __name__ == "__main__":
    sys.exit(PAGE.main(__doc__))
