"""docs/placement.md shows what the code gives."""

import re

from bench_scripts import load_script


def test_the_computed_parts_of_the_page_are_up_to_date() -> None:
    script = load_script("placement_page")
    page = script.PAGE.read_text("utf-8")
    assert set(re.findall(r"<!-- computed: ([\w-]+) -->", page)) == set(script.PARTS)
    assert script.filled(page) == page, "run: python bench/placement_page.py"
