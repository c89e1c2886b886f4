"""The page of topologies has the committed numbers."""

from tools.docs import topology_table


def test_the_tables_are_those_of_the_results() -> None:
    page = topology_table.PAGE.path.read_text(encoding="utf-8")
    assert topology_table.PAGE.renewed(page) == page, "run python -m tools.docs.topology_table"


def test_a_changed_number_makes_the_page_stale() -> None:
    page = topology_table.PAGE.path.read_text(encoding="utf-8")
    before, begin, tables = page.partition(topology_table.PAGE.begin)
    changed = before + begin + tables.replace(" ± ", " ± 9", 1)
    assert changed != page
    assert topology_table.PAGE.renewed(changed) != changed


def test_rows_that_were_not_run_are_named() -> None:
    assert topology_table.missing({}) == "No row was run."
    assert "sphere, e^0 fixed" in topology_table.missing({"sphere, e^0 learnable": {}})
    assert topology_table.missing({name: {} for name in topology_table.ROWS}) == "All rows were run."


def test_a_scale_that_never_converges_has_a_dash() -> None:
    assert topology_table.cell({}, "converged at epoch") == "–"
