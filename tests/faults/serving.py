"""Faults while a model is served: the coordinator holds no stage, two other nodes do."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
import time
from contextlib import aclosing
from typing import TYPE_CHECKING

from faults.cluster import announced, eventually, now, told
from faults.links import FAILOVER_SECONDS
from faults.results import LocalOutcomeWrongError
from faults.streams import account, compare, flowing, lose, served, undisturbed, waited
from faults.world import Group
from macmesh import MacmeshError
from macmesh_daemon.eventlog.records import Kind

if TYPE_CHECKING:
    from faults.cluster import Node
    from faults.streams import Whole
    from faults.world import World

STEP_DEADLINE_SECONDS = 2.0
LONG_TOKENS = 1900
TOKENS = 300

_expected: dict[str, Whole] = {}


async def set_up(world: World) -> None:
    """Three nodes; the founder has no room for a stage and coordinates, the others serve."""
    cluster = world.cluster
    await cluster.prepare(
        3,
        overrides={0: {"usable_bytes": 1 << 20}},
        bootstrap_expect=1,
        step_deadline_seconds=STEP_DEADLINE_SECONDS,
    )
    founder, *others = cluster.nodes
    await founder.up()
    await told([founder], announced("coordinator elected"), "the founder leads", since=0)
    await cluster.start(others)
    await cluster.formed()
    await cluster.load(founder)
    await cluster.serving(others[0])
    _expected.update(await undisturbed(others[0], TOKENS))


async def _stream(node: Node, arrivals: list[tuple[float, int]], max_tokens: int = LONG_TOKENS) -> None:
    """Generate, and note when each token came."""
    async with node.client() as client:
        generation = client.generate("A plan is", max_tokens=max_tokens, ignore_eos=True, temperature=0.0)
        async with aclosing(generation) as chunks:
            async for chunk in chunks:
                arrivals.extend((time.monotonic(), token) for token in chunk.token_ids)


async def _flowing(arrivals: list[tuple[float, int]], stream: asyncio.Task[None]) -> None:
    async def look() -> bool | None:
        if stream.done():
            await stream
            raise LocalOutcomeWrongError("the stream ended before the fault")
        return True if len(arrivals) > 8 else None

    await eventually(look, "tokens flow", 30)


async def _cancelled(stream: asyncio.Task[None]) -> None:
    """End a stream, as a client does that has enough; what had ended it before is raised."""
    if not stream.done():
        stream.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await stream


async def coordinator_killed(world: World) -> None:
    """SIGKILL the coordinator while others serve: their workers keep their process ids, the stream goes on."""
    cluster = world.cluster
    founder, first, second = cluster.nodes
    world.holds("the founder coordinates and serves nothing", await cluster.formed() is founder)
    pids = [node.worker().pid for node in (first, second)]

    arrivals: list[tuple[float, int]] = []
    stream = asyncio.create_task(_stream(first, arrivals), name="stream")
    await _flowing(arrivals, stream)
    killed, killed_monotonic = now(), time.monotonic()
    founder.signal(signal.SIGKILL)

    async def successor() -> str | None:
        status = await first.status()
        found = status.coordinator_node_id if status is not None and status.has_quorum else ""
        return found if found and found != founder.node_id else None

    leader = cluster.named(await eventually(successor, "`status` shows another coordinator", 20))
    world.measure("kill -> `status` elsewhere shows the new coordinator", now() - killed, target=2.5)
    shown = time.monotonic()
    elected = await told([leader], announced("coordinator elected"), "elected", since=killed)
    world.measure("kill -> coordinator elected", elected.mono - killed, target=2.5)

    async def flows_on() -> bool | None:
        return True if stream.done() or arrivals[-1][0] > shown + 1.0 else None

    await eventually(flows_on, "tokens after the election", 30)
    world.holds("the stream flows on after the election", arrivals[-1][0] > shown, "it ended before")
    await _cancelled(stream)
    gaps = [b - a for (a, _), (b, _) in itertools.pairwise(arrivals)]
    world.measure("longest wait between two tokens of the stream", max(gaps), target=1.0)
    world.measure("tokens after the kill", sum(t > killed_monotonic for t, _ in arrivals), unit="")
    undisturbed: list[tuple[float, int]] = []
    await _stream(first, undisturbed, max_tokens=len(arrivals))
    world.holds(
        "the stream has the tokens of an undisturbed one",
        [t for _, t in arrivals] == [t for _, t in undisturbed],
    )
    world.holds("both workers keep their process ids", pids == [n.worker().pid for n in (first, second)])
    await founder.wait(5)
    began = now()
    await founder.up()
    await cluster.formed()
    world.measure("start of the killed daemon -> member again", now() - began, target=10)
    world.holds("its return stops no worker", pids == [n.worker().pid for n in (first, second)])


async def _lose_worker(world: World, number: signal.Signals, failure_target: float) -> None:
    before = await served(world)
    client = before.head.client()
    async with client, flowing(client, TOKENS, until_token=20) as streams:
        hurt = now()
        before.tail.worker().send_signal(number)
    compare(world, streams, _expected)
    account(world, before, streams, hurt, target=failure_target + 4.0, lost=[before.tail])
    failed = await told(
        list(before.order), lambda r: r.kind == Kind.WORKER_FAILED, "worker failed", since=hurt
    )
    world.measure("-> a node reports its worker as failed", failed.mono - hurt, target=failure_target)
    world.holds("the clients were told of the pause", all(s.pauses for s in streams.values()))
    await served(world)


async def worker_killed(world: World) -> None:
    """SIGKILL a worker in the middle of a generation: the plan is made anew, and the stream goes on."""
    await _lose_worker(world, signal.SIGKILL, 1.0)


async def worker_frozen(world: World) -> None:
    """SIGSTOP a worker in the middle of a generation: the step's deadline ends the run, and the stream goes on."""
    await _lose_worker(world, signal.SIGSTOP, 2 * STEP_DEADLINE_SECONDS + 1.0)


async def too_small(world: World) -> None:
    """SIGKILL a node that serves where no other has room: refused with the reason, until it returns."""
    before = await served(world)
    victim = before.tail
    others = [node for node in world.cluster.nodes if node is not victim]
    target = 2.0 if before.leader in others else 2.0 + FAILOVER_SECONDS
    async with others[0].client() as client, flowing(client, TOKENS, until_token=20) as streams:
        hurt = lose(victim)
        refused = await told(others, announced("plan refused"), "refused", since=hurt)
        world.measure("SIGKILL -> the plan is refused", refused.mono - hurt, target=target)
        await waited(2.0)
        status = await others[0].status()
        state = status.serving_state if status is not None else ""
        world.holds("`status` says that it is not served", state != "ready", state)
        back = now()
        await victim.wait(5)
        await victim.up()
    compare(world, streams, _expected)
    account(world, before, streams, hurt, target=None, lost=[victim])
    reasons = {reason for stream in streams.values() for reason in stream.pauses}
    world.holds("the clients were told that the model does not fit", "DOES_NOT_FIT" in reasons, reasons)
    resumed = max(stream.pause_around(hurt)[1] for stream in streams.values())
    world.measure("start of the node -> next token", resumed - back, target=15.0)
    await served(world)


async def two_of_three_lost(world: World) -> None:
    """Two of three daemons die: no quorum, no coordinator, no change; both back, all is as before."""
    cluster = world.cluster
    leader = await cluster.formed()
    [survivor, *lost] = sorted(cluster.nodes, key=lambda n: n is leader)
    hurt = now()
    for node in lost:
        node.signal(signal.SIGKILL)

    async def without_quorum() -> bool | None:
        status = await survivor.status()
        return True if status is not None and not status.has_quorum else None

    await eventually(without_quorum, "the survivor knows that there is no quorum", 20)
    world.measure("kill -> the survivor says that it has no quorum", now() - hurt, target=2.5)
    try:
        async with survivor.client() as client:
            await client.unload(timeout_seconds=4)
        raise LocalOutcomeWrongError("a node without a quorum changed the plan")
    except MacmeshError as error:
        world.holds("a change is refused, with a reason", error.reason, error)
    window = now() + 4.0  # two election timeouts: had it wanted to lead, it would

    async def waited() -> bool | None:
        return True if now() > window else None

    await eventually(waited, "the window's end", 10)
    led = [r for r in survivor.records() if r.mono >= hurt and r.kind == Kind.LEADS]
    world.holds("the survivor does not elect itself", not led, led)
    for node in lost:
        await node.wait(5)
    began = now()
    await cluster.start(lost)
    back = await cluster.formed()
    world.measure("start of both -> one cluster", now() - began, target=10)
    await cluster.serving(back, 60)


GROUP = Group(
    "serving",
    set_up,
    {
        "coordinator-killed-while-serving": coordinator_killed,
        "worker-killed": worker_killed,
        "worker-frozen": worker_frozen,
        "too-small": too_small,
        "two-of-three-lost": two_of_three_lost,
    },
    unprivileged=True,
)
