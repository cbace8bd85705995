"""Faults of the network: three machines on one switch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from faults.cluster import announced, eventually, now, told
from faults.streams import account, compare, flowing, served, undisturbed
from faults.world import Group
from macmesh_daemon.eventlog.records import Kind

if TYPE_CHECKING:
    from faults.cluster import Node
    from faults.world import World

DEAD_SECONDS = 4.0
TOKENS = 300
FAILOVER_SECONDS = 2.5
HEAL_SECONDS = 5.0
#: Three points are too many; each return is one, and points fade from the first second on.
FLAPS = 4


async def set_up(world: World) -> None:
    """Three nodes that know each other by mDNS and by seeds."""
    await world.cluster.prepare(3, lan=world.network, machines=["a", "b", "c"], mdns=True)
    await world.cluster.start()
    await world.cluster.formed()


async def members(world: World) -> tuple[Node, Node, Node]:
    """The coordinator and the two others."""
    leader = await world.cluster.formed()
    first, second = (n for n in world.cluster.nodes if n is not leader)
    return leader, first, second


async def healed(world: World, what: str = "healed -> one cluster", target: float = HEAL_SECONDS) -> None:
    """Measure until all follow one coordinator."""
    began = now()
    await world.cluster.formed()
    world.measure(what, now() - began, target=target)


async def pause(seconds: float) -> None:
    """Let a fault last: what must not happen needs time in which it could."""
    until = now() + seconds

    async def over() -> bool | None:
        return True if now() >= until else None

    await eventually(over, "the time is over", seconds + 5)


def terms_led(world: World, since: float) -> list[str]:
    """Who began to coordinate since then."""
    return [
        f"{node.name} {record.facts['ballot']}"
        for node in world.cluster.everybody
        for record in node.records()
        if record.mono >= since and record.kind == Kind.LEADS
    ]


async def partition_of_coordinator(world: World) -> None:
    """Cut the coordinator off: it steps down, the majority elects, and they become one again."""
    leader, *others = await members(world)
    hurt = now()
    await world.network.unplug(leader.machine)
    elected = await told(others, announced("coordinator elected"), "a successor", since=hurt)
    world.measure("cut off -> successor elected", elected.mono - hurt, target=FAILOVER_SECONDS)
    led = await told([leader], lambda r: r.kind == Kind.LED, "it stepped down", since=hurt)
    world.measure("cut off -> the old one steps down", led.mono - hurt, target=1.5)
    overlap = led.mono - elected.mono
    world.holds("the old one had stepped down before its successor led", overlap < 0, f"{overlap:.2f} s")
    await world.network.plug(leader.machine)
    await healed(world)


async def partition_of_member(world: World) -> None:
    """Cut a member off: dead without a closed connection; it follows nobody and leads nobody."""
    leader, victim, _ = await members(world)
    hurt = now()
    await world.network.unplug(victim.machine)
    dead = await told([leader], announced("member dead", node_id=victim.node_id), "dead", since=hurt)
    world.measure("cut off -> dead", dead.mono - hurt, target=DEAD_SECONDS)
    lost = await told([victim], announced("coordinator lost"), "coordinator lost", since=hurt)
    world.measure("cut off -> it knows that nobody leads it", lost.mono - hurt, target=FAILOVER_SECONDS)
    await pause(2.0)
    await world.network.plug(victim.machine)
    await healed(world)
    world.holds("nobody was elected for it", not terms_led(world, hurt), terms_led(world, hurt))


async def one_way_cut(world: World) -> None:
    """A member hears nothing of the coordinator, which hears it: no new term, and all is well once it heals."""
    leader, victim, _ = await members(world)
    hurt = now()
    await world.network.deafen(victim.machine, leader.machine)
    gone = await told(
        [leader],
        lambda r: (
            announced("member cut", node_id=victim.node_id)(r)
            or announced("member dead", node_id=victim.node_id)(r)
        ),
        "the coordinator knows",
        since=hurt,
    )
    world.measure("deaf -> cut off by the coordinator's verdict", gone.mono - hurt, target=DEAD_SECONDS)
    await pause(3.0)
    world.holds("the coordinator stays", not terms_led(world, hurt), terms_led(world, hurt))
    await world.network.repair(victim.machine)
    await healed(world)
    world.holds("and after healing", not terms_led(world, hurt), terms_led(world, hurt))


async def bridge(world: World) -> None:
    """A-B-C without A-C: C, cut off from the coordinator A only, disturbs nobody; it is cut, not dead."""
    leader, _, victim = await members(world)
    hurt = now()
    await world.network.deafen(victim.machine, leader.machine)
    await world.network.deafen(leader.machine, victim.machine)
    cut = await told([leader], announced("member cut", node_id=victim.node_id), "cut", since=hurt)
    world.measure("A-C cut -> C counts as cut off", cut.mono - hurt, target=DEAD_SECONDS)
    await pause(4.0)
    world.holds("the coordinator stays", not terms_led(world, hurt), terms_led(world, hurt))
    for node in (leader, victim):
        await world.network.repair(node.machine)
    await healed(world)


async def loss(world: World) -> None:
    """Every machine loses 20 % of what it is sent for ten seconds: nobody is declared dead."""
    await members(world)
    hurt = now()
    for node in world.cluster.nodes:
        await world.network.lose(node.machine, 20)
    await pause(10.0)
    led = terms_led(world, hurt)
    world.measure("changes of coordinator in 10 s", len(led), target=0, limit=1, unit="")
    dead = [
        r for n in world.cluster.nodes for r in n.records() if r.mono >= hurt and announced("member dead")(r)
    ]
    world.holds("nobody is declared dead", not dead, dead)
    newcomer = (await members(world))[-1]
    await newcomer.kill()
    began = now()
    await newcomer.up()
    up = now()
    await world.cluster.formed()
    world.measure("restart at 20 % loss: answering -> member again", now() - up, target=3.0)
    world.measure("restart -> member again", now() - began)
    for node in world.cluster.nodes:
        await world.network.repair(node.machine)
    await healed(world)


async def ip_change(world: World) -> None:
    """A member gets another address: the others reach it there, without a restart."""
    leader, victim, _ = await members(world)
    hurt = now()
    address = await world.network.readdress(victim.machine, 33)

    async def moved() -> bool | None:
        status = await leader.status()
        if status is None:
            return None
        line = next(n for n in status.nodes if n.member.node_id == victim.node_id)
        has = any(a.startswith(f"{address}:") for a in line.member.addresses)
        return True if has and line.liveness == "alive" else None

    await eventually(moved, "alive at its new address", 20)
    world.measure("new address -> alive there", now() - hurt, target=HEAL_SECONDS)
    await healed(world, "-> one cluster")
    world.holds("the coordinator stays", not terms_led(world, hurt), terms_led(world, hurt))


async def partition_while_serving(world: World) -> None:
    """Cut a stage off in the middle of a stream: a plan without it, and after healing nothing of the old epoch."""
    leader, *others = await members(world)
    await world.cluster.load(leader)
    status = await world.cluster.serving(leader, 60)
    stages = [s.node_id for s in status.document.plan.deployments[0].stages]
    victim = next(n for n in others if n.node_id in stages)
    other = next(n for n in others if n is not victim)
    expected = await undisturbed(other, TOKENS)
    before = await served(world)
    client = other.client()
    async with client, flowing(client, TOKENS, until_token=20) as streams:
        hurt = now()
        await world.network.unplug(victim.machine)
    compare(world, streams, expected)
    account(world, before, streams, hurt, target=DEAD_SECONDS + 5.0, lost=[victim])
    committed = await told([leader], announced("plan committed"), "a plan without it", since=hurt)
    world.measure("cut off -> plan without it committed", committed.mono - hurt, target=DEAD_SECONDS + 1.0)
    await world.network.plug(victim.machine)
    await healed(world)

    async def obsolete_worker_gone() -> bool | None:
        seen = await leader.status()
        epoch = seen.document.plan.epoch if seen is not None else None
        ends = {Kind.WORKER_STOPPED, Kind.WORKER_RESTS}
        old = [r for r in victim.records() if r.kind in ends and r.mono > hurt]
        return True if epoch is not None and old else None

    healed_at = now()
    await eventually(obsolete_worker_gone, "the worker of the old epoch is gone", 30)
    world.measure("-> the old epoch's worker is gone", max(0.0, now() - healed_at), target=HEAL_SECONDS)
    await world.cluster.serving(victim, 60)


async def flapping_link(world: World) -> None:
    """A member's link comes and goes: after four returns it is left out of new plans, and told so."""
    leader, *others = await members(world)
    status = await leader.status()
    deployments = status.document.plan.deployments if status is not None else ()
    stages = {s.node_id for d in deployments for s in d.stages}
    victim = next((n for n in others if n.node_id in stages), others[0])
    hurt = now()
    returns = 0
    for _ in range(FLAPS):
        down = now()
        await world.network.unplug(victim.machine)
        await told([leader], announced("member dead", node_id=victim.node_id), "dead", since=down)
        up = now()
        await world.network.plug(victim.machine)
        await told([leader], announced("member alive", node_id=victim.node_id), "alive", since=up)
        returns += 1
        if any(r.mono >= hurt and announced("member flaps")(r) for r in leader.records()):
            break
    flaps = await told([leader], announced("member flaps", node_id=victim.node_id), "flaps", since=hurt)
    world.measure("returns until it is left out of plans", returns, target=FLAPS, unit="")
    world.measure("first cut -> left out of plans", flaps.mono - hurt)
    plans = sum(r.mono >= hurt and announced("plan committed")(r) for r in leader.records())
    world.measure("plan changes by the flapping node", plans, target=1, limit=1, unit="")
    status = await leader.status()
    lines = [h for h in (status.health if status else ()) if victim.node_id[:8] in h and "left out" in h]
    world.holds("`status` says why", lines, status)
    world.holds("the coordinator stays", not terms_led(world, hurt), terms_led(world, hurt))
    await healed(world)


GROUP = Group(
    "links",
    set_up,
    {
        "partition-of-coordinator": partition_of_coordinator,
        "partition-of-member": partition_of_member,
        "one-way-cut": one_way_cut,
        "bridge": bridge,
        "loss-20": loss,
        "ip-change": ip_change,
        "partition-while-serving": partition_while_serving,
        "flapping-link": flapping_link,
    },
)
