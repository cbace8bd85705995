"""A process that runs mDNS discovery and prints one JSON line per event. Started by the tests."""

import argparse
import asyncio
import json
import signal

from macmesh_daemon.discovery import Advertisement, Candidate, Hints, MdnsDiscovery


def emit(**values: object) -> None:
    print(json.dumps(values), flush=True)  # noqa: T201  the tests read it


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("node_id")
    parser.add_argument("port", type=int)
    parser.add_argument("--cluster", default="0123abcd")
    parser.add_argument("--interface", action="append", default=[])
    parser.add_argument("--beat", type=float, default=5.0)
    arguments = parser.parse_args()
    hints = Hints(
        protocol_version=1,
        cluster_prefix=arguments.cluster,
        ram_bytes=128 << 30,
        usable_bytes=96 << 30,
        bandwidth_gb_per_s=546.0,
        chip="Apple M4 Max",
        host_id="f" * 32,
        incarnation=3,
    )
    discovery = MdnsDiscovery(
        Advertisement(arguments.node_id, arguments.port, hints),
        interfaces=arguments.interface,
        announce_interval_seconds=arguments.beat,
        lonely_interval_seconds=arguments.beat,
    )

    def found(candidate: Candidate) -> None:
        emit(event="found", node_id=candidate.node_id, addresses=candidate.addresses)

    async with asyncio.TaskGroup() as group:
        task = group.create_task(discovery.run(found), name="discovery")
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        emit(event="started")
    emit(event="stopped", health=discovery.health())


asyncio.run(main())
