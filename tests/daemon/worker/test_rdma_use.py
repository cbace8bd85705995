"""What a worker tells of its RDMA devices: before it uses them, what it made and freed, and whose fault it was."""

from types import SimpleNamespace
from typing import Any

import pytest

from macmesh.v1 import lane_pb2
from macmesh_daemon.worker.rdma_use import RdmaUse
from macmesh_rdma.errors import (
    LocalProviderError,
    RemoteCorruptError,
    RemotePeerLostError,
    RemoteProviderError,
    RemoteTimeoutError,
    TransportError,
)
from macmesh_rdma.verbs import opening
from macmesh_rdma.verbs.opening import VerbsCounts


class World:
    """A process that makes and frees queue pairs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told: list[lane_pb2.RdmaUse] = []
        self.counts = VerbsCounts(6, 6)  # of a plan before
        monkeypatch.setattr(opening, "verbs_counts", lambda: self.counts)
        self.use = RdmaUse(is_used=True, tell=lambda event: self.told.append(event.rdma_use))


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def group(failure: TransportError | None, close: Any = lambda: None) -> Any:
    return SimpleNamespace(failure=failure, close=close)


def test_a_set_up_is_told_before_it_begins_and_then_what_it_made_and_freed(world: World) -> None:
    with world.use.setting_up():
        assert world.told == [lane_pb2.RdmaUse(setups=1)]
        world.counts = VerbsCounts(10, 6)
    assert world.told[1:] == [lane_pb2.RdmaUse(queue_pairs_made=4)]

    def close() -> None:
        world.counts = VerbsCounts(10, 9)

    world.use.follow(group(None, close))
    world.use.close()
    world.use.close()
    assert world.told[2:] == [lane_pb2.RdmaUse(queue_pairs_freed=3)]
    assert world.use.failure == ""


@pytest.mark.parametrize(
    ("error", "failure", "faults"),
    [
        (
            RemoteProviderError("it hung", peer=1),
            "it hung",
            [lane_pb2.RdmaFault(peer_stage=1, reason="it hung")],
        ),
        (LocalProviderError("slower than TCP", peer=1), "slower than TCP", []),
        (RemotePeerLostError("the cable carries nothing", peer=1), "the cable carries nothing", []),
    ],
)
def test_every_error_counts_against_the_transport_and_damage_and_silence_are_faults(
    error: TransportError, failure: str, faults: list[lane_pb2.RdmaFault], world: World
) -> None:
    with pytest.raises(type(error)), world.use.setting_up():
        raise error
    assert world.use.failure == failure
    assert [fault for use in world.told for fault in use.faults] == faults


def test_a_group_that_ends_for_damage_is_a_fault_and_one_that_waits_in_vain_is_none(world: World) -> None:
    world.use.follow(group(RemoteTimeoutError("silence", peer=1)))
    world.use.look()
    assert world.use.failure == ""
    world.use.follow(group(RemoteCorruptError("no frame", peer=1)))
    world.use.look()
    world.use.look()
    assert world.use.failure == "over RDMA devices: no frame"
    assert [fault.peer_stage for use in world.told for fault in use.faults] == [1]


def test_a_cable_that_falls_silent_while_its_peer_answers_is_a_fault(world: World) -> None:
    world.use.follow(group(RemotePeerLostError(f"the last cable failed: {opening.SILENT}", peer=1)))
    world.use.look()
    assert [fault.peer_stage for use in world.told for fault in use.faults] == [1]


def test_other_plans_tell_nothing() -> None:
    told: list[lane_pb2.WorkerEvent] = []
    use = RdmaUse(is_used=False, tell=told.append)
    with pytest.raises(RemoteProviderError), use.setting_up():
        raise RemoteProviderError("x", peer=1)
    use.follow(group(RemoteCorruptError("x", peer=1)))
    use.look()
    use.close()
    assert (use.failure, told) == ("", [])
