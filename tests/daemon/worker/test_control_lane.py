"""Control lanes over real TLS sockets: who is let in, and what is told when something goes wrong."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from macmesh.v1 import lane_pb2, peer_pb2
from macmesh_daemon.cluster.settings import ClusterSettings
from macmesh_daemon.supervisor.local_plan import local_plan, throwaway_identities
from macmesh_daemon.worker import shell
from macmesh_daemon.worker.control_lane import ControlLane
from macmesh_daemon.worker.errors import LocalStartError, RemoteNeighbourError
from macmesh_daemon.worker.identity import require_node, stage_proof
from macmesh_rdma.control.lane import ControlOptions

DEADLINE_SECONDS = 120.0


def starts(stages: int) -> list[lane_pb2.StartStage]:
    return local_plan(
        [Path("/model")] * stages, list(range(1, stages)), layer_count=stages, context_tokens=100
    )


class Stage:
    """A control lane and what it told."""

    def __init__(self, start: lane_pb2.StartStage) -> None:
        self.messages: asyncio.Queue[tuple[int, lane_pb2.LaneMessage]] = asyncio.Queue()
        self.lost: asyncio.Queue[str] = asyncio.Queue()
        self.strangers: asyncio.Queue[str] = asyncio.Queue()
        self.address = ""
        self.lane = ControlLane(
            start,
            on_message=lambda stage, message: self.messages.put_nowait((stage, message)),
            on_lost=self.lost.put_nowait,
            on_stranger=self.strangers.put_nowait,
        )


@contextlib.asynccontextmanager
async def bound(plan: list[lane_pb2.StartStage]) -> AsyncIterator[list[Stage]]:
    stages = [Stage(start) for start in plan]
    async with asyncio.timeout(DEADLINE_SECONDS), asyncio.TaskGroup() as group:
        for stage in stages:
            stage.address = await stage.lane.bind(group)
        try:
            yield stages
        finally:
            for stage in stages:
                await stage.lane.close()


def peers(stages: list[Stage], key: bytes = b"k" * 32) -> peer_pb2.SetPeersRequest:
    addresses = [
        peer_pb2.PeerAddress(stage_index=index, control_address=stage.address)
        for index, stage in enumerate(stages)
    ]
    return peer_pb2.SetPeersRequest(peers=addresses, epoch_key=key)


async def join_all(stages: list[Stage]) -> None:
    async with asyncio.TaskGroup() as group:
        for stage in stages:
            group.create_task(stage.lane.join(peers(stages)))


@pytest.mark.parametrize("count", [2, 3, 4])
async def test_headers_go_down_and_results_go_from_the_tail_to_the_head(count: int) -> None:
    async with bound(starts(count)) as stages:
        await join_all(stages)
        for index, stage in enumerate(stages):
            header = lane_pb2.Step(number=index + 1)
            stage.lane.send_down(stage.lane.encode(step=header))
        for index, stage in enumerate(stages):
            sender, message = await stage.messages.get()
            assert sender == (index - 1) % count
            assert message.step.number == sender + 1


async def test_a_stage_that_goes_is_noticed_by_both_neighbours() -> None:
    async with bound(starts(3)) as stages:
        await join_all(stages)
        await stages[1].lane.close()
        assert "stage 1" in await stages[0].lost.get()
        assert "stage 1" in await stages[2].lost.get()


async def test_failure_is_told_up_and_down_with_its_cause() -> None:
    async with bound(starts(3)) as stages:
        await join_all(stages)
        await stages[1].lane.tell_failure(lane_pb2.StageFailed(stage_index=1, message="on fire"))
        for neighbour in (stages[0], stages[2]):
            _, message = await neighbour.messages.get()
            assert (message.failed.stage_index, message.failed.message) == (1, "on fire")


async def test_a_message_of_another_epoch_breaks_the_lane() -> None:
    async with bound(starts(2)) as stages:
        await join_all(stages)
        other = starts(2)[0]
        other.epoch.seq = 99
        foreign = Stage(other)
        stages[0].lane.send_down(foreign.lane.encode(step=lane_pb2.Step(number=1)))
        assert "epoch 0.1.99" in await stages[1].lost.get()
        assert stages[1].messages.empty()


async def test_bytes_that_are_no_message_break_the_lane() -> None:
    async with bound(starts(2)) as stages:
        await join_all(stages)
        stages[0].lane.send_down(b"\xff\xff")
        assert "stage 0 broke: it sent 2 bytes that are no message" in await stages[1].lost.get()
        assert stages[1].messages.empty()


async def test_what_cannot_be_sent_ends_the_plan_and_is_told_once() -> None:
    async with bound(starts(2)) as stages:
        await join_all(stages)
        too_long = bytes(ControlOptions().max_message_bytes)
        for _ in range(2):
            stages[0].lane.send_down(too_long)
        assert "nothing can be sent to stage 1" in await stages[0].lost.get()
        await stages[1].lane.close()
        stages[0].lane.send_down(b"late")
        assert stages[0].lost.empty()


async def test_a_stage_that_waits_says_for_whom() -> None:
    async with bound(starts(3)) as stages:
        # Stage 2 was never told of the others: it says no hello, and does not connect to the head.
        head, second = (asyncio.create_task(stage.lane.join(peers(stages))) for stage in stages[:2])
        while stages[0].lane.missing != "stage 2 has not connected to us":
            assert not head.done()
            await asyncio.sleep(0)
        assert stages[1].lane.missing == f"stage 2 at {stages[2].address} has not said hello"
        await stages[2].lane.join(peers(stages))
        await asyncio.gather(head, second)
        assert [stage.lane.missing for stage in stages] == ["", "", ""]


def test_a_stage_gives_up_joining_before_the_coordinator_gives_up_the_plan() -> None:
    both_lanes_seconds = 2 * shell.JOIN_DEADLINE_SECONDS
    assert both_lanes_seconds < ClusterSettings().connect_timeout_seconds


async def test_a_node_of_another_cluster_is_turned_away() -> None:
    plan, other = starts(2), starts(2)
    plan[0].ca_pem, plan[0].certificate_pem = other[0].ca_pem, other[0].certificate_pem
    plan[0].key_pem = other[0].key_pem
    async with bound(plan) as stages:
        with pytest.raises(RemoteNeighbourError, match="not of this cluster"):
            await stages[0].lane.join(peers(stages))


async def test_a_node_of_the_cluster_in_the_place_of_another_is_turned_away() -> None:
    plan = starts(3)
    ca_pem, identities = throwaway_identities(["node-a", "node-b", "impostor"])
    for start, (certificate_pem, key_pem) in zip(plan, identities, strict=True):
        start.ca_pem, start.certificate_pem, start.key_pem = ca_pem, certificate_pem, key_pem
        for index, name in enumerate(["node-a", "node-b", "node-c"]):
            start.deployment.stages[index].node_id = name
    async with bound(plan) as stages, asyncio.TaskGroup() as group:
        waiting = group.create_task(stages[0].lane.join(peers(stages)))
        with pytest.raises(RemoteNeighbourError, match=r"node-c.*impostor"):
            await stages[1].lane.join(peers(stages))
        # The impostor calls the head as the tail would.
        with pytest.raises(RemoteNeighbourError):
            await stages[2].lane.join(peers(stages))
        assert "impostor" in await stages[0].strangers.get()
        waiting.cancel()


async def test_a_stage_without_the_epochs_key_is_turned_away() -> None:
    async with bound(starts(2)) as stages, asyncio.TaskGroup() as group:
        waiting = group.create_task(stages[1].lane.join(peers(stages)))
        with pytest.raises(RemoteNeighbourError, match=r"did not say hello|closed"):
            await stages[0].lane.join(peers(stages, key=b"x" * 32))
        assert "key of this epoch" in await stages[1].strangers.get()
        waiting.cancel()


async def test_a_neighbour_that_calls_before_the_key_is_known_waits_for_it() -> None:
    async with bound(starts(2)) as stages, asyncio.TaskGroup() as group:
        early = group.create_task(stages[0].lane.join(peers(stages)))
        await asyncio.sleep(0)
        assert not early.done()
        await stages[1].lane.join(peers(stages))
        await early


async def test_a_stranger_in_plain_text_does_no_harm() -> None:
    async with bound(starts(2)) as stages:
        host, _, port = stages[1].address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        await join_all(stages)
        stages[0].lane.send_down(stages[0].lane.encode(step=lane_pb2.Step(number=1)))
        await stages[1].messages.get()
        assert stages[1].lost.empty()


async def test_host_that_cannot_be_bound() -> None:
    plan = starts(2)
    plan[0].bind_host = "192.0.2.1"
    async with asyncio.timeout(DEADLINE_SECONDS), asyncio.TaskGroup() as group:
        with pytest.raises(LocalStartError, match="cannot listen"):
            await Stage(plan[0]).lane.bind(group)


def test_broken_certificates_are_told() -> None:
    plan = starts(2)
    plan[0].key_pem = b"nonsense"
    with pytest.raises(LocalStartError, match="cannot be used"):
        Stage(plan[0])


def test_both_names_of_a_certificate_count() -> None:
    subject = ((("commonName", "n1"),),)
    require_node({"subject": subject, "subjectAltName": (("DNS", "n1.node.macmesh"),)}, "n1")
    for bad in (
        None,
        {},
        {"subject": subject},
        {"subject": subject, "subjectAltName": (("DNS", "n2.node.macmesh"),)},
        {"subjectAltName": (("DNS", "n1.node.macmesh"),)},
    ):
        with pytest.raises(RemoteNeighbourError, match="expected node n1"):
            require_node(bad, "n1")


def test_proofs_differ_by_key_epoch_and_stage() -> None:
    plan = starts(2)
    later = plan[1].epoch
    later.seq += 1
    proofs = {
        stage_proof(b"a", plan[0].epoch, 0),
        stage_proof(b"b", plan[0].epoch, 0),
        stage_proof(b"a", plan[0].epoch, 1),
        stage_proof(b"a", later, 0),
    }
    assert len(proofs) == 4
