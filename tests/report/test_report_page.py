"""The page: complete, self-contained, escaped, and re-renderable."""

from __future__ import annotations

import dataclasses
import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.report.factory import NASTY, method, picture, report
from troth.errors import UserError
from troth.report import Curve, Histogram, MethodResult, Metric, ReportData, figures, render_report

VOID = {"meta", "img", "br", "link", "hr", "input", "use", "path"}


class Page(HTMLParser):
    """What the tests look at: tags with attributes, ids, and whether every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report")
    render_report(report(label=NASTY, caption=NASTY), out)
    return out


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def test_every_element_is_closed_and_every_id_is_unique(page: Page) -> None:
    assert page.open == []
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert ids
    assert len(ids) == len(set(ids))


def test_it_loads_nothing_from_elsewhere_and_runs_no_script(page: Page, folder: Path) -> None:
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href", "srcset"):
            target = attributes.get(name)
            if target is not None and not target.startswith("#"):
                assert tag == "img"
                assert (folder / target).is_file()
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)


def test_what_a_user_wrote_is_shown_as_written_and_never_run(page: Page, folder: Path) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "<script" not in text
    assert "&lt;script&gt;alert(" in text
    assert page.text.count("<script>alert('x')</script> & \"quotes\" {{ 7 * 7 }} $x$") >= 6
    alts = [attributes["alt"] for tag, attributes in page.tags if tag == "img"]
    assert any("<script>" in (alt or "") for alt in alts)


def test_every_picture_and_drawing_has_words(page: Page) -> None:
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert pictures
    assert all(attributes.get("alt") for attributes in pictures)
    drawings = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(drawings) == 4
    assert all(attributes["role"] == "img" and attributes["aria-label"] for attributes in drawings)
    assert "InfoNCE from 5 to 0.501" in str(drawings[0]["aria-label"])
    assert "26 pairs with their own caption, 12 with another picture’s. AUROC 0.910" in str(drawings[2]["aria-label"])


def test_what_a_judge_found_is_called_the_judges(tmp_path: Path) -> None:
    judge = "The AUROC of a method that judges the pairs before training is its judge’s."
    data = report()
    plain, robust = data.methods
    page = Page(render_report(data, tmp_path).read_text(encoding="utf-8")).text
    assert judge not in page
    judged = dataclasses.replace(data, methods=(plain, dataclasses.replace(robust, judged=True)))
    page = Page(render_report(judged, tmp_path).read_text(encoding="utf-8")).text
    assert f"1 is perfect. {judge}" in page
    assert "The judge’s AUROC 0.910 ± 0.004. Average precision 0.800. The judge estimates that 28.0% of" in page


def test_the_page_says_what_was_found(tmp_path: Path) -> None:
    text = Page(render_report(report(), tmp_path).read_text(encoding="utf-8")).text
    for words in (
        "Zero-shot, top-1 accuracy: 46.0% for Robust, 40.0% for InfoNCE. Robust is better by 6.0 ± 1.4 points.",
        "46.0 ± 1.0 +6.0 ± 1.4 better",
        "8.5 ± 0.5 −0.5 ± 0.7 unclear",
        "Median rank (lower is better)",
        "AUROC 0.910 ± 0.004. Average precision 0.800. Estimated from similarities alone, 28.0% of the pairs are wrong "
        "(true: 30.0%).",
        "✗ shuffled caption “a red square” similarity −0.10 97% likely wrong pair 7 Its own caption “own words”",
        "The caption belongs to key/blue.png Fits better, says the audit “better”",
        "✓ its own caption “fine”",
        "looked up now, 1 of these 2 truly has another picture’s caption",
        "picture could not be read not known “who knows”",
        "✗ wrong 0.50 ✓ right −0.25",
        "troth demo --seed 3",
        "62 min 05 s",
        "A note.",
    ):
        assert words in text, words


def test_the_best_of_a_row_is_bold(tmp_path: Path) -> None:
    text = render_report(report(), tmp_path).read_text(encoding="utf-8")
    best = re.findall(r'<td class="best"><span class="value"><b>([\d.]+)</b>', text)
    assert best == ["46.0", "8.5"]


def test_thumbnails_are_small_and_old_ones_are_removed(tmp_path: Path) -> None:
    data = report()
    page = render_report(data, tmp_path / "results.html")
    assert page == tmp_path / "results.html"
    files = tmp_path / "results_files"
    first = sorted(path.name for path in files.iterdir())
    assert len(first) == 2
    for path in files.iterdir():
        with Image.open(path) as image:
            assert image.format == "WEBP"
            assert image.size == (192, 128)
    (files / "mine.txt").write_text("kept")
    render_report(dataclasses.replace(data, images={"red.png": picture("green")}), page)
    second = sorted(path.name for path in files.iterdir())
    assert len(second) == 2
    assert "mine.txt" in second
    assert not set(first) & set(second)


def test_a_report_saved_and_loaded_renders_the_same_page(tmp_path: Path) -> None:
    data = report(label=NASTY)
    data.save(tmp_path / "data")
    again = ReportData.load(tmp_path / "data")
    assert again == data
    one = render_report(data, tmp_path / "one" / "r.html")
    two = render_report(tmp_path / "data", tmp_path / "two" / "r.html")
    assert one.read_bytes() == two.read_bytes()
    assert one.stat().st_size < 300_000


def test_numpy_numbers_are_saved_as_numbers(tmp_path: Path) -> None:
    data = dataclasses.replace(report(), methods=(method("plain", "A", np.float32(0.5), 1.0),))  # type: ignore[arg-type]
    data.save(tmp_path)
    assert ReportData.load(tmp_path).methods[0].metrics["top1"].value == 0.5


def test_a_report_with_next_to_nothing_in_it_renders(tmp_path: Path) -> None:
    data = ReportData(title="Little", metrics=(Metric("top1", "Top-1"),), methods=(MethodResult("a", "A"),))
    text = Page(render_report(data, tmp_path).read_text(encoding="utf-8")).text
    assert "Little" in text
    assert "–" in text
    for heading in ("Training loss", "A few retrievals", "suspicious", "Right and wrong"):
        assert heading not in text


def test_a_large_run_keeps_the_page_small(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    steps = tuple(np.arange(20_000.0).tolist())
    curve = Curve(steps, tuple(generator.normal(size=20_000).tolist()))
    edges = tuple(np.linspace(-1, 1, 101).tolist())
    counts = tuple(generator.integers(0, 1_000_000, 100).astype(float).tolist())
    methods = tuple(
        dataclasses.replace(
            method(f"m{n}", f"M{n}", 0.1 * n, 5), loss_curve=curve, histogram=Histogram(edges, counts, counts)
        )
        for n in range(4)
    )
    page = render_report(dataclasses.replace(report(baseline=""), methods=methods), tmp_path)
    assert page.stat().st_size < 800_000


def test_a_drawing_is_xml_with_the_page_s_colours() -> None:
    data = report()
    text = figures.curves(data.methods, "loss_curve", label="loss", name="x", description=NASTY, smoothed=True)
    root = ElementTree.fromstring(text.replace("xlink:href", "href"))
    assert root.attrib["aria-label"] == NASTY
    assert "width" not in root.attrib
    assert "var(--series-0)" in text
    assert "var(--series-1)" in text
    assert not re.search(r"#[0-9a-f]{6}\b", re.sub(r"url\(#[^)]*\)|href=\"[^\"]*\"", "", text))
    assert text == figures.curves(data.methods, "loss_curve", label="loss", name="x", description=NASTY, smoothed=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": ()}, "methods: method names must be unique and at least one"),
        ({"methods": (MethodResult("a", "A"), MethodResult("a", "B"))}, "must be unique"),
        ({"baseline": "none"}, "baseline: 'none' is not a method"),
        ({"images": {"../x.png": b""}}, "images: '../x.png' cannot name a file"),
    ],
)
def test_data_that_make_no_report_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        dataclasses.replace(report(), **change)


def test_a_folder_without_a_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such file: report\.json"):
        render_report(tmp_path, tmp_path / "out")
    report().save(tmp_path)
    saved = json.loads((tmp_path / "report.json").read_text())

    def written(**change: object) -> Path:
        (tmp_path / "report.json").write_text(json.dumps(saved | change))
        return tmp_path

    with pytest.raises(UserError, match="report of version 9"):
        ReportData.load(written(version=9))
    with pytest.raises(UserError, match=r"'\.\./\.\./etc/passwd' cannot name a picture"):
        ReportData.load(written(images=["../../etc/passwd"]))
    with pytest.raises(UserError, match=r"report\.json: title: "):
        ReportData.load(written(title=3))
    with pytest.raises(UserError, match=r"no such file: gone\.png"):
        ReportData.load(written(images=["gone.png"]))
    (tmp_path / "arrays.npz").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(UserError, match="not a saved report"):
        ReportData.load(written())
    (tmp_path / "report.json").write_text("[]")
    with pytest.raises(UserError, match="not a saved report"):
        ReportData.load(tmp_path)
    assert not (tmp_path / "out").exists()
