"""The headline table in a terminal, not wider than 100 columns."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from troth.report.data import MethodResult, ReportData
from troth.report.summary import Cell, Row, duration, headline, table_rows

#: Methods side by side; more go into a further table, so that any number fits 100 columns.
_METHODS_PER_TABLE = 3
_WIDTH = 100
_STYLES = {"better": "green", "worse": "red", "unclear": "dim", "": ""}


def render_table(data: ReportData, console: Console) -> None:
    """Print the headline table: a row a metric, a column a method; values with standard errors, then the difference.

    Args:
        data: the results.
        console: where to; colours and width follow it, 100 columns at most.
    """
    rows = table_rows(data)
    order = [number for number, method in enumerate(data.methods) if method is not data.reference]
    reference = next(number for number, method in enumerate(data.methods) if method is data.reference)
    for start in range(0, max(len(order), 1), _METHODS_PER_TABLE - 1):
        shown = [reference, *order[start : start + _METHODS_PER_TABLE - 1]]
        console.print(_table(data, rows, shown), width=min(console.width, _WIDTH))
    console.print(escape(headline(data)), width=min(console.width, _WIDTH), highlight=False)


def _table(data: ReportData, rows: tuple[Row, ...], shown: list[int]) -> Table:
    table = Table(title=escape(data.title), title_justify="left", caption=_CAPTION, caption_justify="left")
    table.add_column("", overflow="fold")
    for number in shown:
        table.add_column(escape(data.methods[number].label), justify="right", overflow="fold")
    for row in rows:
        if row.starts_group:
            table.add_row(f"[bold]{escape(row.metric.group)}[/]")
        unit = " %" if row.metric.unit == "percent" else ""
        indent = "  " if row.metric.group else ""
        table.add_row(f"{indent}{escape(row.metric.label)}{unit}", *(_text(row.cells[number]) for number in shown))
    table.add_section()
    if any(data.methods[number].auroc is not None for number in shown):
        table.add_row("AUROC of wrong pairs", *(_auroc(data.methods[number]) for number in shown))
    table.add_row("Training time", *(duration(data.methods[number].seconds) for number in shown))
    return table


def _auroc(method: MethodResult) -> str:
    if method.auroc is None:
        return "–"
    return f"{method.auroc.value:.3f}{' (its judge)' if method.judged else ''}"


_CAPTION = "± one standard error; in brackets the difference from the first column; bold: best"


def _text(cell: Cell) -> str:
    value = f"[bold]{cell.value}[/]" if cell.best else cell.value
    text = f"{value} [dim]{cell.error}[/]" if cell.error else value
    if not cell.delta:
        return text
    style = _STYLES[cell.verdict]
    change = f"({cell.delta})"
    return f"{text} [{style}]{change}[/]" if style else f"{text} {change}"
