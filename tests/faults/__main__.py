"""``python -m faults [--only NAME] [--json] [--jobs N] [--list]``; see the package."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from faults.catalogue import GROUPS
from faults.results import Result, table

if TYPE_CHECKING:
    from faults.world import Group

GROUP_DEADLINE_SECONDS = 480.0
_UNSHARE = (
    "unshare", "--net", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc",
)  # fmt: skip


def isolation() -> tuple[tuple[str, ...], str]:
    """The command that runs another in fresh namespaces; or none, and why."""
    if not sys.platform.startswith("linux"):
        return (), "network namespaces are Linux's"
    for program in ("unshare", "ip", "nft"):
        if shutil.which(program) is None:
            return (), f"needs {program} (Debian: util-linux, iproute2, nftables)"
    if os.geteuid() != 0:
        return (), "not root: namespaces cannot be made"
    check = "mount -t tmpfs tmpfs /run && ip link add e0 type veth peer name e1 && nft list tables"
    tried = subprocess.run([*_UNSHARE, "sh", "-c", check], capture_output=True, check=False, timeout=20)
    if tried.returncode:
        return (), f"namespaces are not permitted here: {tried.stderr.decode('utf-8', 'replace').strip()}"
    return _UNSHARE, ""


async def run_group(group: Group, names: list[str], prefix: tuple[str, ...], why_not: str) -> list[Result]:
    """Run a group's scenarios in a process of its own."""
    missing = [program for program in group.needs if shutil.which(program) is None]
    reason = ""
    if not prefix and not group.unprivileged:
        reason = why_not
    elif missing:
        reason = f"needs {', '.join(missing)}"
    if reason:
        return [Result(name, group.name, "skipped", reason) for name in names]
    command = [*prefix, sys.executable, "-m", "faults.group", group.name, *(["--isolated"] if prefix else [])]
    for name in names:
        command += ["--only", name]
    environment = os.environ | {"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stdin=asyncio.subprocess.DEVNULL, env=environment
    )
    assert process.stdout is not None
    results: list[Result] = []
    try:
        async with asyncio.timeout(GROUP_DEADLINE_SECONDS):
            async for line in process.stdout:
                results.append(Result.from_json(json.loads(line)))
                tell(results[-1])
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
    done = {result.scenario for result in results}
    reason = f"the group's process ended ({process.returncode}) before"
    return [*results, *(Result(name, group.name, "failed", reason) for name in names if name not in done)]


def tell(result: Result) -> None:
    """One line of progress, and why a scenario failed."""
    sys.stderr.write(f"{result.outcome:8}{result.scenario} ({result.wall_seconds:.1f} s)\n")
    if result.outcome == "failed":
        sys.stderr.write(f"{result.reason}\n")
    sys.stderr.flush()


async def run(only: list[str], jobs: int) -> list[Result]:
    """Run the chosen scenarios, so many groups at once."""
    prefix, why_not = isolation()
    if why_not:
        sys.stderr.write(f"{why_not}: what needs a network of its own is skipped\n")
    places = asyncio.Semaphore(jobs)

    async def one(group: Group, names: list[str]) -> list[Result]:
        async with places:
            return await run_group(group, names, prefix, why_not)

    async with asyncio.TaskGroup() as tasks:
        running = [
            tasks.create_task(one(group, names), name=group.name)
            for group in GROUPS.values()
            if (names := [name for name in group.scenarios if not only or name in only or group.name in only])
        ]
    return [result for task in running for result in task.result()]


def main() -> int:
    """Run, and print; 1 where a scenario failed."""
    parser = argparse.ArgumentParser(prog="python -m faults", description="Faults on real daemons.")
    parser.add_argument("--only", action="append", default=[], help="a scenario or a group; may be repeated")
    parser.add_argument("--json", action="store_true", help="JSON instead of the table")
    parser.add_argument("--jobs", type=int, default=2, help="groups at once (default: %(default)s)")
    parser.add_argument("--list", action="store_true", help="name the scenarios")
    arguments = parser.parse_args()
    known = {name for group in GROUPS.values() for name in (group.name, *group.scenarios)}
    if unknown := set(arguments.only) - known:
        parser.error(f"no such scenario: {', '.join(sorted(unknown))}")
    if arguments.list:
        for group in GROUPS.values():
            for name, scenario in group.scenarios.items():
                sys.stdout.write(f"{group.name:10}{name:32}{(scenario.__doc__ or '').splitlines()[0]}\n")
        return 0
    began = time.monotonic()
    results = asyncio.run(run(arguments.only, arguments.jobs))
    seconds = round(time.monotonic() - began, 1)
    if arguments.json:
        sys.stdout.write(json.dumps({"seconds": seconds, "results": [r.to_json() for r in results]}) + "\n")
    else:
        counts = {k: sum(r.outcome == k for r in results) for k in ("passed", "failed", "skipped")}
        told = ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)
        slow = sum(figure.verdict == "slow" for result in results for figure in result.figures)
        sys.stdout.write(f"{table(results)}\n\n{told} in {seconds} s; {slow} figures above their targets\n")
    return int(any(result.outcome == "failed" for result in results))


if __name__ == "__main__":
    sys.exit(main())
