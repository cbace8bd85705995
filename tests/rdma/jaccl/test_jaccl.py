"""The jaccl group as far as it can be tested without RDMA: everything around MLX's backend."""

import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from macmesh_rdma.errors import (
    LocalLaneStateError,
    LocalProviderError,
    RemoteMismatchError,
    RemotePeerLostError,
    RemoteTimeoutError,
    TransportError,
)
from macmesh_rdma.jaccl import group as jaccl_group
from macmesh_rdma.jaccl.device_matrix import DeviceMatrix
from macmesh_rdma.jaccl.exchange import RingExchange
from macmesh_rdma.jaccl.group import GatherFactory, is_built, jaccl_environment, open_jaccl
from macmesh_rdma.ring.reserved_port import ReservedPort

MATRIX = DeviceMatrix((((), ("rdma_en2",)), (("rdma_en3",), ())), ring=False)
RING = DeviceMatrix((((), ("a",), ("b",)), (("a",), (), ("b",)), (("a",), ("b",), ())), ring=True)


def exchanges(size: int) -> list[RingExchange]:
    ring: list[RingExchange] = []

    def sender(rank: int) -> Callable[[bytes], None]:
        # The ring is complete only later.
        return lambda message: ring[(rank + 1) % size].deliver(message)  # noqa: PLW0108

    ring.extend(RingExchange(rank, size, sender(rank)) for rank in range(size))
    return ring


def on_threads(calls: list[Callable[[], Any]]) -> list[Any]:
    results: list[Any] = [None] * len(calls)

    def run(index: int) -> None:
        try:
            results[index] = calls[index]()
        except TransportError as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_the_exchange_gathers_in_the_order_of_the_ranks(size: int) -> None:
    ring = exchanges(size)

    def rounds(rank: int) -> list[list[bytes]]:
        return [ring[rank].all_gather(b"%d.%d" % (rank, turn), 10) for turn in range(20)]

    expected = [[b"%d.%d" % (rank, turn) for rank in range(size)] for turn in range(20)]
    assert on_threads([lambda rank=rank: rounds(rank) for rank in range(size)]) == [expected] * size  # type: ignore[misc]


def test_the_exchange_ends_by_silence_loss_and_confusion() -> None:
    ring = exchanges(2)
    with pytest.raises(RemoteTimeoutError, match=r"rank 1 sent nothing in round 1 within 0.01 s"):
        ring[0].all_gather(b"x", 0.01)
    with pytest.raises(RemotePeerLostError, match="ended: rank 1 sent nothing"):
        ring[0].all_gather(b"x", 1)
    confused, _ = exchanges(2)
    confused.deliver(b"")
    with pytest.raises(RemoteMismatchError, match="expected round 1 of rank 1"):
        confused.all_gather(b"x", 1)
    waiting, _ = exchanges(2)
    timer = threading.Timer(0.05, waiting.fail, ("the control lane broke",))
    timer.start()
    for _ in range(2):
        with pytest.raises(RemotePeerLostError, match="the control lane broke"):
            waiting.all_gather(b"x", 10)
    timer.join()


def test_the_factory_gives_every_rank_the_same_bytes() -> None:
    ring = exchanges(3)
    factories = [GatherFactory(rank, 3, ring[rank], 10) for rank in range(3)]
    gathered = on_threads(
        [lambda rank=rank: factories[rank](rank, 3)(bytes([rank]) * 5, 5) for rank in range(3)]  # type: ignore[misc]
    )
    assert gathered == [b"\0\0\0\0\0\1\1\1\1\1\2\2\2\2\2"] * 3


def test_the_factory_refuses_another_rank_and_other_sizes() -> None:
    factory = GatherFactory(0, 2, exchanges(2)[0], 1)
    with pytest.raises(LocalLaneStateError, match="rank 1 of 2, not rank 0 of 2"):
        factory(1, 2)
    ring = exchanges(2)
    told = on_threads(
        [
            lambda: GatherFactory(0, 2, ring[0], 5)(0, 2)(b"four", 4),
            lambda: GatherFactory(1, 2, ring[1], 5)(1, 2)(b"five!", 5),
        ]
    )
    assert "rank 1 gave 5 bytes" in str(told[0])
    assert "rank 0 gave 4 bytes" in str(told[1])


def test_the_environment_is_set_exactly_and_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JACCL_RANK", "7")
    monkeypatch.setenv("MLX_RANK", "6")
    monkeypatch.setenv("MLX_JACCL_COORDINATOR", "evil:1")
    with jaccl_environment(1, MATRIX):
        there = {name: os.environ[name] for name in jaccl_group.VARIABLES if name in os.environ}
        path = Path(there.pop("MLX_IBV_DEVICES"))
        assert there == {"MLX_RANK": "1"}
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert json.loads(path.read_text()) == [[None, "rdma_en2"], ["rdma_en3", None]]
    assert not path.exists()
    assert os.environ["JACCL_RANK"] == "7"
    assert os.environ["MLX_RANK"] == "6"
    assert "MLX_IBV_DEVICES" not in os.environ
    with jaccl_environment(0, RING):
        assert os.environ["MLX_JACCL_RING"] == "1"


@pytest.mark.skipif(sys.platform == "darwin", reason="MLX has jaccl there")
def test_without_rdma_there_is_a_clear_refusal_and_mlx_alone_would_be_silent() -> None:
    assert not is_built()
    with pytest.raises(LocalProviderError, match="has no jaccl"):
        open_jaccl(0, 2, MATRIX, exchanges(2)[0], timeout_seconds=5, on_stall=pytest.fail)
    # What makes the check of the size necessary: no error, a group of one.
    with jaccl_environment(1, MATRIX):
        assert mx.distributed.init(strict=False, backend="jaccl").size() == 1


class FakeGroup:
    """A group that MLX might return."""

    def __init__(self, rank: int, size: int) -> None:
        self._rank = rank
        self._size = size

    def rank(self) -> int:
        return self._rank

    def size(self) -> int:
        return self._size


def open_with(init: Callable[..., Any], exchange: RingExchange | None = None) -> Any:
    return open_jaccl(
        0,
        2,
        MATRIX,
        exchange or exchanges(2)[0],
        timeout_seconds=20,
        on_stall=pytest.fail,
        init=init,
    )


def test_a_group_of_one_is_no_group() -> None:
    with pytest.raises(LocalProviderError, match=r"group of 1 rank\(s\) with us as rank 0, not of 2"):
        open_with(lambda **_: FakeGroup(0, 1))
    with pytest.raises(LocalProviderError, match="with us as rank 1"):
        open_with(lambda **_: FakeGroup(1, 2))
    with pytest.raises(LocalLaneStateError, match="matrix for 2 ranks"):
        open_jaccl(0, 3, MATRIX, exchanges(3)[0], timeout_seconds=1, on_stall=pytest.fail)


def test_what_goes_wrong_in_the_exchange_is_told_whatever_native_code_makes_of_it() -> None:
    def native(*, all_gather_factory: GatherFactory, **_: object) -> FakeGroup:
        try:
            all_gather_factory(0, 2)(b"gid", 3)
        except TransportError:
            raise RuntimeError("std::exception") from None
        return FakeGroup(0, 2)

    lost = exchanges(2)[0]
    lost.fail("gone")
    with pytest.raises(RemotePeerLostError, match="gone"):
        open_with(native, lost)

    def unusable(**_: object) -> FakeGroup:
        raise RuntimeError("[jaccl] Couldn't allocate protection domain")

    with pytest.raises(LocalProviderError, match="protection domain"):
        open_with(unusable)


def test_a_group_that_stands_is_tested_before_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    tested: list[object] = []
    monkeypatch.setattr(jaccl_group, "check_group", tested.append)
    given: dict[str, object] = {}

    def native(**options: Any) -> FakeGroup:
        given.update(options)
        return FakeGroup(0, 2)

    group = open_with(native)
    assert tested == [group]
    assert given["strict"] is True
    assert given["backend"] == "jaccl"

    def broken(_group: object) -> None:
        raise RuntimeError("a wait was ended")

    monkeypatch.setattr(jaccl_group, "check_group", broken)
    with pytest.raises(RemotePeerLostError, match="a wait was ended"):
        open_with(native)


@pytest.mark.process
@pytest.mark.parametrize("fault", ["none", "wrong"])
def test_the_groups_self_test_over_mlxs_ring(fault: str, tmp_path: Path) -> None:
    with ReservedPort("127.0.0.1") as one, ReservedPort("127.0.0.1") as two:
        hosts = tmp_path / "hosts.json"
        hosts.write_text(json.dumps([[one.address], [two.address]]))
        ranks = [
            subprocess.Popen(
                [sys.executable, str(Path(__file__).parent / "group_check_main.py"), fault],
                env={**os.environ, "MLX_HOSTFILE": str(hosts), "MLX_RANK": str(rank)},
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            for rank in range(2)
        ]
        try:
            told = [rank.communicate(timeout=120)[0].strip() for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()
    if fault == "none":
        assert told == ["passed", "passed"]
    else:
        # Both ends of the damaged kind of transfer differ: from rank 0, and from rank 1.
        assert (
            told[0]
            == "mismatch: 2 transfer(s) of the group's self-test arrived wrong: 6144 bytes from rank 1"
        )
        assert told[1].endswith("6144 bytes from rank 0")
