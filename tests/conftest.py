"""Fixtures shared by all tests."""

import pytest

from summary import TABLE


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Prints the table of architectures, where their tests ran."""
    lines = config.stash.get(TABLE, [])
    if lines:
        terminalreporter.section("predicted bytes of caches and weights")
        for line in lines:
            terminalreporter.write_line(line)
