"""The diagnostics' page and table: complete, self-contained, escaped, made from what was saved."""

from __future__ import annotations

import dataclasses
import io
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from rich.console import Console

from tests.report.diagnosed import diagnosed, plain
from tests.report.factory import NASTY
from tests.report.test_report_page import Page
from troth.evaluate import Diagnostics
from troth.evaluate.diagnostics import ScaleCourse
from troth.report import print_diagnostics, render_diagnostics, show_diagnostics
from troth.report.diagnostics_figures import scale_figure
from troth.report.diagnostics_summary import rows, scale_sentence


def rendered(diagnostics: Diagnostics, folder: Path) -> str:
    return render_diagnostics(diagnostics, folder).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    return rendered(diagnosed(NASTY, NASTY), tmp_path_factory.mktemp("page"))


def test_every_element_is_closed_and_every_id_is_unique(text: str) -> None:
    page = Page(text)
    assert page.open == []
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids)) > 0


def test_it_loads_nothing_and_runs_nothing(text: str) -> None:
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "img"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        assert all((attributes.get(name) or "#").startswith("#") for name in ("src", "href", "xlink:href"))
    assert not re.search(r"url\((?!#)|@import", text)
    assert "&lt;script&gt;alert(" in text
    assert page.text.count(NASTY) >= 4


def test_drawings_are_whole_have_words_and_take_the_pages_colours(text: str) -> None:
    drawings = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert len(drawings) == 4
    for drawing in drawings:
        ElementTree.fromstring(drawing)
        assert 'role="img"' in drawing
        assert "var(--" in drawing
        assert not re.search(r"#(?:0[1-4]){3}|#1000\d\d", drawing)
    labels = [str(attributes["aria-label"]) for tag, attributes in Page(text).tags if tag == "svg"]
    assert "from step 95 on" in labels[0]
    assert "Histograms of distances in training data. 30 positive and 870 negative pairs." in labels[1]
    assert "Accuracy with some of the spheres on names." in labels[3]


def test_the_page_says_what_was_measured(text: str) -> None:
    words = Page(text).text
    kinds = diagnosed().data[0].distances.kinds
    for expected in (
        "In the domain: training data",
        "Outside: other",
        "200, averaged weights",
        "oblique, 4 spheres of 4 dimensions, inner product",
        "−Σₖ ⟨uₖ, vₖ⟩, from −4 to 4",
        "From 10 at step 0 to 20 at step 195; from step 95 on its logarithm kept within 2%",
        "for an epoch, and from step 100 on for every later one.",
        "converge step 95",
        f"positive pairs −{-kinds['positive'].mean:.3f} ± {kinds['positive'].deviation:.3f}",
        f"{100 * kinds['negative'].closer:.2f}",
        "modality gap",
        "−2.500",
        "guessing: 3.3",
    ):
        assert expected in words, expected


def test_what_was_not_measured_is_not_there(tmp_path: Path) -> None:
    bare = dataclasses.replace(
        plain(), data=tuple(dataclasses.replace(part, measures={}) for part in plain().data), notes=()
    )
    page = Page(rendered(bare, tmp_path))
    assert [tag for tag, _ in page.tags].count("svg") == 2
    for absent in ("Scale over time", "What some of the spheres know", "modality gap", "averaged", "Note"):
        assert absent not in page.text, absent
    assert {row.group for row in rows(bare)} == {
        "Distance, mean ± standard deviation",
        "Share closer than the median positive, %",
    }


def test_it_is_made_from_the_saved_folder_and_the_same_each_time(tmp_path: Path) -> None:
    diagnosed().save(tmp_path)
    once = rendered(diagnosed(), tmp_path)
    assert render_diagnostics(tmp_path, tmp_path).read_text(encoding="utf-8") == once


def test_the_converge_step_is_marked_where_there_is_one() -> None:
    scale = diagnosed().scale
    marked = scale_figure(scale, name="scale", description="")
    assert "var(--right)" in marked
    for other in (dataclasses.replace(scale, converged=None, settled=None), ScaleCourse(scale.step, scale.scale)):
        assert "var(--right)" not in scale_figure(other, name="scale", description="")
    assert ">epoch<" in marked
    assert ">epoch<" not in scale_figure(ScaleCourse(scale.step, scale.scale), name="scale", description="")
    assert not scale_figure(ScaleCourse(), name="scale", description="")


@pytest.mark.parametrize(
    ("scale", "words"),
    [
        (ScaleCourse(), "Nothing is known"),
        (ScaleCourse((1, 2), (3.0, 3.0), learnable=False), "it was not trained"),
        (ScaleCourse((1, 2), (3.0, 3.0)), "how long an epoch was is not known"),
        (ScaleCourse((1, 2), (3.0, 9.0), 1.0), "never kept within 2%"),
        (ScaleCourse((1, 2), (3.0, 3.0), 1.0, 1, 1), "and for every later one"),
        (ScaleCourse((1, 2), (3.0, 3.0), 1.0, 1, None), "but it moved again later"),
    ],
)
def test_every_course_of_the_scale_has_its_sentence(scale: ScaleCourse, words: str) -> None:
    assert words in scale_sentence(scale)


def test_the_terminal_shows_it_in_eighty_columns(tmp_path: Path) -> None:
    out = io.StringIO()
    diagnosed("[bold]runs", "[red]a note").save(tmp_path)
    page = show_diagnostics(tmp_path, Console(file=out, width=80))
    assert page == tmp_path / "diagnostics.html"
    assert page.is_file()
    shown = out.getvalue()
    assert max(map(len, shown.splitlines())) <= 80
    for words in ("[bold]runs at step 200", "training data", "other", "modality gap", "spheres", "[red]a note", "±"):
        assert words in shown, words
    assert not [row for row in rows(diagnosed()) if row.label not in shown]


def test_the_table_of_one_sphere_has_no_subsets() -> None:
    out = io.StringIO()
    print_diagnostics(plain(), Console(file=out, width=100))
    assert "some of the spheres" not in out.getvalue()
    assert "averaged" not in out.getvalue()
