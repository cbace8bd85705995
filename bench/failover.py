"""Time from killing the coordinator to a new one that a quorum follows, with real daemons on this machine.

    python bench/failover.py [--nodes N] [--runs N]

Prints JSON: seconds as minimum, median and maximum, until a client of another node is told of the new
coordinator, and until a restarted node counts as alive again (at a granularity of 0.5 s).
"""

import argparse
import asyncio
import json
import os
import platform
import signal
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path

from macmesh import AsyncClient, ClusterEvent, ClusterStatus
from macmesh_daemon.demo.nodes import DemoCluster, DemoNode, NodeSettings

DEADLINE_SECONDS = 60.0


def spread(values: list[float]) -> dict[str, float]:
    """Minimum, median and maximum."""
    return {
        "min": round(min(values), 3),
        "median": round(statistics.median(values), 3),
        "max": round(max(values), 3),
    }


async def until(client: AsyncClient, condition: Callable[[ClusterStatus], bool]) -> ClusterStatus:
    """The first status that satisfies the condition."""
    async with asyncio.timeout(DEADLINE_SECONDS), aclosing(client.watch()) as updates:
        async for update in updates:
            if not isinstance(update, ClusterEvent) and condition(update):
                return update
    raise TimeoutError


async def kill_and_watch(client: AsyncClient, coordinator: DemoNode) -> float:
    """Kill the coordinator and return the seconds until the client's node leads or follows another."""
    async with asyncio.timeout(DEADLINE_SECONDS), aclosing(client.watch()) as updates:
        killed_at = 0.0
        async for update in updates:
            if not killed_at:  # the first update: the stream stands
                killed_at = time.monotonic()
                coordinator.signal(signal.SIGKILL)
            elif (
                isinstance(update, ClusterEvent)
                and update.event in {"coordinator elected", "coordinator followed"}
                and update.facts["coordinator_node_id"] != coordinator.node_id
            ):
                return time.monotonic() - killed_at
    raise TimeoutError


async def measure(folder: Path, count: int, runs: int) -> tuple[list[float], list[float]]:
    """Kill the coordinator, wait for the next one, start the killed one again; and so on."""
    settings = NodeSettings(
        usable_bytes=1 << 30,
        runtime_reserve_bytes=0,
        bootstrap_expect=count,
        mdns=False,
        probe_cache_dir=folder,
        extra={"bandwidth_probe": False},
    )
    elected, rejoined = [], []
    async with DemoCluster(folder, count, settings) as cluster:
        await cluster.start()
        for node in cluster.nodes:
            await node.ready(DEADLINE_SECONDS)
        for _ in range(runs):
            async with cluster.nodes[0].client() as client:
                status = await until(
                    client, lambda s: s.has_quorum and all(n.liveness == "alive" for n in s.nodes)
                )
            coordinator = next(n for n in cluster.nodes if n.node_id == status.coordinator_node_id)
            other = next(n for n in cluster.nodes if n is not coordinator)
            async with other.client() as client:
                elected.append(await kill_and_watch(client, coordinator))
                await coordinator.wait(DEADLINE_SECONDS)
                await coordinator.start()
                await coordinator.ready(DEADLINE_SECONDS)
                back_at = time.monotonic()
                await until(client, lambda s: all(n.liveness == "alive" for n in s.nodes))
                rejoined.append(time.monotonic() - back_at)
    return elected, rejoined


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="time from a killed coordinator to the next one")
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--runs", type=int, default=10)
    arguments = parser.parse_args()
    if arguments.nodes < 3:  # noqa: PLR2004  see the message
        parser.error("of two nodes only the tie-breaker may go on alone: take 3 or more")
    with tempfile.TemporaryDirectory() as folder:
        elected, rejoined = asyncio.run(measure(Path(folder), arguments.nodes, arguments.runs))
    result = {
        "benchmark": "failover",
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "nodes": arguments.nodes,
        "runs": arguments.runs,
        "new_coordinator_seconds": spread(elected),
        "node_back_seconds": spread(rejoined),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
