"""Runs the scenarios of one group, as a process of its own: ``python -m faults.group NAME [--only SCENARIO]``.

Prints one line of JSON for each result. The runner starts it as process 1 of fresh namespaces.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

from faults.catalogue import GROUPS
from faults.cluster import Cluster
from faults.network import Lan, sh
from faults.results import Result
from faults.world import Group, World

SCENARIO_DEADLINE_SECONDS = 120.0


async def run_group(group: Group, names: list[str], *, isolated: bool) -> None:
    """Set up, run each scenario, and end everything."""
    folder = Path(tempfile.mkdtemp(prefix="mm-f-", dir="/tmp"))
    world = World(folder, Cluster(folder / "c"), Result("set-up", group.name))
    broken = ""
    try:
        try:
            if isolated:
                await sh("ip link set lo up")
            if not group.unprivileged:
                world.lan = Lan()
                await world.lan.build()
            async with asyncio.timeout(SCENARIO_DEADLINE_SECONDS):
                await group.set_up(world)
        except Exception:  # noqa: BLE001  whatever it is, it is told
            broken = f"the group could not be set up: {traceback.format_exc(limit=-3)}\n{tails(world)}"
        for name in names:
            world.result = Result(name, group.name)
            if broken:
                world.result.outcome, world.result.reason = "failed", broken
                broken = broken.partition("\n")[0]
            else:
                await _run(group, name, world)
                if world.result.outcome == "failed":
                    broken = await _mended(world)
            sys.stdout.write(json.dumps(world.result.to_json()) + "\n")
            sys.stdout.flush()
    finally:
        for cluster in (world.cluster, *world.others):
            with contextlib.suppress(Exception):
                await cluster.stop()
        for place in world.mounts:
            with contextlib.suppress(Exception):
                await sh(f"umount --lazy {place}")
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


async def _run(group: Group, name: str, world: World) -> None:
    began = time.monotonic()
    result = world.result
    try:
        async with asyncio.timeout(SCENARIO_DEADLINE_SECONDS):
            await group.scenarios[name](world)
        checked = [await asyncio.to_thread(cluster.checked) for cluster in (world.cluster, *world.others)]
        result.checker = "; ".join(checked)
        result.settle()
        if result.outcome == "failed":
            result.reason += f"\n{tails(world, lines=60)}"
    except Exception:  # noqa: BLE001  whatever it is, it is told
        result.outcome, result.reason = "failed", f"{traceback.format_exc(limit=-3)}\n{tails(world)}"
    result.wall_seconds = round(time.monotonic() - began, 2)


async def _mended(world: World) -> str:
    """Heal what a failed scenario left; why the next ones cannot run, or ""."""
    try:
        for cluster in (world.cluster, *world.others):
            for node in cluster.everybody:
                if world.lan is not None and node.machine:
                    await world.lan.plug(node.machine)
                    await world.lan.repair(node.machine)
                if node.pid is None:
                    await node.up()
                else:
                    node.process().resume()
            await cluster.formed()
    except Exception as error:  # noqa: BLE001  whatever it is, it is told
        return f"not run: after {world.result.scenario} the cluster did not come back ({error!r})"
    return ""


def tails(world: World, lines: int = 12) -> str:
    """The ends of all daemons' logs."""
    nodes = [node for cluster in (world.cluster, *world.others) for node in cluster.everybody]
    return "\n".join(f"-- {node.name} {node.node_id[:8]}\n{node.log_tail(lines)}" for node in nodes)


def main() -> None:
    """Run one group."""
    parser = argparse.ArgumentParser()
    parser.add_argument("group", choices=sorted(GROUPS))
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--isolated", action="store_true", help="this is process 1 of fresh namespaces")
    arguments = parser.parse_args()
    group = GROUPS[arguments.group]
    names = [name for name in group.scenarios if not arguments.only or name in arguments.only]
    if arguments.isolated:
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run"], check=True, timeout=20)
        Path("/run/netns").mkdir()
    asyncio.run(run_group(group, names, isolated=arguments.isolated))


if __name__ == "__main__":
    main()
