"""The page of explanations has the committed numbers."""

from tools.docs import pointing_table


def test_the_table_is_that_of_the_results() -> None:
    page = pointing_table.PAGE.path.read_text(encoding="utf-8")
    assert pointing_table.PAGE.renewed(page) == page, "run python -m tools.docs.pointing_table"


def test_a_changed_number_makes_the_page_stale() -> None:
    page = pointing_table.PAGE.path.read_text(encoding="utf-8")
    changed = page.replace(" ± ", " ± 9", 1)
    assert changed != page
    assert pointing_table.PAGE.renewed(changed) != changed
