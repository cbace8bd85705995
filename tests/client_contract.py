"""What a client may rely on, whatever answers: a real node that serves nothing, or the fake daemon.

Call `check_idle_daemon` with a client of either.
"""

import pytest

from macmesh import AsyncClient, ClusterStatus
from macmesh.errors import LocalClosedError, MacmeshError
from macmesh.reasons import CODE_OF_REASON, Reason

UNKNOWN_MODEL = "/nowhere/no-such-model"


async def check_idle_daemon(client: AsyncClient) -> None:
    """The whole contract, for a cluster that serves nothing."""
    await check_status(client)
    await check_watch_starts_with_the_status(client)
    await check_an_unknown_model_is_not_found(client)
    await check_nothing_is_generated(client)


async def check_status(client: AsyncClient) -> None:
    """The status names its parts consistently."""
    status = await client.status()
    assert status.serving_state == "idle"
    assert status.has_quorum
    ids = [node.member.node_id for node in status.nodes]
    assert len(set(ids)) == len(ids) >= 1
    assert status.node_id in ids
    assert status.coordinator_node_id in ids
    assert [m.node_id for m in status.document.members] == ids
    for node in status.nodes:
        assert node.role in {"coordinator", "voter", "member"}
        assert (node.role == "coordinator") == (node.member.node_id == status.coordinator_node_id)
        assert node.liveness in {"alive", "suspect", "dead", "incompatible", "unknown"}
        assert node.member.facts.ram_bytes >= node.member.facts.usable_bytes > 0


async def check_watch_starts_with_the_status(client: AsyncClient) -> None:
    """The first update is the status; closing ends the stream."""
    async with client.watch() as updates:
        first = await anext(updates)
        assert isinstance(first, ClusterStatus)
        assert first.node_id == (await client.status()).node_id
    with pytest.raises(LocalClosedError):
        await anext(updates)


async def check_an_unknown_model_is_not_found(client: AsyncClient) -> None:
    """Planning and loading it fail alike, and nothing changes."""
    with pytest.raises(MacmeshError) as planned:
        await client.plan(UNKNOWN_MODEL, context_tokens=128)
    with pytest.raises(MacmeshError) as loaded:
        await client.load(UNKNOWN_MODEL, context_tokens=128)
    for caught in (planned, loaded):
        assert_reason(caught.value, Reason.MODEL_NOT_FOUND)
        assert UNKNOWN_MODEL in caught.value.message
    assert (await client.status()).serving_state == "idle"


async def check_nothing_is_generated(client: AsyncClient) -> None:
    """Without a model a generation is refused before its first piece."""
    with pytest.raises(MacmeshError) as caught:
        await client.complete("Once upon a time", max_tokens=1)
    assert_reason(caught.value, Reason.NO_MODEL_LOADED)
    with pytest.raises(MacmeshError) as asked:
        await client.stage_stats()
    assert_reason(asked.value, Reason.NO_MODEL_LOADED)


def assert_reason(error: MacmeshError, reason: Reason) -> None:
    """The error carries the reason and the code that goes with it."""
    assert (error.reason, error.code) == (reason, CODE_OF_REASON[reason])
