"""The page of training systems has the committed numbers."""

from tools.docs import systems_table


def test_the_tables_are_those_of_the_results() -> None:
    page = systems_table.PAGE.path.read_text(encoding="utf-8")
    assert systems_table.PAGE.renewed(page) == page, "run python -m tools.docs.systems_table"


def test_a_changed_number_makes_the_page_stale() -> None:
    page = systems_table.PAGE.path.read_text(encoding="utf-8")
    changed = page.replace(" ± ", " ± 9", 1)
    assert changed != page
    assert systems_table.PAGE.renewed(changed) != changed
