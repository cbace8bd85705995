"""Losses in the middle of streams of a tensor-parallel plan: the next plan goes on with the same tokens."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from faults.cluster import CONTEXT_TOKENS, MODEL, believing, now
from faults.streams import account, compare, flowing, lose, served, undisturbed
from faults.world import Group

if TYPE_CHECKING:
    from collections.abc import Callable

    from faults.cluster import Node
    from faults.streams import Serving, Whole
    from faults.world import World

TOKENS = 160
#: Parts of layers are of no use to the next plan: its processes are new, and each imports MLX.
PAUSE_SECONDS = 10.0
#: With so slow a memory half of every layer's bytes outweighs the sums, even of the tiny model.
GB_PER_S = 0.05

_expected: dict[str, Whole] = {}


async def set_up(world: World) -> None:
    """Three equal nodes, of which two share every layer."""
    settings = await believing(world.folder, GB_PER_S)
    await world.cluster.prepare(3, stages=1, **settings)
    await world.cluster.start()
    leader = await world.cluster.formed()
    async with leader.client() as client:
        await client.load(
            MODEL, context_tokens=CONTEXT_TOKENS, objective="latency", allow_tensor_parallel=True
        )
    _expected.update(await undisturbed((await split(world)).head, TOKENS))


async def split(world: World) -> Serving:
    """Who serves; waits until it is ready everywhere."""
    serving = await served(world)
    status = await serving.leader.status()
    deployment = status.document.plan.deployments[0] if status is not None else None
    told = (deployment.parallelism, len(serving.order)) if deployment is not None else None
    world.holds("two nodes share every layer", told == ("tensor", 2), deployment)
    return serving


async def _lost(world: World, choose: Callable[[Serving], Node], *, whole_node: bool) -> None:
    before = await split(world)
    victim = choose(before)
    client = next(node for node in world.cluster.nodes if node is not victim).client()
    async with client, flowing(client, TOKENS, until_token=20) as streams:
        hurt = now()
        if whole_node:
            lose(victim)
        else:
            victim.worker().send_signal(signal.SIGKILL)
    compare(world, streams, _expected)
    account(world, before, streams, hurt, target=PAUSE_SECONDS, keeps_processes=False)
    world.holds("the clients were told of the pause", all(s.pauses for s in streams.values()))
    if whole_node:
        await victim.wait(5)
        await victim.up()
    await split(world)


async def tensor_worker_killed(world: World) -> None:
    """SIGKILL the worker of a rank that only computes: all ranks end, the next plan goes on with the same tokens."""
    await _lost(world, lambda before: before.tail, whole_node=False)


async def tensor_head_killed(world: World) -> None:
    """SIGKILL the worker of rank 0, which schedules and samples."""
    await _lost(world, lambda before: before.head, whole_node=False)


async def tensor_node_killed(world: World) -> None:
    """SIGKILL daemon and worker of a rank: the third node takes its part."""

    def choose(before: Serving) -> Node:
        return next(node for node in reversed(before.order) if node is not before.leader)

    await _lost(world, choose, whole_node=True)


GROUP = Group(
    "tensor",
    set_up,
    {
        "tensor-worker-killed": tensor_worker_killed,
        "tensor-head-killed": tensor_head_killed,
        "tensor-node-killed": tensor_node_killed,
    },
    unprivileged=True,
)
