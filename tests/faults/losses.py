"""Losses in the middle of streams: five nodes of which three serve; the clients get every token all the same."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

from faults.cluster import eventually, now
from faults.results import LocalOutcomeWrongError
from faults.streams import account, compare, flowing, lose, served, undisturbed, waited
from faults.world import Group
from macmesh import AsyncClient
from macmesh_daemon.eventlog.records import Kind
from support.clients import issue_client

if TYPE_CHECKING:
    from faults.cluster import Node
    from faults.streams import Serving, Stream, Whole
    from faults.world import World

TOKENS = 240
#: From the loss of a node to the next token, with a tiny model whose weights are on every node.
PAUSE_SECONDS = 5.0
#: The node that coordinates is lost as well: a successor is elected first.
PAUSE_WITH_ELECTION_SECONDS = 6.5
RESTART_SECONDS = 10.0
_SEED = 4711

_expected: dict[str, Whole] = {}
_random = random.Random(_SEED)  # noqa: S311  a seeded choice of moments


async def set_up(world: World) -> None:
    """Five equal nodes and a model of three stages; what the streams are to give."""
    await world.cluster.prepare(5, stages=3)
    await world.cluster.start()
    leader = await world.cluster.formed()
    await world.cluster.load(leader)
    _expected.update(await undisturbed((await served(world)).head, TOKENS))


def a_token() -> int:
    """Where the change comes: at any token, but neither the first nor one of the last."""
    return _random.randrange(2, TOKENS // 2)


async def _lost(
    world: World, before: Serving, client: AsyncClient, victims: list[Node], target: float
) -> None:
    """Lose these nodes in the middle of streams, and start them again."""
    async with client, flowing(client, TOKENS, until_token=a_token()) as streams:
        hurt = lose(*victims)
    compare(world, streams, _expected)
    account(world, before, streams, hurt, target=target, lost=victims)
    world.holds("the clients were told of the pause", any(s.pauses for s in streams.values()))
    for victim in victims:
        await victim.wait(5)
    await world.cluster.start(victims)
    await served(world)


def _others(world: World, *but: Node) -> list[Node]:
    return [node for node in world.cluster.nodes if node not in but]


async def tail_killed(world: World) -> None:
    """SIGKILL the daemon and the worker of the last stage at a random token."""
    before = await served(world)
    victim = before.tail
    target = PAUSE_WITH_ELECTION_SECONDS if victim is before.leader else PAUSE_SECONDS
    await _lost(world, before, _others(world, victim)[0].client(), [victim], target)


async def head_killed(world: World) -> None:
    """SIGKILL the head, which schedules every stream; another node has the clients."""
    before = await served(world)
    victim = before.head
    target = PAUSE_WITH_ELECTION_SECONDS if victim is before.leader else PAUSE_SECONDS
    await _lost(world, before, _others(world, victim)[-1].client(), [victim], target)


async def api_node_killed(world: World) -> None:
    """SIGKILL a node that holds the clients' connections and a stage: the SDK goes on at another node."""
    before = await served(world)
    victim = before.order[1]
    target = PAUSE_WITH_ELECTION_SECONDS if victim is before.leader else PAUSE_SECONDS
    founder = world.cluster.nodes[0]
    addresses = [victim.address, *(node.address for node in _others(world, victim))]
    credentials = await issue_client(founder.socket_path, "user", addresses)
    client = AsyncClient(credentials=credentials)
    hurt_before = {node.node_id: len(node.records()) for node in world.cluster.nodes}
    async with client, flowing(client, TOKENS, until_token=a_token()) as streams:
        hurt = lose(victim)
    compare(world, streams, _expected)
    account(world, before, streams, hurt, target=target, lost=[victim])
    resumed = [
        record
        for node in _others(world, victim)
        for record in node.records()[hurt_before[node.node_id] :]
        if record.kind == Kind.ACCEPTED and record.facts.get("attempt")
    ]
    world.holds(
        "another node took every stream up", len({r.facts["request"] for r in resumed}) == len(streams)
    )
    await victim.wait(5)
    await victim.up()
    await served(world)


async def coordinator_and_stage_killed(world: World) -> None:
    """SIGKILL the coordinator and a node that serves at the same moment."""
    before = await served(world)
    stage = next(node for node in reversed(before.order) if node is not before.leader)
    victims = [before.leader, stage]
    await _lost(world, before, _others(world, *victims)[0].client(), victims, PAUSE_WITH_ELECTION_SECONDS)


async def two_of_five_killed(world: World) -> None:
    """SIGKILL two nodes that serve at once: three are left, as many as the model needs."""
    before = await served(world)
    victims = [node for node in before.order if node is not before.leader][:2]
    await _lost(world, before, _others(world, *victims)[0].client(), victims, PAUSE_SECONDS)


async def three_of_five_killed(world: World) -> None:
    """SIGKILL three: too few to decide and too small to serve, until one comes back. Then the streams go on."""
    before = await served(world)
    victims = list(before.order)
    first, *later = victims
    client = _others(world, *victims)[0].client()
    async with client, flowing(client, TOKENS, until_token=a_token()) as streams:
        hurt = lose(*victims)
        await waited(4.0)
        counts = {name: len(stream.token_ids) for name, stream in streams.items()}
        await waited(1.0)
        stood = counts == {name: len(stream.token_ids) for name, stream in streams.items()}
        world.holds("nothing comes while two nodes are left", stood, counts)
        await first.wait(5)
        await first.start()
        await first.ready(60)
    compare(world, streams, _expected)
    account(world, before, streams, hurt, target=None, lost=victims)
    world.holds("the clients were told of the pause", all(s.pauses for s in streams.values()))
    for victim in later:
        await victim.wait(5)
    await world.cluster.start(later)
    await served(world)


async def node_joins(world: World) -> None:
    """A node that was away comes in the middle of streams: nothing stops for it that need not."""
    before = await served(world)
    newcomer = next(node for node in world.cluster.nodes if node not in (*before.order, before.leader))
    await newcomer.stop()
    before = await served(world)
    began = now()

    async def join() -> float:
        await newcomer.up()
        await world.cluster.formed()
        joined = now()
        await waited(4.0)  # joins are taken up after a while
        return joined

    joining = asyncio.create_task(join(), name="join")
    rounds: list[dict[str, Stream]] = []
    async with before.head.client() as client:
        while not joining.done():
            async with flowing(client, TOKENS, until_token=2) as streams:
                rounds.append(streams)
    world.measure("start -> it is a member", await joining - began, target=RESTART_SECONDS)
    for streams in rounds:
        wrong = {name: len(s.token_ids) for name, s in streams.items() if s.whole != _expected[name]}
        if wrong:
            raise LocalOutcomeWrongError(f"streams differ from undisturbed ones: {wrong}")
    world.holds("every stream meanwhile has all tokens and the text of an undisturbed one", rounds)
    pauses = [s.pause_around(s.arrivals[0])[0] for streams in rounds for s in streams.values()]
    world.measure("streams meanwhile", 2 * len(rounds), unit="")
    world.measure("longest wait between two of their tokens", max(pauses), target=PAUSE_SECONDS)
    await served(world)


async def node_drained(world: World) -> None:
    """Drain a node that holds a stage: its layers go elsewhere, and no token is lost on the way."""
    before = await served(world)
    victim = next(node for node in reversed(before.order) if node is not before.leader)
    async with before.leader.client() as client:
        async with flowing(client, TOKENS, until_token=2) as streams:
            hurt = now()
            await client.drain(victim.node_id)
        compare(world, streams, _expected)

        async def gone() -> bool | None:
            status = await client.status()
            nodes = {node.member.node_id: node for node in status.nodes}
            return True if nodes[victim.node_id].drain == "drained" else None

        await eventually(gone, "the node is drained", 30)
        account(world, before, streams, hurt, target=PAUSE_SECONDS, needed_epoch=False)
        after = await served(world)
        world.holds("it serves no stage any more", victim not in after.order)
        await client.drain(victim.node_id, undo=True)
    await served(world)


GROUP = Group(
    "losses",
    set_up,
    {
        "tail-killed": tail_killed,
        "head-killed": head_killed,
        "api-node-killed": api_node_killed,
        "coordinator-and-stage-killed": coordinator_and_stage_killed,
        "two-of-five-killed": two_of_five_killed,
        "three-of-five-killed": three_of_five_killed,
        "node-joins": node_joins,
        "node-drained": node_drained,
    },
    unprivileged=True,
)
