"""Values with a quick `__init__` are what they were without it."""

import dataclasses
import inspect
import pickle

import pytest

from macmesh_daemon.cluster.effects import Reply, Send
from macmesh_daemon.cluster.errors import LocalClusterMisuse
from macmesh_daemon.cluster.events import RequestReceived, ResponseReceived
from macmesh_daemon.cluster.messages import HeartbeatRequest, HeartbeatResponse
from macmesh_daemon.cluster.quick import quickly_made


@pytest.mark.parametrize(
    "kind", [HeartbeatRequest, HeartbeatResponse, RequestReceived, ResponseReceived, Send, Reply]
)
def test_a_quick_value_takes_holds_and_guards_the_same(kind: type) -> None:
    fields = dataclasses.fields(kind)
    plain = dataclasses.make_dataclass(
        "Plain",
        [(f.name, object, dataclasses.field(default=f.default)) for f in fields],
        frozen=True,
        slots=True,
    )
    here = [(p.name, p.kind, p.default) for p in inspect.signature(kind).parameters.values()]
    assert here == [(p.name, p.kind, p.default) for p in inspect.signature(plain).parameters.values()]

    made = kind(*range(len(fields)))
    assert dataclasses.astuple(made) == tuple(range(len(fields)))
    assert made == kind(**{f.name: i for i, f in enumerate(fields)}) == pickle.loads(pickle.dumps(made))  # noqa: S301  its own
    assert dataclasses.replace(made, **{fields[0].name: "other"}) != made
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(made, fields[0].name, 1)


def test_a_class_that_cannot_be_filled_so_is_refused() -> None:
    @dataclasses.dataclass(frozen=True, slots=True)
    class _Listing:
        items: list[int] = dataclasses.field(default_factory=list)

    @dataclasses.dataclass(frozen=True)
    class _Open:
        item: int = 0

    with pytest.raises(LocalClusterMisuse, match="items is not a plain field"):
        quickly_made(_Listing)
    with pytest.raises(LocalClusterMisuse, match="must have slots"):
        quickly_made(_Open)
