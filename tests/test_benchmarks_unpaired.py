"""The page on unpaired data shows the committed results, and the benchmark's cases are the recipes it names."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from benchmarks import unpaired

from troth import recipe as recipes


@pytest.fixture
def content(repository: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((repository / "benchmarks/results/unpaired.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture
def page(repository: Path) -> str:
    return (repository / "docs" / "unpaired.md").read_text(encoding="utf-8")


def test_the_pages_tables_are_the_committed_results(content: dict[str, Any], page: str) -> None:
    for table in unpaired.tables(content).values():
        assert table in page
    assert len(re.findall(r"^\|---", page, re.MULTILINE)) == 3


def test_another_result_would_make_the_page_stale(content: dict[str, Any], page: str) -> None:
    for record in content["records"]:
        record["ours"] += 0.2
    for table in unpaired.tables(content).values():
        assert table not in page


def test_the_results_are_of_cases_that_there_are_with_errors_over_seeds(content: dict[str, Any]) -> None:
    known = {name: published for name, _, published in unpaired.cases(quick=False)}
    found = {record["case"] for record in content["records"]}
    assert found == set(known)
    errors = {record["case"] for record in content["records"] if record["metric"] == "top1_standard_error"}
    assert errors == found
    assert "--seeds 3" in content["command"]
    for record in content["records"]:
        if record["metric"] == "top1_percent":
            assert record["peer"] == known[record["case"]]


def test_the_figure_is_drawn_from_the_results(content: dict[str, Any], tmp_path: Path) -> None:
    unpaired.draw(content, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes()[:4] == b"\x89PNG"
    assert unpaired.FIGURE.is_file()


@pytest.mark.parametrize("name", ["spiked-unpaired", "digits-unpaired"])
def test_the_recipes_are_the_published_settings(name: str) -> None:
    recipe = recipes.load(name)
    second = recipe.unpaired
    assert second is not None
    assert (recipe.train.epochs, second.epochs, recipe.train.optimizer.learning_rate) == (100, 100, 2e-3)
    assert recipe.scale.init == 1
    assert not recipe.scale.learnable
    if name == "spiked-unpaired":
        assert (second.matching, second.judge, second.order, second.batch_size) == ("top", "current", "aligned", 50)
    else:
        assert (second.matching, second.judge, second.order, second.batch_size) == ("argmax", "best", "independent", 64)
        assert second.learning_rate_factor * recipe.train.optimizer.learning_rate == pytest.approx(2e-5)


@pytest.mark.parametrize("order", unpaired.ORDERS)
def test_a_short_case_runs(order: str) -> None:
    values = unpaired.spiked(order, 500, quick=True, seed=0)
    assert values["top1_percent"] > 5
    assert values["detectable_percent"] == pytest.approx(10, abs=8) or order != "independent, batches of 50"
    assert values["detectable_percent"] == 100 or order == "independent, batches of 50"


def test_the_gains_in_the_text_are_those_of_the_results(content: dict[str, Any], page: str) -> None:
    top1 = {each["case"]: each["ours"] for each in content["records"] if each["metric"] == "top1_percent"}
    gains = {
        order: [top1[f"spiked: {order}, N = {samples}"] - top1["spiked: paired"] for samples in unpaired.GRIDS[order]]
        for order in unpaired.ORDERS
    }
    said = [float(number) for number in re.findall(r"adds ([\d.]+), ([\d.]+) and ([\d.]+) points", page)[0]]
    assert said == pytest.approx(gains["aligned, batches of 50"], abs=0.051)
    least, most = (float(number) for number in re.findall(r"([\d.]+) to ([\d.]+) points above", page)[0])
    assert (least, most) == pytest.approx(
        (min(gains["independent, one batch"]), max(gains["independent, one batch"])), abs=0.051
    )
