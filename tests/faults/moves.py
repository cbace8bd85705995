"""The bytes that a change of plan moves: one of three nodes is lost, then a fourth joins."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from faults.cluster import CONTEXT_TOKENS, MODEL, believing, now
from faults.losses import PAUSE_SECONDS
from faults.streams import account, compare, flowing, lose, moved, served, undisturbed, waited
from faults.world import Group

if TYPE_CHECKING:
    from faults.streams import Stream, Whole
    from faults.world import World

TOKENS = 240
#: From the start of its daemon: it joins, is waited for whether more come, and gets its part.
JOIN_SECONDS = 20.0
#: With so slow a memory it pays to let every node have a part, even of the tiny model.
GB_PER_S = 0.05

_expected: dict[str, Whole] = {}


async def set_up(world: World) -> None:
    """Three nodes that serve, though two have room for the model; a fourth is not started yet."""
    settings = await believing(world.folder, GB_PER_S)
    await world.cluster.prepare(4, stages=2, bootstrap_expect=3, **settings)
    await world.cluster.start(world.cluster.nodes[:3])
    leader = await world.cluster.formed()
    async with leader.client() as client:
        await client.load(MODEL, context_tokens=CONTEXT_TOKENS, objective="throughput")
    _expected.update(await undisturbed((await served(world)).head, TOKENS))


async def one_of_three_lost(world: World) -> None:
    """SIGKILL one of three nodes that serve: the others read what only it had, and nothing else."""
    before = await served(world)
    world.holds("three nodes serve", len(before.order) == 3, before.order)
    victim = next(node for node in reversed(before.order) if node is not before.leader)
    client = next(node for node in before.order if node is not victim).client()
    async with client, flowing(client, TOKENS, until_token=20) as streams:
        hurt = lose(victim)
    compare(world, streams, _expected)
    account(world, before, streams, hurt, target=PAUSE_SECONDS, lost=[victim])
    await victim.wait(5)
    after = await served(world)
    world.holds("two nodes serve", len(after.order) == 2, after.order)


async def fourth_joins(world: World) -> None:
    """Start a node that was never there: it reads its part, and the others go on with what they have of theirs."""
    before = await served(world)
    newcomer = world.cluster.nodes[3]
    began = now()

    async def join() -> float:
        await newcomer.up()
        while (after := await served(world)).epoch == before.epoch:
            await waited(0.1)
        world.holds("the newcomer serves", newcomer in after.order, after.order)
        return now()

    joining = asyncio.create_task(join(), name="join")
    rounds: list[dict[str, Stream]] = []
    async with before.head.client() as client:
        while not joining.done():
            async with flowing(client, TOKENS) as streams:
                rounds.append(streams)
    for streams in rounds:
        compare(world, streams, _expected)
    world.measure("start of the node -> it serves", await joining - began, target=JOIN_SECONDS)
    moved(world, before, began)


GROUP = Group(
    "moves",
    set_up,
    {"one-of-three-lost": one_of_three_lost, "fourth-joins": fourth_joins},
    unprivileged=True,
)
