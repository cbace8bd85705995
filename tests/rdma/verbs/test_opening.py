"""Groups whose links go over RDMA devices, as far as it is Python: devices, tests, TCP beside, and what errors mean."""

import contextlib
import dataclasses
import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bringing_up import EPOCH, KEY, SMALL, endpoints_of, in_threads, listeners, open_descriptors
from macmesh_rdma.errors import (
    LocalProviderError,
    RemoteAbortedError,
    RemoteCorruptError,
    RemotePeerLostError,
    RemoteProviderError,
    RemoteTimeoutError,
    TransportError,
)
from macmesh_rdma.group import Group, open_group
from macmesh_rdma.measure import LinkSpeed
from macmesh_rdma.verbs import trial
from macmesh_rdma.verbs.fit import VerbsLimits
from macmesh_rdma.verbs.opening import SILENT
from macmesh_rdma.verbs.settings import VerbsSettings

from .stand_in import StandIn, put_in_place


def listed(
    name: str, state: str = "PORT_ACTIVE", gids: list[tuple[int, str]] | None = None
) -> dict[str, Any]:
    limits = dataclasses.asdict(VerbsLimits(10, 100, 4095, 4095, 65535, 16773120, 1 << 40, 4096))
    port = {
        "number": 1,
        "state": state,
        "mtu": 5,
        "gids": [(1, "::ffff:10.99.0.1")] if gids is None else gids,
    }
    return {"name": name, "guid": 1, "failure": "", "limits": limits, "ports": [port]}


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    return put_in_place(monkeypatch, [listed("fake0"), listed("fake1")])


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    gc.collect()
    before = open_descriptors()
    yield
    gc.collect()
    assert open_descriptors() == before


def settings(rank: int, size: int, **other: Any) -> VerbsSettings:
    towards = {peer: ("fake0", "fake1") for peer in range(size) if peer != rank}
    return VerbsSettings(**({"devices": towards, "library": "/lib", "os_build": "25C56"} | other))


def open_ranks(size: int, verbs: Callable[[int], VerbsSettings], **other: Any) -> list[Any]:
    """What each rank got, a group or an error; groups that were made are closed."""
    arguments: dict[str, Any] = {"key": KEY, "epoch": EPOCH, "options": SMALL, "provider": "verbs"} | other
    with listeners(size) as made:
        endpoints = endpoints_of(made)

        def join(rank: int) -> Group:
            return open_group(made[rank], rank, endpoints, verbs=verbs(rank), **arguments)

        outcomes = in_threads([lambda rank=rank: join(rank) for rank in range(size)])  # type: ignore[misc]  # bound
        in_threads([o.close for o in outcomes if isinstance(o, Group)])
    return outcomes


@pytest.mark.parametrize("topology", ["mesh", "pipeline"])
def test_links_are_made_over_the_devices_towards_each_peer_and_told(library: StandIn, topology: str) -> None:
    outcomes = open_ranks(3, lambda rank: settings(rank, 3), topology=topology)
    for group in outcomes:
        assert isinstance(group, Group), group
        for link in group.links:
            assert (link.provider, link.reason, link.devices) == ("verbs", "asked for", ("fake0", "fake1"))
            assert link.latency_us
    assert set(library.asked) == {"/lib"}
    cables = [("fake0", 1, 1), ("fake1", 1, 1)]
    lanes = 2 if topology == "mesh" else 1
    given = {"library": "/lib", "build": "25C56", "links_per_device": lanes}
    assert library.made == [(cables, given)] * (6 * lanes)
    del group, outcomes


@pytest.mark.usefixtures("library")
def test_tcp_is_measured_beside_and_told() -> None:
    outcomes = open_ranks(2, lambda rank: settings(rank, 2, beside=True), topology="pipeline")
    for outcome in outcomes:
        # Both are the same here, so either may be faster.
        if isinstance(outcome, Group):
            assert "; TCP beside it: " in outcome.links[0].reason
        else:
            assert isinstance(outcome, LocalProviderError | RemotePeerLostError), outcome
    del outcomes, outcome


def test_only_a_link_that_is_slower_in_both_respects_is_refused() -> None:
    slow, fast = LinkSpeed(30.0, 2.0), LinkSpeed(10.0, 5.0)
    assert trial.compare(1, {1: fast}, {1: slow}) == "; TCP beside it: 30 us 2.0 GB/s"
    assert trial.compare(1, {1: LinkSpeed(40.0, 5.0)}, {1: slow})
    assert trial.compare(1, {1: LinkSpeed(20.0, 1.0)}, {1: slow})
    assert trial.compare(1, {1: slow}, {}) == ""
    with pytest.raises(
        LocalProviderError, match=r"slower than TCP: 30 us 2\.0 GB/s; TCP beside it: 10 us 5\.0 GB/s"
    ):
        trial.compare(1, {1: slow}, {1: fast})


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (TimeoutError("nothing came"), RemoteTimeoutError),
        (RuntimeError("the pattern came back changed"), RemoteProviderError),
        (ConnectionError("the control socket ended"), RemotePeerLostError),
        (ConnectionError(f"the last cable failed: {SILENT}"), RemoteProviderError),
        (OSError(16, "no queue pair left"), LocalProviderError),
        (ValueError("the builds differ"), LocalProviderError),
    ],
)
def test_what_the_set_up_of_a_link_raises_says_whose_fault_it_is(
    error: Exception, kind: type[TransportError], library: StandIn
) -> None:
    library.error = error
    for outcome in open_ranks(2, lambda rank: settings(rank, 2), topology="pipeline"):
        assert type(outcome) is kind
        assert "over RDMA devices" in str(outcome)
    del outcome


@pytest.mark.parametrize(
    ("devices", "told"),
    [
        ([], "lists no device fake0 .* it lists none"),
        ([listed("fake0", "PORT_DOWN"), listed("fake1")], "state PORT_DOWN, not PORT_ACTIVE"),
        ([listed("fake0", gids=[]), listed("fake1")], "fake0 has no GID"),
    ],
)
def test_a_device_that_cannot_be_used_is_our_own_fault(
    devices: list[dict[str, Any]], told: str, library: StandIn
) -> None:
    library.devices = devices
    for outcome in open_ranks(2, lambda rank: settings(rank, 2), topology="pipeline"):
        with pytest.raises(LocalProviderError, match=told):
            raise outcome
    assert library.made == []
    del outcome


@pytest.mark.usefixtures("library")
def test_without_a_cable_to_a_neighbour_there_is_no_link() -> None:
    outcomes = open_ranks(2, lambda _: VerbsSettings({}), topology="pipeline")
    assert all("no cable" in str(outcome) for outcome in outcomes)
    del outcomes


@pytest.mark.usefixtures("library")
def test_a_pattern_that_arrives_changed_is_a_fault_of_the_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trial.pattern

    def changed(source: int, size_bytes: int) -> bytes:
        # Rank 1 expects what rank 0 does not send.
        return (
            whole(source, size_bytes)[::-1]
            if size_bytes == 1025 and source == 0
            else whole(source, size_bytes)
        )

    sent: list[int] = []

    def pattern(source: int, size_bytes: int) -> bytes:
        sent.append(size_bytes)
        return changed(source, size_bytes) if sent.count(1025) == 1 else whole(source, size_bytes)

    monkeypatch.setattr(trial, "pattern", pattern)
    outcomes = open_ranks(2, lambda rank: settings(rank, 2), topology="pipeline")
    kinds = {type(outcome) for outcome in outcomes}
    assert RemoteProviderError in kinds, outcomes
    # The other rank hears that this one gave up, or had finished.
    assert kinds <= {RemoteProviderError, RemoteAbortedError, RemotePeerLostError, Group}
    del outcomes


@pytest.mark.usefixtures("library")
def test_damage_and_silence_in_a_test_count_against_rdma_devices_alone() -> None:
    for error in (RemoteCorruptError("x", peer=1), RemotePeerLostError(f"the cable: {SILENT}", peer=1)):
        with pytest.raises(RemoteProviderError) as told, trial.faults_of("verbs"):
            raise error
        assert told.value.peer == 1
        with pytest.raises(type(error)), trial.faults_of("tcp"):
            raise error
    for other in (RemotePeerLostError("gone"), RemoteTimeoutError("late")):
        with pytest.raises(type(other)), trial.faults_of("verbs"):
            raise other


def test_a_part_of_the_group_has_its_own_numbers() -> None:
    whole = VerbsSettings({0: ("a",), 2: ("b",)}, "/lib", "25C56", beside=True)
    assert whole.of([2, 1, 0]) == VerbsSettings({0: ("b",), 2: ("a",)}, "/lib", "25C56")


@pytest.mark.usefixtures("library")
def test_the_library_is_the_one_that_was_named_else_that_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with contextlib.suppress(KeyError):
        monkeypatch.delenv("MACMESH_VERBS_LIBRARY")
    assert VerbsSettings({}).library_path == ""
    monkeypatch.setenv("MACMESH_VERBS_LIBRARY", "/there")
    assert VerbsSettings({}).library_path == "/there"
    assert VerbsSettings({}, "/here").library_path == "/here"
