"""Daemons that are killed, frozen or hung."""

from __future__ import annotations

import asyncio
import signal
import sys
from contextlib import asynccontextmanager
from statistics import median
from typing import TYPE_CHECKING

from faults.cluster import announced, eventually, now, told
from faults.world import Group
from macmesh_daemon.eventlog.records import Kind

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from faults.cluster import Node
    from faults.world import World
    from macmesh_daemon.eventlog.records import Record

DEAD_SECONDS = 4.0
#: A killed process closes its connections and its machine refuses others: it need not be waited for in silence.
SUSPECT_SECONDS, KILLED_DEAD_SECONDS = 0.05, 1.0
FAILOVER_SECONDS = 2.5
NEW_PLAN_SECONDS = 3.0
ROUNDS = 8
#: A daemon imports for some seconds on a busy machine before it can say anything.
RESTART_SECONDS = 10.0


async def set_up(world: World) -> None:
    """Three equal nodes that serve a model of two stages."""
    cluster = world.cluster
    await cluster.prepare(3)
    await cluster.start()
    await cluster.load(await cluster.formed())


async def plan_without(world: World, victim: Node, hurt: float, others: list[Node]) -> None:
    """Measure when a plan without the victim is committed and when it is served."""

    def committed(record: Record) -> bool:
        return record.kind == Kind.WORKER_STARTED and record.mono > hurt

    async def ready() -> bool | None:
        for node in others:
            status = await node.status()
            if status is None or status.serving_state != "ready":
                return None
            stages = status.document.plan.deployments[0].stages
            if victim.node_id in {s.node_id for s in stages}:
                return None
        return True

    await told(others, committed, "workers of a plan without the victim", since=hurt)
    await eventually(ready, "served by the others", 60)
    world.measure("-> ready again without it", now() - hurt, target=DEAD_SECONDS + 4.0)


async def in_plan(world: World, leader: Node, *, but_leader: bool) -> Node:
    """A node that holds a stage."""
    status = await world.cluster.serving(leader, 60)
    stages = [s.node_id for s in status.document.plan.deployments[0].stages]
    return next(world.cluster.named(n) for n in stages if not but_leader or n != leader.node_id)


async def restarted(world: World, victim: Node) -> None:
    """Start the victim again and wait until all is well."""
    began = now()
    await victim.up()
    leader = await world.cluster.formed()
    world.measure("restart -> alive again", now() - began, target=RESTART_SECONDS)
    await world.cluster.serving(leader, 60)


async def member_killed(world: World) -> None:
    """SIGKILL a member that holds a stage: suspect, dead, and a plan without it."""
    leader = await world.cluster.formed()
    victim = await in_plan(world, leader, but_leader=True)
    hurt = now()
    victim.signal(signal.SIGKILL)
    suspect = await told([leader], announced("member suspect", node_id=victim.node_id), "suspect", since=hurt)
    world.measure("SIGKILL -> suspect", suspect.mono - hurt, target=SUSPECT_SECONDS)
    dead = await told([leader], announced("member dead", node_id=victim.node_id), "dead", since=hurt)
    world.measure("-> dead", dead.mono - hurt, target=KILLED_DEAD_SECONDS)
    committed = await told([leader], announced("plan committed"), "plan committed", since=hurt)
    world.measure("dead -> plan without it committed", committed.mono - dead.mono, target=NEW_PLAN_SECONDS)
    others = [n for n in world.cluster.nodes if n is not victim]
    await plan_without(world, victim, hurt, others)
    await victim.wait(5)
    await restarted(world, victim)


async def coordinator_killed(world: World) -> None:
    """SIGKILL the coordinator: a successor is elected, and where it held a stage a plan without it follows."""
    leader = await world.cluster.formed()
    await world.cluster.serving(leader, 60)
    others = [n for n in world.cluster.nodes if n is not leader]
    hurt = now()
    leader.signal(signal.SIGKILL)
    elected = await told(others, announced("coordinator elected"), "a successor", since=hurt)
    world.measure("SIGKILL -> successor elected", elected.mono - hurt, target=FAILOVER_SECONDS)
    for node in others:
        following = await told(
            [node],
            lambda r: (
                announced("coordinator followed")(r)
                or announced("coordinator elected")(r)
                or r.kind == Kind.LEADS
            ),
            "everybody follows",
            since=hurt,
        )
    world.measure("-> all others follow it", following.mono - hurt, target=FAILOVER_SECONDS + 0.5)
    dead = await told(others, announced("member dead", node_id=leader.node_id), "dead", since=hurt)
    world.measure(
        "-> the old one counts as dead", dead.mono - hurt, target=FAILOVER_SECONDS + KILLED_DEAD_SECONDS
    )
    await plan_after_coordinator(world, leader, hurt, others)
    await leader.wait(5)
    await restarted(world, leader)


async def plan_after_coordinator(world: World, lost: Node, hurt: float, others: list[Node]) -> None:
    """Measure until the others serve, with or without a new plan."""

    async def ready() -> bool | None:
        status = await others[0].status()
        if status is None or status.serving_state != "ready" or not status.document.plan.deployments:
            return None
        stages = {s.node_id for s in status.document.plan.deployments[0].stages}
        return True if lost.node_id not in stages else None

    await eventually(ready, "served by the others", 60)
    world.measure("-> ready without it", now() - hurt, target=FAILOVER_SECONDS + KILLED_DEAD_SECONDS + 4.0)


async def member_frozen(world: World) -> None:
    """SIGSTOP a member's daemon: dead without a closed connection; SIGCONT brings it back."""
    await _silence(world, frozen)


async def daemon_hung(world: World) -> None:
    """Stop the event loop's thread only: gRPC's own threads go on answering TCP and HTTP/2 pings."""
    await _silence(world, hung)


async def _silence(world: World, fault: Callable[[Node], AbstractAsyncContextManager[None]]) -> None:
    leader = await world.cluster.formed()
    await world.cluster.serving(leader, 60)
    victim = next(n for n in world.cluster.nodes if n is not leader)
    hurt = now()
    async with fault(victim):
        suspect = await told(
            [leader], announced("member suspect", node_id=victim.node_id), "suspect", since=hurt
        )
        world.measure("stopped -> suspect", suspect.mono - hurt, target=1.5)
        dead = await told([leader], announced("member dead", node_id=victim.node_id), "dead", since=hurt)
        world.measure("-> dead", dead.mono - hurt, target=DEAD_SECONDS)
        goes_on = now()
    await world.cluster.formed()
    world.measure("goes on -> alive again", now() - goes_on, target=5.0)
    again = [r for r in leader.records() if r.mono >= hurt and r.kind == Kind.LED]
    world.holds("the coordinator stays", not again, again)
    await world.cluster.serving(leader, 60)


async def coordinator_frozen(world: World) -> None:
    """SIGSTOP one coordinator after the other: each time a successor, and on SIGCONT the old one follows it."""
    failovers, healings, steps_down = [], [], []
    for _ in range(ROUNDS):
        leader = await world.cluster.formed()
        others = [n for n in world.cluster.nodes if n is not leader]
        hurt = now()
        async with frozen(leader):
            elected = await told(others, announced("coordinator elected"), "a successor", since=hurt)
            goes_on = now()
        led = await told([leader], lambda r: r.kind == Kind.LED, "the old one stepped down", since=goes_on)
        await world.cluster.formed()
        failovers.append(elected.mono - hurt)
        steps_down.append(led.mono - goes_on)
        healings.append(now() - goes_on)
    world.measure(f"SIGSTOP -> successor elected, median of {ROUNDS}", median(failovers), target=1.3)
    world.measure("the longest", max(failovers), target=FAILOVER_SECONDS)
    world.measure("SIGCONT -> the old one steps down, the longest", max(steps_down), target=1.0)
    world.measure("-> one cluster, the longest", max(healings), target=5.0)


@asynccontextmanager
async def frozen(node: Node) -> AsyncIterator[None]:
    """A daemon that is stopped as a whole."""
    node.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        node.signal(signal.SIGCONT)


@asynccontextmanager
async def hung(node: Node) -> AsyncIterator[None]:
    """A daemon whose main thread stands still, and no other."""
    holder = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "faults.hang",
        str(node.pid),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert holder.stdout is not None
    assert holder.stdin is not None
    try:
        async with asyncio.timeout(10):
            line = await holder.stdout.readline()
        assert line == b"stopped\n", line
        yield
    finally:
        holder.stdin.close()
        async with asyncio.timeout(10):
            await holder.wait()


GROUP = Group(
    "processes",
    set_up,
    {
        "member-killed": member_killed,
        "coordinator-killed": coordinator_killed,
        "member-frozen": member_frozen,
        "coordinator-frozen": coordinator_frozen,
        "daemon-hung": daemon_hung,
    },
    unprivileged=True,
)
