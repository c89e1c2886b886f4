"""What the pages of docs/ show is so: their Python runs, their TOML is a recipe, their tables follow from the code."""

import importlib.util
import inspect
import itertools
import json
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Union, get_args

import pytest
from pydantic import Field, TypeAdapter, ValidationError
from tools.docs import objectives_table

from tests.objectives import test_conformance as conformance
from tests.objectives.instances import INSTANCES, Instance
from tests.references import REFERENCES
from troth import recipe as recipes
from troth.objectives import InfoNCE, ObjectiveConfig

DOCS = Path(__file__).resolve().parent.parent / "docs"
WORKED_EXAMPLE = DOCS / "adding-an-objective.md"

#: Every conformance test there is, now or later.
CONFORMANCE = [name for name in vars(conformance) if name.startswith("test_")]


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def numbered(language: str) -> list[Any]:
    """Every block of every page but the worked example's, which depend on each other."""
    pages = [path for path in sorted(DOCS.rglob("*.md")) if path != WORKED_EXAMPLE]
    found = [(path, number, code) for path in pages for number, code in enumerate(blocks(path, language), 1)]
    return [pytest.param(code, id=f"{path.name}-{number}") for path, number, code in found]


@pytest.mark.parametrize("code", numbered("python"))
def test_python_runs(code: str) -> None:
    exec(compile(code, "docs", "exec"), {"__name__": "docs"})


@pytest.mark.parametrize("code", numbered("toml"))
def test_toml_is_a_recipe(code: str) -> None:
    recipes.from_dict(tomllib.loads(code))


def test_there_is_something_to_run() -> None:
    assert len(blocks(DOCS / "objectives.md", "python")) >= 2
    assert len(blocks(DOCS / "objectives.md", "toml")) >= 2


def test_the_table_of_objectives_is_what_the_code_says() -> None:
    page = objectives_table.PAGE.path.read_text(encoding="utf-8")
    assert objectives_table.PAGE.renewed(page) == page, "run python -m tools.docs.objectives_table"


def test_a_changed_class_makes_the_page_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    page = objectives_table.PAGE.path.read_text(encoding="utf-8")
    monkeypatch.setattr(InfoNCE, "about", InfoNCE.about._replace(when="never"))
    assert objectives_table.PAGE.renewed(page) != page


@pytest.mark.parametrize(
    ("equation", "short"),
    [
        ("(1 − pᵢ^q) / q, both ways, halved; pᵢ = softmax", "(1 − pᵢ^q) / q"),
        ("1/N sum_j |<I_i, I_j> - <T_i, T_j>|", "1/N sum_j |<I_i, I_j> - <T_i, T_j>|"),
        ("log uᵢ with gradient dgᵢ/uᵢ; gᵢ = mean", "log uᵢ with gradient dgᵢ/uᵢ"),
    ],
)
def test_the_table_shows_the_formula_without_its_remarks(equation: str, short: str) -> None:
    assert objectives_table.formula(equation) == short


def test_docstrings_become_markdown() -> None:
    text = "as :class:`~troth.objectives.affinity.Affinity`,\n    but ``q``"
    assert objectives_table.markdown(text) == "as `Affinity`, but `q`"


def test_fields_without_an_explanation_are_refused() -> None:
    class Silent(InfoNCE):
        """Says nothing."""

    with pytest.raises(ValueError, match="no 'Attributes:'"):
        objectives_table.attributes(Silent)


# The worked example: its blocks begin with the file they belong to.


def example_blocks() -> dict[str, str]:
    """The worked example's Python by file."""
    found = {}
    for block in blocks(WORKED_EXAMPLE, "python"):
        first, _, rest = block.partition("\n")
        found[first.removeprefix("# ")] = rest
    return found


class Example:
    """The worked example, put where the page says."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[str], str]) -> None:
        parts = example_blocks()
        path = folder / "focal.py"
        path.write_text(change(parts.pop("src/troth/objectives/focal.py")), encoding="utf-8")
        specification = importlib.util.spec_from_file_location("troth.objectives.focal", path)
        assert specification is not None
        assert specification.loader is not None
        module = importlib.util.module_from_spec(specification)
        monkeypatch.setitem(sys.modules, module.__name__, module)  # pydantic looks annotations up there
        specification.loader.exec_module(module)
        self.cls = module.Focal
        member = parts.pop("src/troth/objectives/composition.py, in ObjectiveConfig").strip().removeprefix("| ")
        self.members = [*get_args(get_args(ObjectiveConfig)[0]), getattr(module, member)]
        monkeypatch.setattr(conformance, "MEMBERS", self.members)
        reference: dict[str, Any] = {}
        exec(compile(parts.pop("tests/references/contrastive.py"), "reference", "exec"), reference)
        monkeypatch.setitem(REFERENCES, "focal", reference["focal"])
        lines = parts.pop("tests/objectives/instances.py, in INSTANCES")
        self.instances: dict[str, Instance] = eval(f"{{{lines}}}", {"Instance": Instance, "Focal": self.cls})
        for name, instance in self.instances.items():
            monkeypatch.setitem(INSTANCES, name, instance)
        assert not parts, f"blocks that nothing runs: {list(parts)}"


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Example:
    return Example(tmp_path, monkeypatch, lambda source: source)


def arguments(function: Any, name: str, instance: Instance) -> Iterator[dict[str, Any]]:
    """Every set of arguments that pytest would call a conformance test with, for one instance."""
    choices = []
    for mark in getattr(function, "pytestmark", []):
        if mark.name != "parametrize":
            continue
        names, values = mark.args
        names = [each.strip() for each in names.split(",")] if isinstance(names, str) else list(names)
        if names == ["name"]:
            values = [name]  # the laws that choose the names hold for ours
        choices.append([dict(zip(names, value if len(names) > 1 else [value], strict=True)) for value in values])
    own = {"instance": instance} if "instance" in inspect.signature(function).parameters else {}
    for chosen in itertools.product(*choices):
        yield own | {key: value for each in chosen for key, value in each.items()}


@pytest.mark.parametrize("test", CONFORMANCE)
def test_the_worked_example_conforms(example: Example, test: str) -> None:
    assert len(example.instances) >= 2
    function, called = getattr(conformance, test), 0
    for name, instance in example.instances.items():
        assert instance == Instance(instance.objective), "a law that is lifted must be left out here too"
        for each in arguments(function, name, instance):
            function(**each)
            called += 1
    assert called >= len(example.instances)


@pytest.mark.parametrize(
    ("line", "wrong"),
    [("** self.gamma", "** (self.gamma + 0.01)"), ("-surprise)) **", "-surprise.detach())) **")],
    ids=["value", "gradient"],
)
def test_a_wrong_example_would_not_conform(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, wrong: str
) -> None:
    changed = Example(tmp_path, monkeypatch, lambda source: source.replace(line, wrong))
    test = conformance.test_steps_equal_the_float64_loop_in_values_and_gradients
    with pytest.raises(AssertionError, match="close"):
        test(changed.instances["focal"], (3, 4))


def test_the_worked_example_is_a_recipes_objective_and_keeps_the_rules(example: Example) -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(Annotated[Union[tuple(example.members)], Field(discriminator="kind")])  # noqa: UP007
    for block in blocks(WORKED_EXAMPLE, "toml"):
        tree = tomllib.loads(block)
        assert adapter.validate_python(tree.pop("objective")) == example.cls(gamma=1.5)
        recipes.from_dict(tree)  # the rest
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        example.cls(gamma=0.5)
    assert "Source:" in example.cls.__doc__
    assert set(objectives_table.attributes(example.cls)) == {"gamma"}
    assert "### focal" in objectives_table.section(example.cls)


def test_the_measured_readings_are_the_committed_ones(repository: Path) -> None:
    """Each row of the page on Gamma weights is `| method | clean | 40% wrong | loss | InfoNCE | scale |`."""
    committed: dict[tuple[str, str], float] = {}
    results = repository / "benchmarks" / "results" / "gamma_readings.json"
    for record in json.loads(results.read_text(encoding="utf-8"))["records"]:
        committed[record["case"], record["metric"]] = record["ours"]
    page = (repository / "docs" / "gamma_weights.md").read_text(encoding="utf-8")
    number = r"(-?[\d.]+|–)"
    rows = re.findall(
        rf"^\| ([^|]+) \| {number} ± {number} \| {number} ± {number} \| {number} \| {number} \| {number} \|$",
        page,
        re.M,
    )
    methods = {case.rpartition(", ")[0] for case, _ in committed}
    assert {row[0] for row in rows} == methods
    keys = [
        ("0% wrong", "top1_percent"),
        ("0% wrong", "top1_standard_error"),
        ("40% wrong", "top1_percent"),
        ("40% wrong", "top1_standard_error"),
        ("0% wrong", "loss"),
        ("0% wrong", "infonce"),
        ("0% wrong", "scale"),
    ]
    for method, *cells in rows:
        for (noise, metric), cell in zip(keys, cells, strict=True):
            value = committed.get((f"{method}, {noise}", metric))
            assert (value is None) == (cell == "–")
            if value is not None:
                assert float(cell) == pytest.approx(value, abs=0.051)


def test_the_tables_formulas_are_whole() -> None:
    for cls in get_args(get_args(ObjectiveConfig)[0]):
        shown = objectives_table.formula(cls.about.equation)
        for opening, closing in ("()", "[]", "⟨⟩"):
            assert shown.count(opening) == shown.count(closing), shown
