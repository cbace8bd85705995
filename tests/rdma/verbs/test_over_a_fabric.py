"""Groups over RDMA devices that are not there, with the native links: ranks are threads, each with its own devices."""

import dataclasses
import functools
import gc
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import pytest

from bringing_up import EPOCH, KEY, SMALL, endpoints_of, in_threads, listeners, open_descriptors
from macmesh_rdma.errors import LocalProviderError, RemoteProviderError, TransportError
from macmesh_rdma.group import Group, open_group
from macmesh_rdma.options import LinkOptions
from macmesh_rdma.testing.fakeverbs import FakeFabric, full_mesh
from macmesh_rdma.verbs.facts import facts_of
from macmesh_rdma.verbs.fit import registered_bytes
from macmesh_rdma.verbs.opening import list_devices, verbs_counts
from macmesh_rdma.verbs.settings import VerbsSettings

HOSTS = "abc"


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    gc.collect()
    before = open_descriptors()
    yield
    gc.collect()
    # The stand-in keeps one socket for the life of the process, from the first time that it wakes somebody.
    assert len(open_descriptors() - before) <= 1
    counts = verbs_counts()
    assert counts.queue_pairs_made == counts.queue_pairs_freed


def settings(fabric: FakeFabric, rank: int, size: int) -> VerbsSettings:
    """By each peer, our ends of the cables to it."""
    towards: dict[int, tuple[str, ...]] = {}
    for cable in fabric.cables:
        ends = {end.split(".")[0]: end.replace(".", "_") for end in cable}
        for peer in range(size):
            if peer != rank and {HOSTS[rank], HOSTS[peer]} == set(ends):
                towards[peer] = (*towards.get(peer, ()), ends[HOSTS[rank]])
    return VerbsSettings(towards, os_build="25C56")


def open_ranks(monkeypatch: pytest.MonkeyPatch, fabric: FakeFabric, size: int, **other: Any) -> list[Any]:
    for name, value in fabric.environment(None).items():
        monkeypatch.setenv(name, value)
    arguments: dict[str, Any] = {
        "key": KEY,
        "epoch": EPOCH,
        "options": SMALL,
        "provider": "verbs",
        "timeout_seconds": 20,
        "connect_seconds": 30,
    } | other
    with listeners(size) as made:
        endpoints = endpoints_of(made)

        def join(rank: int) -> Group:
            return open_group(made[rank], rank, endpoints, verbs=settings(fabric, rank, size), **arguments)

        return in_threads([lambda rank=rank: join(rank) for rank in range(size)])  # type: ignore[misc]  # bound


def opened(outcomes: list[Any]) -> list[Group]:
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return outcomes


def close(outcomes: list[Any]) -> None:
    in_threads([o.close for o in outcomes if isinstance(o, Group)])
    outcomes.clear()


def total(group: Group) -> list[int]:
    summed = mx.distributed.all_sum(mx.arange(5000) * (group.rank + 1), group=group.mlx)
    return [int(number) for number in summed.tolist()]  # type: ignore[union-attr,arg-type]  # the stub allows more


@pytest.mark.parametrize("loss", [0.0, 0.01])
def test_ranks_that_are_joined_by_cables_make_a_group(loss: float, monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeFabric(full_mesh(HOSTS), loss=loss) as fabric:
        outcomes = open_ranks(monkeypatch, fabric, 3)
        for group in opened(outcomes):
            for link in group.links:
                assert (link.provider, link.reason) == ("verbs", "asked for")
                assert link.devices == (f"{HOSTS[group.rank]}_{link.devices[0].split('_')[1]}",)
                assert link.pool_bytes == SMALL.pool_bytes("verbs", 2)  # a lane for messages, one for sums
        totals = in_threads([functools.partial(total, group) for group in outcomes])
        assert totals == [[6 * number for number in range(5000)]] * 3
        assert fabric.counters().queue_pairs > 0
        close(outcomes)
        assert fabric.counters().queue_pairs == 0


TINY = LinkOptions(num_buffers=2, frame_bytes=4096, buffer_sizes=2)
STOCK = LinkOptions(num_buffers=2, frame_bytes=4096, buffer_sizes=8, max_outstanding=32)


@pytest.mark.parametrize(
    ("options", "cables", "limits"),
    [
        (LinkOptions(num_buffers=1, frame_bytes=1024, buffer_sizes=1), 1, {}),
        (TINY, 1, {}),
        (STOCK, 1, {}),
        (LinkOptions(num_buffers=3, frame_bytes=16384, buffer_sizes=2), 2, {}),
        (LinkOptions(), 1, {}),
        (STOCK, 1, {"queue_pairs": 3}),
        (STOCK, 1, {"queue_pairs": 2}),
        (STOCK, 2, {"queue_pairs": 1}),
        (STOCK, 1, {"message_bytes": 40_000}),
        (STOCK, 1, {"region_bytes": 3_000_000}),
        (LinkOptions(num_buffers=16, frame_bytes=4096, buffer_sizes=3), 1, {"requests": 47}),
        (LinkOptions(num_buffers=16, frame_bytes=4096, buffer_sizes=3), 1, {"requests": 40}),
        (LinkOptions(num_buffers=16, frame_bytes=4096, buffer_sizes=3), 1, {"completions": 24}),
        (
            LinkOptions(num_buffers=16, frame_bytes=4096, buffer_sizes=3),
            1,
            {"flavour": "linux", "requests": 21},
        ),
    ],
)
def test_a_link_registers_what_the_ledger_is_charged(
    options: LinkOptions, cables: int, limits: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakeFabric(full_mesh("ab", cables), **limits) as fabric:
        outcomes = open_ranks(monkeypatch, fabric, 2, options=options, topology="pipeline", measure=False)
        told = [group.links[0].pool_bytes for group in opened(outcomes)]
        found = facts_of(list_devices("")).limits
        close(outcomes)
    assert found is not None
    assert told == [registered_bytes(options, found, cables)] * 2
    assert told[0] <= options.verbs_bytes(cables) or limits
    if options == TINY:
        assert told[0] == options.verbs_bytes(cables)


@pytest.mark.parametrize(
    ("faults", "kind", "told"),
    [
        ({"loss": 1.0}, RemoteProviderError, "it carries nothing, although the peer answers"),
        ({"corrupt": 1.0}, RemoteProviderError, "over RDMA devices"),
        ({"queue_pairs": 0}, LocalProviderError, "queue pairs"),
    ],
)
def test_what_a_cable_does_wrong_says_whose_fault_it_is(
    faults: dict[str, Any], kind: type[TransportError], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakeFabric(full_mesh("ab"), **faults) as fabric:
        outcomes = open_ranks(monkeypatch, fabric, 2, topology="pipeline", connect_seconds=3)
    assert kind in {type(outcome) for outcome in outcomes}, outcomes
    assert any(told in str(outcome) for outcome in outcomes), outcomes
    outcomes.clear()


def test_a_link_that_is_slower_than_tcp_is_refused_with_both_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = settings

    def beside(fabric: FakeFabric, rank: int, size: int) -> VerbsSettings:
        return dataclasses.replace(whole(fabric, rank, size), beside=True)

    monkeypatch.setitem(globals(), "settings", beside)
    # 5 ms and 500 kB/s: no machine is so busy that its loopback does worse.
    with FakeFabric(full_mesh("ab"), latency_ns=5_000_000, bytes_per_second=500_000) as fabric:
        outcomes = open_ranks(monkeypatch, fabric, 2, topology="pipeline")
    refused = [str(outcome) for outcome in outcomes if isinstance(outcome, LocalProviderError)]
    assert refused, outcomes
    assert all("is slower than TCP: " in text and "; TCP beside it: " in text for text in refused)
    outcomes.clear()


def test_a_pulled_cable_is_told_by_the_port(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeFabric(full_mesh("ab")) as fabric:
        fabric.cut(0)
        outcomes = open_ranks(monkeypatch, fabric, 2, topology="pipeline")
    assert any(isinstance(outcome, LocalProviderError) for outcome in outcomes), outcomes
    assert any("is in state PORT_DOWN, not PORT_ACTIVE" in str(outcome) for outcome in outcomes), outcomes
    outcomes.clear()


def test_other_builds_of_the_system_do_not_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "settings", _with_own_build(settings))
    with FakeFabric(full_mesh("ab")) as fabric:
        outcomes = open_ranks(monkeypatch, fabric, 2, topology="pipeline")
    assert all("run other builds of the system" in str(outcome) for outcome in outcomes), outcomes
    outcomes.clear()


def _with_own_build(whole: Any) -> Any:
    def own(fabric: FakeFabric, rank: int, size: int) -> VerbsSettings:
        made: VerbsSettings = whole(fabric, rank, size)
        return VerbsSettings(made.devices, os_build=f"build {rank}")

    return own
