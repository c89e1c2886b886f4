"""The report as a page: ``report.html`` and a folder of thumbnails beside it; opens from disk, loads nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
from jinja2 import PackageLoader, StrictUndefined
from markupsafe import Markup

from troth.data.files import atomic_path
from troth.report import figures
from troth.report.data import MethodResult, ReportData
from troth.report.summary import duration, headline, table_rows
from troth.report.thumbnails import write_thumbnails


def render_report(run_data: ReportData | Path, out: Path) -> Path:
    """Render the page.

    Args:
        run_data: the data, or a folder :meth:`ReportData.save` wrote.
        out: the page to write if it ends in ``.html``, else a folder that gets ``report.html``. Thumbnails go into a
            folder beside it, named as the page with ``_files``.

    Returns:
        the page's path.

    Raises:
        UserError: if the folder does not hold a saved report.
    """
    data = run_data if isinstance(run_data, ReportData) else ReportData.load(run_data)
    page = out if out.suffix == ".html" else out / "report.html"
    folder = page.with_name(f"{page.stem}_files")
    thumbnails = write_thumbnails(data.images, folder)
    return write_page(
        page,
        "report.html.j2",
        data=data,
        headline=headline(data),
        rows=table_rows(data),
        charts=_charts(data),
        histograms=_histograms(data),
        numbers={method.name: number % figures.NUM_SERIES for number, method in enumerate(data.methods)},
        labels={method.name: method.label for method in data.methods},
        thumbnail=lambda name: f"{folder.name}/{thumbnails[name]}" if name in thumbnails else None,
        duration=duration,
        signed=lambda score: f"{score:.2f}".replace("-", "−"),
    )


def write_page(page: Path, template: str, **values: Any) -> Path:
    """Render one of the package's templates to ``page``; everything is escaped but what is marked up already."""
    environment = jinja2.Environment(
        loader=PackageLoader("troth.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template(template).render(**values)
    with atomic_path(page) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return page


def _charts(data: ReportData) -> list[dict[str, str | Markup]]:
    loss = figures.curves(
        data.methods,
        "loss_curve",
        label="loss (nats)",
        name="loss",
        description=_ends(data, "loss_curve", "Loss"),
        smoothed=True,
    )
    scale = figures.curves(
        data.methods,
        "scale_curve",
        label="scale",
        name="scale",
        description=_ends(data, "scale_curve", "Scale"),
        from_zero=True,
    )
    charts = [
        {
            "svg": Markup(loss),
            "title": "Training loss",
            "text": "How surprised the model still is by the captions it was given, wrong ones included: single steps "
            "as a light line, their running mean as a strong one. Losses of different objectives measure different "
            "things: compare shapes, not heights. A loss that keeps falling on noisy pairs may be learning wrong "
            "captions by heart.",
        },
        {
            "svg": Markup(scale),
            "title": "Learned scale",
            "text": "What similarities are multiplied by before the softmax (one over the temperature). A higher scale "
            "means the model commits harder to single captions.",
        },
    ]
    return [chart for chart in charts if chart["svg"]]


def _histograms(data: ReportData) -> list[dict[str, str | Markup]]:
    limits, tallest = figures.shared_limits([method.histogram for method in data.methods])
    drawn = []
    for number, method in enumerate(data.methods):
        name = f"similarity-{number}"
        right, wrong = int(sum(method.histogram.right)), int(sum(method.histogram.wrong))
        description = (
            f"Histogram of similarities for {method.label}: {right:,} pairs with their own caption, "
            f"{wrong:,} with another picture’s. {_auroc(method)}"
        )
        svg = figures.histogram(method.histogram, limits=limits, tallest=tallest, name=name, description=description)
        if svg:
            drawn.append({"svg": Markup(svg), "title": method.label, "text": _histogram_caption(method)})
    return drawn


def _histogram_caption(method: MethodResult) -> str:
    parts = [_auroc(method)]
    if method.average_precision is not None:
        parts.append(f"Average precision {method.average_precision:.3f}.")
    if method.estimated_noise_rate is not None:
        true = "" if method.true_noise_rate is None else f" (true: {method.true_noise_rate:.1%})"
        by = "The judge estimates that" if method.judged else "Estimated from similarities alone,"
        parts.append(f"{by} {method.estimated_noise_rate:.1%} of the pairs are wrong{true}.")
    return " ".join(part for part in parts if part)


def _auroc(method: MethodResult) -> str:
    if method.auroc is None:
        return ""
    error = "" if method.auroc.standard_error is None else f" ± {method.auroc.standard_error:.3f}"
    return f"{'The judge’s AUROC' if method.judged else 'AUROC'} {method.auroc.value:.3f}{error}."


def _ends(data: ReportData, kind: str, what: str) -> str:
    ends = []
    for method in data.methods:
        values = getattr(method, kind).value
        if values:
            ends.append(f"{method.label} from {values[0]:.3g} to {values[-1]:.3g}")
    return f"{what} over training: {'; '.join(ends)}."
