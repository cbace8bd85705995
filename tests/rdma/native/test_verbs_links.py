"""Links over RDMA devices as Python makes them, over the fake verbs library."""

import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import mlx.core  # noqa: F401  before the native module
import pytest

from macmesh_rdma import _group
from macmesh_rdma.testing.fakeverbs import FakeFabric, library_path

SECONDS = 30.0
OPTIONS = _group.LinkOptions(
    num_buffers=2, frame_bytes=16384, buffer_sizes=3, max_outstanding=64, spin_us=20.0
)


@pytest.fixture
def fabric(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeFabric]:
    with FakeFabric([("a.fake0", "b.fake0"), ("a.fake1", "b.fake1")]) as made:
        for name, value in made.environment(None).items():
            monkeypatch.setenv(name, value)
        yield made


def both(work: Callable[[str], Any]) -> list[Any]:
    """What `work` gives at host a and at host b, at once; an error instead of a value."""

    def one(host: str) -> Any:
        try:
            return work(host)
        except Exception as error:  # noqa: BLE001  what it is, is what is tested
            return error

    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(one, "ab"))


def joined(cables: int = 1, **settings: Any) -> list[Any]:
    """Both ends of a link; keywords are of `VerbsOptions`, with a pair for what differs between the ends."""
    left, right = socket.socketpair()
    ends = {"a": left.detach(), "b": right.detach()}

    def end(host: str) -> _group.Link:
        own = {
            key: value["ab".index(host)] if isinstance(value, tuple) else value
            for key, value in settings.items()
        }
        mine = [_group.VerbsCable(device=f"{host}_fake{i}", port=1, gid_index=1) for i in range(cables)]
        return _group.verbs_link(ends[host], mine, OPTIONS, _group.VerbsOptions(**own), SECONDS)

    return both(end)


def test_devices_are_listed_with_ports_and_limits(fabric: FakeFabric) -> None:
    devices = _group.verbs_devices(None)
    assert [device["name"] for device in devices] == ["a_fake0", "b_fake0", "a_fake1", "b_fake1"]
    first = devices[0]
    assert first["limits"]["max_queue_pairs"] == 10
    assert first["limits"]["frame_bytes"] == 4096
    assert not first["failure"]
    port = first["ports"][0]
    assert (port["number"], port["state"]) == (1, "PORT_ACTIVE")
    assert any(index == 1 and text.startswith("::ffff:") for index, text in port["gids"])
    fabric.cut(0)
    assert _group.verbs_devices(str(library_path()))[0]["ports"][0]["state"] == "PORT_DOWN"


def test_a_link_carries_messages_and_tells_what_it_has(fabric: FakeFabric) -> None:
    before = _group.verbs_counts()
    links = joined(cables=2)
    assert all(isinstance(link, _group.Link) for link in links), links
    ends = dict(zip("ab", links, strict=True))
    sizes = (0, 6144, 65536, 1_000_003)

    def talk(host: str) -> Any:
        for size in sizes:
            if host == "a":
                _group.link_ping(ends[host], size, 5, SECONDS)
                assert _group.link_flood(ends[host], size, 5, SECONDS) > 0
            else:
                _group.link_echo(ends[host], size, 5, SECONDS)
                _group.link_drain(ends[host], size, 5, SECONDS)

    assert both(talk) == [None, None]
    facts = _group.verbs_link_facts(ends["a"])
    assert ends["a"].provider == "verbs"
    assert (facts["mode"], facts["cables"], facts["cables_alive"], facts["regions"]) == ("uc", 2, 2, 2)
    assert facts["queue_pairs"] == 2 * len(facts["classes"])
    assert facts["lost"] == facts["broken"] == 0
    buffers = sum(2 * size["bytes"] * (size["sends"] + size["receives"]) for size in facts["classes"])
    assert ends["a"].pool_bytes == buffers + 2 * 4 * facts["classes"][0]["bytes"]
    links.clear()
    ends.clear()
    after = _group.verbs_counts()
    assert after["queue_pairs_made"] - before["queue_pairs_made"] == 2 * facts["queue_pairs"]
    for kind in ("queue_pairs", "regions"):
        assert (
            after[f"{kind}_made"] - after[f"{kind}_freed"] == before[f"{kind}_made"] - before[f"{kind}_freed"]
        )
    assert fabric.counters().queue_pairs == 0


def test_a_word_that_is_ahead_of_its_message_wakes_nobody_too_early(fabric: FakeFabric) -> None:
    # No device wakes anybody here; the peer's word on the socket comes long before what it tells of. Asking for what is
    # missing would take longer than the test may.
    fabric.change(latency_ns=15_000_000)
    links = dict(zip("ab", joined(retransmit_ms=10_000.0), strict=True))

    def talk(host: str) -> Any:
        way = _group.link_ping if host == "a" else _group.link_echo
        for size in (6144, 300_000):
            way(links[host], size, 3, 20.0)

    assert both(talk) == [None, None]
    assert _group.verbs_link_facts(links["a"])["retransmitted"] == 0


def test_ends_that_do_not_fit_raise_the_reason_at_both(fabric: FakeFabric) -> None:
    del fabric
    for error in joined(build=("25C56", "25D12")):
        assert isinstance(error, ValueError)
        assert "25C56" in str(error)
        assert "25D12" in str(error)
    with pytest.raises(ValueError, match="must be auto, uc or rc"):
        _group.VerbsOptions(mode="ud")
    with pytest.raises(ValueError, match="retransmit_ms"):
        _group.VerbsOptions(retransmit_ms=-1.0)


def test_a_missing_device_or_library_is_an_os_error_and_closes_the_socket(fabric: FakeFabric) -> None:
    del fabric
    cable = _group.VerbsCable(device="en7", port=1, gid_index=1)
    for library, words in (("", "en7"), ("/nowhere/libibverbs.so", "/nowhere/libibverbs.so")):
        left, right = socket.socketpair()
        with right:
            with pytest.raises(OSError, match=words):
                _group.verbs_link(
                    left.detach(), [cable], OPTIONS, _group.VerbsOptions(library=library), SECONDS
                )
            right.settimeout(SECONDS)
            assert right.recv(1) == b""
    with pytest.raises(OSError, match="nowhere"):
        _group.verbs_devices("/nowhere/libibverbs.so")


def test_a_pulled_cable_ends_what_waits(fabric: FakeFabric) -> None:
    links = joined(retransmit_ms=2.0)
    ends = dict(zip("ab", links, strict=True))
    fabric.cut(0)

    def wait(host: str) -> Any:
        if host == "a":
            return _group.link_ping(ends[host], 100_000, 1, SECONDS)
        return _group.link_echo(ends[host], 100_000, 1, SECONDS)

    for error in both(wait):
        assert isinstance(error, ConnectionError), error


def test_a_link_over_another_provider_has_no_such_facts() -> None:
    left, right = socket.socketpair()
    with right:
        link = _group.tcp_link(os.dup(left.fileno()), OPTIONS)
        left.close()
        with pytest.raises(ValueError, match="carried by tcp"):
            _group.verbs_link_facts(link)
