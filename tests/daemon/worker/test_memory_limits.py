"""Limits of MLX from the ledger, on a fake that refuses what Metal refuses."""

from typing import Any

import pytest

from macmesh.v1 import types_pb2
from macmesh_daemon.worker.memory_limits import MemoryLimits, set_memory_limits
from macmesh_placement import Reserves

GIB = 1 << 30


class FakeMetal:
    def __init__(self, *, available: bool) -> None:
        self._available = available

    def is_available(self) -> bool:
        return self._available


class FakeMlx:
    """`mlx.core` on a Mac whose GPU may wire 48 GiB; or on another machine, where nothing is wired."""

    def __init__(self, *, mac: bool = True) -> None:
        self.metal = FakeMetal(available=mac)
        self.wired: int | None = None
        self.cache: int | None = None
        self.memory: int | None = None
        self._mac = mac

    def device_info(self) -> dict[str, Any]:
        return {"max_recommended_working_set_size": 48 * GIB} if self._mac else {}

    def set_wired_limit(self, limit: int) -> int:
        if limit > 48 * GIB:
            raise ValueError("a wired limit larger than the maximum working set size is not allowed")
        before, self.wired = self.wired or 0, limit
        return before

    def set_cache_limit(self, limit: int) -> int:
        before, self.cache = self.cache or 0, limit
        return before

    def set_memory_limit(self, limit: int) -> int:
        before, self.memory = self.memory or 0, limit
        return before


@pytest.mark.parametrize(("usable", "wired"), [(40, 40), (48, 48), (60, 48), (0, 48)])
def test_metal_wires_what_the_ledger_says_and_no_more_than_it_may(usable: int, wired: int) -> None:
    mlx = FakeMlx()
    set_memory_limits(types_pb2.Ledger(usable_bytes=usable * GIB), mlx)
    assert mlx.wired == wired * GIB


def test_nothing_is_wired_off_metal() -> None:
    mlx = FakeMlx(mac=False)
    set_memory_limits(types_pb2.Ledger(usable_bytes=40 * GIB), mlx)
    assert (mlx.wired, mlx.cache, mlx.memory) == (None, Reserves().buffer_cache_bytes, None)


def test_arrays_are_held_to_what_is_charged_for_them() -> None:
    mlx = FakeMlx()
    entries = {"weights": 10 * GIB, "cache": 2 * GIB, "transport_pool": GIB, "runtime_reserve": GIB}
    ledger = types_pb2.Ledger(
        entries=[types_pb2.LedgerEntry(name=name, size_bytes=size) for name, size in entries.items()]
    )
    set_memory_limits(ledger, mlx)
    assert mlx.memory == 12 * GIB


def test_each_stage_of_a_process_is_held_to_its_own_ledger() -> None:
    mlx = FakeMlx()
    mlx.memory = 96 * GIB
    limits = MemoryLimits(mlx)
    told = []
    for weights in (30, 10, 0, 20):
        entries = [types_pb2.LedgerEntry(name="weights", size_bytes=weights * GIB)] if weights else []
        limits.set(types_pb2.Ledger(usable_bytes=40 * GIB, entries=entries))
        told.append(mlx.memory // GIB)
    assert told == [30, 10, 96, 20], "a ledger without lines gives MLX its own limit back"
