"""Even splits: two and four nodes, and the tie-breaker that decides."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from faults.cluster import announced, eventually, now, told
from faults.links import FAILOVER_SECONDS, HEAL_SECONDS, healed, pause
from faults.processes import frozen
from faults.world import Group
from macmesh_daemon.eventlog.records import Kind

if TYPE_CHECKING:
    from faults.cluster import Node
    from faults.world import World


async def set_up_four(world: World) -> None:
    """Four nodes, all voters; one of them breaks ties."""
    names = ["a", "b", "c", "d"]
    await world.cluster.prepare(4, lan=world.network, machines=names)
    await world.cluster.start()
    await world.cluster.formed()


async def tie_breaker_of(world: World) -> Node:
    """The node with the extra vote."""

    async def named() -> Node | None:
        leader = await world.cluster.formed()
        status = await leader.status()
        policy = status.document.policy if status is not None else None
        if policy is None or not policy.tie_breaker_votes:
            return None
        return world.cluster.named(policy.tie_breaker_node_id)

    return await eventually(named, "a tie-breaker", 20)


async def no_quorum(node: Node) -> bool | None:
    """True once a node says that it knows of no quorum."""
    status = await node.status()
    return True if status is not None and not status.has_quorum else None


async def leads(nodes: list[Node]) -> Node | None:
    """The one that all of these follow with a quorum."""
    statuses = [await node.status() for node in nodes]
    found = {s.coordinator_node_id if s is not None and s.has_quorum else "" for s in statuses}
    ids = {node.node_id for node in nodes}
    if len(found) != 1 or not found <= ids:
        return None
    return next(node for node in nodes if node.node_id in found)


async def even_split(world: World) -> None:
    """Four nodes, two and two: the half with the tie-breaker leads, the other does nothing."""
    tie_breaker = await tie_breaker_of(world)
    others = [n for n in world.cluster.nodes if n is not tie_breaker]
    # The coordinator is to be on the losing side, so that there is something to decide.
    began = now()
    if await world.cluster.formed() is tie_breaker:
        async with frozen(tie_breaker):
            await told(others, announced("coordinator elected"), "a successor", since=began)
    leader = await world.cluster.formed()
    losing = sorted(others, key=lambda n: n is not leader)[:2]
    winning = [n for n in world.cluster.nodes if n not in losing]
    world.holds("the coordinator is in the half without the tie-breaker", leader in losing)
    hurt = now()
    for one in losing:
        for other in winning:
            await world.network.deafen(one.machine, other.machine)
            await world.network.deafen(other.machine, one.machine)
    cut = now()

    async def decided() -> Node | None:
        return await leads(winning)

    await eventually(decided, "the half with the tie-breaker has a coordinator", 20)
    world.measure("split -> the half with the tie-breaker is led", now() - cut, target=FAILOVER_SECONDS)
    for node in losing:
        await eventually(lambda node=node: no_quorum(node), "the other half knows", 20)  # type: ignore[misc]
    world.measure("split -> the other half knows of no quorum", now() - cut, target=FAILOVER_SECONDS)
    await pause(4.0)
    led = [r for n in losing for r in n.records() if r.mono > hurt and r.kind == Kind.LEADS]
    world.holds("nobody of the other half is elected", not led, led)
    for node in world.cluster.nodes:
        await world.network.repair(node.machine)
    await healed(world)


async def set_up_two(world: World) -> None:
    """Two nodes; the first breaks the tie."""
    await world.cluster.prepare(2, stages=1)
    await world.cluster.start()
    await world.cluster.formed()


async def other_lost(world: World) -> None:
    """Of two nodes the one without the extra vote dies: the tie-breaker leads alone, at once or after an election."""
    tie_breaker = await tie_breaker_of(world)
    [other] = [n for n in world.cluster.nodes if n is not tie_breaker]
    hurt = now()
    other.signal(signal.SIGKILL)

    async def led() -> Node | None:
        status = await tie_breaker.status()
        heard = status is not None and status.coordinator_node_id == tie_breaker.node_id and status.has_quorum
        dead = status is not None and any(
            n.member.node_id == other.node_id and n.liveness == "dead" for n in status.nodes
        )
        return tie_breaker if heard and dead else None

    await eventually(led, "the tie-breaker leads alone", 20)
    world.measure("kill -> the tie-breaker leads, the other counts as dead", now() - hurt, target=4.5 + 2.0)
    async with tie_breaker.client() as client:
        epoch = await client.unload(timeout_seconds=10)
    world.holds("it can change the plan", epoch, epoch)
    await other.wait(5)
    await other.up()
    await healed(world, "the other answers again -> one cluster", HEAL_SECONDS)


async def tie_breaker_lost(world: World) -> None:
    """Of two nodes the tie-breaker dies: the other does not elect itself; with it back, all is well."""
    tie_breaker = await tie_breaker_of(world)
    [other] = [n for n in world.cluster.nodes if n is not tie_breaker]
    hurt = now()
    tie_breaker.signal(signal.SIGKILL)
    await eventually(lambda: no_quorum(other), "the other knows of no quorum", 20)
    world.measure("kill -> the other knows of no quorum", now() - hurt, target=FAILOVER_SECONDS)
    await pause(5.0)
    led = [r for r in other.records() if r.mono > hurt and r.kind == Kind.LEADS]
    world.holds("the other does not elect itself", not led, led)
    await tie_breaker.wait(5)
    await tie_breaker.up()
    await healed(world, "the tie-breaker answers again -> one cluster", HEAL_SECONDS)


async def served_without_quorum(world: World) -> None:
    """Of two nodes with a model the tie-breaker dies: the other serves on where it had the stage, else for itself."""
    tie_breaker = await tie_breaker_of(world)
    [other] = [n for n in world.cluster.nodes if n is not tie_breaker]
    status = await world.cluster.load(tie_breaker)
    had_stage = status.document.plan.deployments[0].stages[0].node_id == other.node_id
    hurt = now()
    tie_breaker.signal(signal.SIGKILL)
    await tie_breaker.wait(5)

    async def serves() -> bool | None:
        seen = await other.status()
        alone = seen is not None and any("plans for itself only" in line for line in seen.health)
        ready = seen is not None and seen.serving_state == "ready"
        return True if ready and not (seen and seen.has_quorum) and alone is not had_stage else None

    await eventually(serves, "the other serves without a quorum", 40)
    what = "its part of the plan goes on" if had_stage else "it plans for itself after 15 s"
    world.measure(f"kill -> the other serves alone: {what}", now() - hurt, target=5.0 if had_stage else 25.0)
    async with other.client() as client:
        done = await client.complete("A plan is", max_tokens=8, temperature=0.0, ignore_eos=True)
    world.holds("it generates", len(done.token_ids) == 8, done)
    led = [r for r in other.records() if r.mono > hurt and r.kind == Kind.LEADS]
    world.holds("it does not elect itself", not led, led)
    await tie_breaker.up()
    await healed(world, "the tie-breaker answers again -> one cluster", HEAL_SECONDS)
    await world.cluster.serving(other, 60)
    seen = await other.status()
    lines = [h for h in (seen.health if seen else ()) if "itself" in h]
    world.holds("and it is served by the cluster again", seen is not None and not lines, lines)


async def coordinator_leaves(world: World) -> None:
    """SIGTERM one of two: it says goodbye, and the other knows at once."""
    tie_breaker = await tie_breaker_of(world)
    [other] = [n for n in world.cluster.nodes if n is not tie_breaker]
    leader = await world.cluster.formed()
    began = now()
    other.signal(signal.SIGTERM)
    if leader is not other:
        left = await told([tie_breaker], announced("member left", node_id=other.node_id), "left", since=began)
        world.measure("SIGTERM -> the other counts as gone", left.mono - began, target=0.5)
    else:
        elected = await told([tie_breaker], announced("coordinator elected"), "elected", since=began)
        world.measure("SIGTERM -> the other has taken over", elected.mono - began, target=0.5)
    code = await other.wait(12)
    world.holds("it ends in order", code == 0, code)
    world.measure("SIGTERM -> the process is gone", now() - began, target=10.0)

    async def leads_alone() -> Node | None:
        return await leads([tie_breaker])

    await eventually(leads_alone, "the tie-breaker leads", 20)
    await other.up()
    await healed(world, "back -> one cluster", HEAL_SECONDS)


FOUR = Group("four", set_up_four, {"even-split": even_split})
TWO = Group(
    "two",
    set_up_two,
    {
        "two-nodes-other-lost": other_lost,
        "two-nodes-tie-breaker-lost": tie_breaker_lost,
        "two-nodes-served-without-quorum": served_without_quorum,
        "two-nodes-goodbye": coordinator_leaves,
    },
    unprivileged=True,
)
