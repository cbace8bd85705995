"""Others on the same network: a foreign cluster, and what multicast DNS can be made to say."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from faults.cluster import Cluster, eventually, now
from faults.links import HEAL_SECONDS, pause, terms_led
from faults.network import sh
from faults.world import Group
from support.avahi import BUS_ADDRESS, write_files

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from faults.cluster import Node
    from faults.world import World

#: The library announces, and the address book dials what it hears.
VISIBLE_SECONDS = 3.0
FLOOD_NAMES = 4000
FLOOD_SECONDS = 8.0


async def set_up(world: World) -> None:
    """Two clusters of two on one network, each finding its own by mDNS alone; and a machine without a daemon."""
    other = Cluster(world.folder / "d")
    world.others.append(other)
    await world.cluster.prepare(2, lan=world.network, machines=["a", "b"], mdns=True, seeds=False)
    await other.prepare(2, lan=world.network, machines=["c", "d"], mdns=True, seeds=False)
    await world.network.add("e")
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(world.cluster.start())
        tasks.create_task(other.start())
    await world.cluster.formed()
    await other.formed()


async def foreign_cluster(world: World) -> None:
    """Two clusters on one network: each has its own members only, and `avahi-browse` sees both."""
    clusters = (world.cluster, world.others[0])
    names = {}
    for cluster in clusters:
        leader = await cluster.formed()
        status = await leader.status()
        assert status is not None
        ours = {node.node_id for node in cluster.nodes}
        world.holds(
            f"cluster {status.cluster} has its own two members only",
            {m.node_id for m in status.document.members} == ours,
            status.document.members,
        )
        names.update(dict.fromkeys(ours, status.cluster))
    seen: dict[str, str] = {}
    began = now()
    async with avahi("e"):

        async def browsed() -> bool | None:
            # It ends at once while avahi's daemon is not yet on the bus.
            with contextlib.suppress(RuntimeError):
                lines = await sh(
                    "ip netns exec e avahi-browse --parsable --resolve --terminate _macmesh._tcp"
                )
                for line in lines.splitlines():
                    for node_id in names:
                        if line.startswith("=;e0;") and node_id in line:
                            seen[node_id] = line
            return True if len(seen) == len(names) else None

        await eventually(browsed, "avahi-browse sees the nodes of both clusters", 30)
    world.measure("start of avahi -> it has seen all nodes of both clusters", now() - began)
    told_apart = all(f'"cl={names[node_id]}"' in line for node_id, line in seen.items())
    world.holds("avahi-browse sees both clusters, told apart by `cl`", told_apart, seen)


@asynccontextmanager
async def avahi(machine: str) -> AsyncIterator[None]:
    """Another implementation of mDNS on a machine, with a message bus of its own."""
    mounts = write_files()
    for file, over in mounts:
        await sh(f"mount --bind {file} {over}")
    os.environ["DBUS_SYSTEM_BUS_ADDRESS"] = BUS_ADDRESS
    prefix = ("ip", "netns", "exec", machine)
    bus = await asyncio.create_subprocess_exec(
        *prefix, "dbus-daemon", "--config-file=/run/dbus.conf", "--nofork", "--print-address=1",
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert bus.stdout is not None
    async with asyncio.timeout(20):
        await bus.stdout.readline()
    daemon = await asyncio.create_subprocess_exec(
        *prefix, "avahi-daemon", "--no-drop-root", "--no-chroot", "--no-rlimits", "-f", "/run/avahi.conf",
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield
    finally:
        for process in (daemon, bus):
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        for _, over in mounts:
            await sh(f"umount {over}")


async def member(world: World) -> tuple[Node, Node]:
    """The coordinator and the other node."""
    leader = await world.cluster.formed()
    return leader, next(n for n in world.cluster.nodes if n is not leader)


async def restart(world: World, victim: Node, target: float) -> None:
    """Kill and start a node; measure until it is a member that answers again."""
    await victim.kill()
    await victim.up()
    up = now()
    await world.cluster.formed()
    world.measure("restarted daemon answers -> member again", now() - up, target=target)


async def mdns_blocked(world: World) -> None:
    """No multicast DNS gets through and no seeds are set: the peers of the last run suffice."""
    leader, victim = await member(world)
    for node in world.cluster.nodes:
        await world.network.block_mdns(node.machine)
    hurt = now()
    await pause(2.0)
    await restart(world, victim, HEAL_SECONDS)
    world.holds("the coordinator stays", not terms_led(world, hurt), terms_led(world, hurt))

    async def said() -> bool | None:
        status = await victim.status()
        return True if status and any("mDNS" in line for line in status.health) else None

    await eventually(said, "a health line that says that mDNS is deaf", 30)
    world.measure("start -> `status` says that mDNS is deaf", now() - hurt)
    for node in (leader, victim):
        await world.network.repair(node.machine)


@asynccontextmanager
async def noise(world: World, names: int, seconds: float, address: str = "") -> AsyncIterator[None]:
    """Invented nodes of this cluster on the network."""
    status = await (await world.cluster.formed()).status()
    assert status is not None
    process = await asyncio.create_subprocess_exec(
        "ip", "netns", "exec", "e", sys.executable, "-m", "faults.noise",
        status.cluster, str(names), str(seconds), *([address] if address else []),
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        async with asyncio.timeout(20):
            assert await process.stdout.readline() == b"announcing\n"
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        await process.wait()


async def stale_record(world: World) -> None:
    """Records of this cluster lead to an address where nobody is: they are dialled in vain, and disturb nobody."""
    _, victim = await member(world)
    hurt = now()
    async with noise(world, 5, 0.5, "10.77.0.99"):
        await restart(world, victim, VISIBLE_SECONDS)
        await pause(2.0)
    status = await victim.status()
    assert status is not None
    world.holds(
        "nobody became a member by a record", len(status.document.members) == 2, status.document.members
    )
    logs = "".join(node.log_path.read_text("utf-8") for node in world.cluster.nodes).splitlines()
    refused = [line for line in logs if "10.77.0.99" in line and "candidate refused" in line]
    world.holds("the log says that nobody answers there", refused, logs)
    led = [line for line in terms_led(world, hurt) if not line.startswith(victim.name)]
    world.holds("the coordinator stays", not led, led)


async def mdns_flood(world: World) -> None:
    """Thousands of invented names within seconds: memory stays, the cluster stays, a restarted node comes back."""
    leader, victim = await member(world)
    before = leader.process().memory_info().rss
    cpu = sum(leader.process().cpu_times()[:2])
    hurt = now()
    async with noise(world, FLOOD_NAMES, FLOOD_SECONDS):
        await restart(world, victim, HEAL_SECONDS)
        await pause(FLOOD_SECONDS - (now() - hurt))
        busy = sum(leader.process().cpu_times()[:2]) - cpu
        world.measure("the coordinator's share of a core in the flood", busy / (now() - hurt), unit="")
        status = await leader.status()
    assert status is not None
    beats = [n.heartbeat_ms for n in status.nodes if n.heartbeat_ms >= 0]
    world.measure("heartbeat's round trip in the flood", max(beats, default=0.0), target=250, unit="ms")
    grown = (leader.process().memory_info().rss - before) / 2**20
    world.measure(f"memory after {FLOOD_NAMES} names", max(grown, 0.0), target=40, unit="MiB more")
    world.holds("nobody became a member", len(status.document.members) == 2, status.document.members)
    world.holds("the coordinator stays", not terms_led(world, hurt), terms_led(world, hurt))


GROUP = Group(
    "neighbours",
    set_up,
    {
        "foreign-cluster": foreign_cluster,
        "mdns-blocked": mdns_blocked,
        "stale-mdns-record": stale_record,
        "mdns-flood": mdns_flood,
    },
    needs=("avahi-daemon", "avahi-browse", "dbus-daemon"),
)
