"""The CLI's page is the one that the parsers give."""

from pathlib import Path

from macmesh_daemon.cli.reference import reference
from macmesh_daemon.cli.registry import COMMANDS

from .conftest import Run

PAGE = Path(__file__).parents[3] / "docs" / "cli.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text("utf-8") == reference(), "run: python -m macmesh_daemon.cli.reference > docs/cli.md"


def test_the_page_has_every_option_that_help_has(run: Run) -> None:
    page = PAGE.read_text("utf-8")
    for command in COMMANDS:
        if command.name in {"client", "cluster", "rdma", "service"}:
            continue
        section = page.split(f"\n## daemonctl {command.name}\n")[1].split("\n## ")[0]
        text = run(command.name, "--help").out
        options = {w.strip("[],") for w in text.split() if w.strip("[],").startswith("--")} - {"--help"}
        assert options
        for option in options:
            assert f"`{option}" in section, f"{command.name} {option}"


def test_summaries_agree_with_the_registry(run: Run) -> None:
    for command in COMMANDS:
        first = run(command.name, "--help").out.split("\n\n")[1]
        assert first == f"{command.summary[0].upper()}{command.summary[1:]}."
