"""docs/placement.md shows what the code gives."""

import re

from placement_page import PAGE, PARTS, filled


def test_the_computed_parts_of_the_page_are_up_to_date() -> None:
    page = PAGE.read_text("utf-8")
    assert set(re.findall(r"<!-- computed: ([\w-]+) -->", page)) == set(PARTS)
    assert filled(page) == page, "run: python bench/placement_page.py"
