"""Fixtures shared by all tests."""

import gc
import os
import tempfile
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from summary import TITLES
from support.transformers import leave_transformers_out

_BYTECODE = pytest.StashKey[tempfile.TemporaryDirectory[str]]()


# Wall time says nothing on a machine that does other things too: a late example is no failure.
settings.register_profile("macmesh", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("macmesh")

leave_transformers_out()


def pytest_configure(config: pytest.Config) -> None:
    """Lets the processes that tests start share their bytecode, where none is written beside the sources.

    Else each of them would compile all that it imports anew, which takes longer than most tests.
    """
    if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):
        folder = config.stash[_BYTECODE] = tempfile.TemporaryDirectory(prefix="macmesh-bytecode-")
        os.environ["PYTHONPYCACHEPREFIX"] = folder.name


def pytest_unconfigure(config: pytest.Config) -> None:
    """Removes the bytecode."""
    if _BYTECODE in config.stash:
        config.stash[_BYTECODE].cleanup()


def pytest_collection_finish() -> None:
    """Takes what is there for good - modules, tests - out of the garbage collector's rounds."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hands the tables' lines of one process of several to the process that prints."""
    told = getattr(session.config, "workeroutput", None)
    if told is not None:
        told["tables"] = [session.config.stash.setdefault(table, []) for table in TITLES]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Takes them."""
    tables: list[list[str]] = getattr(node, "workeroutput", {}).get("tables", [])
    for table, lines in zip(TITLES, tables, strict=False):
        node.config.stash.setdefault(table, []).extend(lines)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Prints the tables of architectures, where their tests ran."""
    for table, title in TITLES.items():
        lines = config.stash.setdefault(table, [])
        lines.sort()
        if lines:
            terminalreporter.section(title)
            for line in lines:
                terminalreporter.write_line(line)
