"""The codec loses nothing."""

import dataclasses
import enum
import functools
import types
import typing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macmesh.v1 import cluster_pb2, peer_pb2, types_pb2
from macmesh_daemon.cluster.messages import Epoch, HeartbeatRequest, Member, WorkerReport, WorkerState
from macmesh_daemon.node.codec import VALUE_CLASSES, from_proto, to_proto
from macmesh_daemon.node.errors import LocalValueNotEncodable


def strategy_for(hint: typing.Any, signed: bool) -> st.SearchStrategy[typing.Any]:
    origin = typing.get_origin(hint)
    if origin is tuple:
        return st.lists(strategy_for(typing.get_args(hint)[0], signed), max_size=2).map(tuple)
    if origin is types.UnionType:
        (inner,) = (arg for arg in typing.get_args(hint) if arg is not types.NoneType)
        return st.none() | strategy_for(inner, signed)
    if dataclasses.is_dataclass(hint):
        return st.deferred(lambda: values_of(typing.cast("type", hint)))
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return st.sampled_from(list(hint))
    # 32 bits fit every integer field of the contract; the 64-bit ones have a test of their own.
    plain: dict[typing.Any, st.SearchStrategy[typing.Any]] = {
        int: st.integers(-(2**63), 2**63 - 1) if signed else st.integers(0, 2**32 - 1),
        float: st.floats(allow_nan=False),
        str: st.text(max_size=8),
        bool: st.booleans(),
        bytes: st.binary(max_size=8),
    }
    return plain[hint]


@functools.cache
def values_of(value_class: type) -> st.SearchStrategy[typing.Any]:
    hints = typing.get_type_hints(value_class)
    return st.builds(
        value_class,
        **{
            field.name: strategy_for(hints[field.name], field.name == "headroom_bytes")
            for field in dataclasses.fields(value_class)
        },
    )


@pytest.mark.parametrize("name", sorted(VALUE_CLASSES))
@settings(max_examples=20)
@given(data=st.data())
def test_every_class_survives_the_wire(name: str, data: st.DataObject) -> None:
    value = data.draw(values_of(VALUE_CLASSES[name]))
    message = to_proto(value)
    again = type(message)()
    again.ParseFromString(message.SerializeToString())

    assert from_proto(again) == value


def test_every_message_between_nodes_has_a_class_except_those_that_the_core_does_not_see() -> None:
    shell_only = {
        "HelloRequest",
        "HelloResponse",
        "ProfileModelRequest",
        "ProfileModelResponse",
        "ProposeChangeRequest",
        "ProposeChangeResponse",
        "UnloadChange",
        "EvictChange",
        "DrainChange",
        "MakeDrillFaultRequest",
        "MakeDrillFaultResponse",
        "RunRequestRequest",
        "RunRequestResponse",
        "GetOwnStageStatsRequest",
        "GetOwnStageStatsResponse",
        "StageStats",
        "StagePhase",
        "StageCounter",
        "SchedulerStats",
        "GetModelManifestRequest",
        "GetModelManifestResponse",
        "ModelFile",
        "GetHoldingsRequest",
        "GetHoldingsResponse",
        "HeldFile",
        "FileRange",
        "HashRangesRequest",
        "HashRangesResponse",
        "FetchRangesRequest",
        "FetchRangesResponse",
    }
    files = (types_pb2.DESCRIPTOR, peer_pb2.DESCRIPTOR)
    on_the_wire = {name for file in files for name in file.message_types_by_name}

    assert on_the_wire - shell_only == set(VALUE_CLASSES) - {"PersistentState"}


def test_64_bit_integers_survive() -> None:
    value = Epoch(2**64 - 1, 2**63, 1)

    assert from_proto(to_proto(value)) == value


def test_absent_and_empty_submessages_differ() -> None:
    absent, empty = WorkerReport(epoch=None), WorkerReport(epoch=Epoch())

    assert from_proto(to_proto(absent)) == absent
    assert from_proto(to_proto(empty)) == empty
    assert absent != empty


def test_an_enum_value_of_a_newer_version_is_unspecified() -> None:
    message = peer_pb2.WorkerReport.FromString(b"\x18\x63")  # field 3 = 99

    assert from_proto(message).state is WorkerState.UNSPECIFIED


def test_enum_values_go_by_name() -> None:
    message = to_proto(WorkerReport(state=WorkerState.READY))

    assert isinstance(message, peer_pb2.WorkerReport)
    assert message.state == peer_pb2.WORKER_STATE_READY


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (Epoch(generation=-1), "Epoch.generation"),
        (Epoch(seq=2**64), "Epoch.seq"),
        (Member(addresses=typing.cast("tuple[str, ...]", (1,))), "Member.addresses"),
        (HeartbeatRequest(members=typing.cast("typing.Any", (Epoch(),))), "HeartbeatRequest.members"),
        (object(), "object"),
    ],
)
def test_what_protobuf_cannot_carry_is_named(value: typing.Any, names: str) -> None:
    with pytest.raises(LocalValueNotEncodable, match=names):
        to_proto(value)


def test_a_message_that_the_core_does_not_know_is_named() -> None:
    with pytest.raises(LocalValueNotEncodable, match="GetStatusRequest"):
        from_proto(cluster_pb2.GetStatusRequest())
