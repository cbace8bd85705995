"""Breaks the core in a copy, one mutant at a time, and waits for somebody to notice."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .mutant import Mutant

ROOT = Path(__file__).parents[3]
PACKAGE = ROOT / "daemon" / "macmesh_daemon"
SCENARIOS = "tests/simulator/tests/test_scenarios.py"
DIRECTED = {
    "cluster": ("tests/daemon/cluster", SCENARIOS),
    "requests": ("tests/daemon/requests", SCENARIOS),
    "node": ("tests/daemon/node/test_request_desk.py", SCENARIOS),
}
"""The tests that see what the simulator does not, by the package of the break."""
_FIRST = {
    "election.py": "test_election.py",
    "quorum.py": "test_quorum.py",
    "coordinator.py": "test_election.py",
    "leavers.py": "test_evict.py",
    "member_news.py": "test_membership.py",
    "replica.py": "test_replica.py",
    "worker_slot.py": "test_replica.py",
    "keeping.py": "test_keeping.py",
    "planning.py": "test_plans.py",
    "rollout.py": "test_plans.py",
    "evictions.py": "test_evict.py",
    "changes.py": "test_plans.py",
    "drains.py": "test_drains.py",
    "rebalance.py": "test_rebalance.py",
    "machine.py": "test_election.py",
    "tracker.py": "test_watch.py",
    "transfer.py": "test_evict.py",
    "watch.py": "test_refused.py",
    "standalone.py": "test_standalone.py",
    "generations.py": "test_recovery.py",
    "recovery.py": "test_recovery.py",
}
"""Where a break of a file shows soonest; the others follow."""


def _first_of(mutant: Mutant) -> str:
    if mutant.package == "cluster":
        return f"{DIRECTED['cluster'][0]}/{_FIRST[mutant.file]}"
    return DIRECTED[mutant.package][0]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Who caught a mutant: a seed of the simulator, a test, or nobody (both empty)."""

    mutant: Mutant
    seed: str
    test: str
    seconds: float

    @property
    def is_caught(self) -> bool:
        """Whether anybody did."""
        return bool(self.seed or self.test)


def broken_text(mutant: Mutant) -> str:
    """The file with the break.

    Raises:
        ValueError: The old text is not there exactly once: the core has changed, and the mutant must, too.
    """
    text = (PACKAGE / mutant.package / mutant.file).read_text()
    count = text.count(mutant.old)
    if count != 1:
        raise ValueError(f"{mutant.name}: its text occurs {count} times in {mutant.file}, not once")
    return text.replace(mutant.old, mutant.new)


def try_mutant(
    mutant: Mutant, *, simulate_seconds: float, limit_seconds: float, both: bool = False
) -> Verdict:
    """Run tests and simulator over a broken copy: where the break shows soonest, the simulator, all the rest.

    Args:
        mutant: The break.
        simulate_seconds: How long the simulator looks for it.
        limit_seconds: After this long the trial counts as caught: a core that hangs is broken.
        both: Whether the simulator and the tests have their turn, whoever else caught it.
    """
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="macmesh-mutant-") as folder:
        copy = Path(folder) / "macmesh_daemon"
        shutil.copytree(PACKAGE, copy)
        (copy / mutant.package / mutant.file).write_text(broken_text(mutant))
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([folder, str(ROOT / "tests")]),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        trial = [
            sys.executable,
            "-m",
            "simulator.mutants.trial",
            folder,
            str(simulate_seconds),
            str(int(both)),
            _first_of(mutant),
        ]
        try:
            done = subprocess.run(
                [*trial, *DIRECTED[mutant.package]],
                cwd=ROOT,
                env=environment,
                capture_output=True,
                text=True,
                timeout=limit_seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Verdict(
                mutant, "", f"still running after {limit_seconds:g} s", time.perf_counter() - begin
            )
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        raise RuntimeError(f"{mutant.name}: the trial failed\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    found = json.loads(lines[-1])
    return Verdict(mutant, found["seed"], found["test"], time.perf_counter() - begin)


def try_all(
    mutants: Sequence[Mutant], *, jobs: int, simulate_seconds: float, limit_seconds: float, both: bool
) -> Iterator[Verdict]:
    """Try them all, ``jobs`` at a time, in order."""
    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(
            lambda mutant: try_mutant(
                mutant, simulate_seconds=simulate_seconds, limit_seconds=limit_seconds, both=both
            ),
            mutants,
        )
