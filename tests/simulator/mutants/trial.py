"""One trial, in a process of its own with the broken package ahead on its path; prints who noticed, as JSON."""

import contextlib
import io
import json
import sys
import time
from pathlib import Path

import pytest

import macmesh_daemon.cluster
from simulator.many import run_seed

_FIRST_SEED = 1000


class _FirstFailure:
    """Remembers the first test that failed."""

    def __init__(self) -> None:
        self.name = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self.name:
            self.name = report.nodeid.split("/")[-1]

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed and not self.name:
            self.name = f"{report.nodeid.split('/')[-1]} (cannot be loaded)"


def simulate(seconds: float) -> str:
    """Run seeds until one fails or the time is over; what failed, "" where nothing did."""
    begin = time.perf_counter()
    seed = _FIRST_SEED
    while time.perf_counter() - begin < seconds:
        outcome = run_seed(seed)
        if isinstance(outcome, str):
            return outcome.splitlines()[0].removesuffix("\n")
        seed += 1
    return ""


def test(paths: list[str]) -> str:
    """Run tests until one fails; its name, "" where none does."""
    failure = _FirstFailure()
    with contextlib.redirect_stdout(io.StringIO()):
        # Hypothesis's profile "ci" has no deadline: a slow machine is no catch.
        options = ["-x", "-q", "-p", "no:cacheprovider", "--timeout=60", "--hypothesis-profile=ci"]
        pytest.main([*options, *paths], plugins=[failure])
    return failure.name


def main() -> None:
    """Try the package that is found first."""
    folder, seconds, both, first, *rest = sys.argv[1:]
    if not Path(macmesh_daemon.cluster.__file__).is_relative_to(Path(folder).resolve()):
        sys.exit(f"{macmesh_daemon.cluster.__file__} is not the broken copy in {folder}")
    found = {"seed": "", "test": test([first])}
    if not found["test"] or both == "1":
        found["seed"] = simulate(float(seconds))
    if not found["test"] and (not found["seed"] or both == "1"):
        found["test"] = test(rest)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
