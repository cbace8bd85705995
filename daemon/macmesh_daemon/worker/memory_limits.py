"""What MLX may hold, wire and keep, as the ledger has it. Imports mlx."""

from typing import Any, Protocol, cast

import mlx.core as mx

from macmesh.v1 import types_pb2
from macmesh_placement import Reserves

#: Lines of the ledger that are no arrays of MLX.
_NOT_ARRAYS = frozenset({"transport_pool", "runtime_reserve"})


class Metal(Protocol):
    """`mlx.core.metal`."""

    def is_available(self) -> bool:
        """Whether this MLX computes on Metal."""


class Mlx(Protocol):
    """What of `mlx.core` is needed here."""

    @property
    def metal(self) -> Metal:
        """The Metal backend."""

    def device_info(self) -> dict[str, Any]:
        """Facts of the default device."""

    def set_wired_limit(self, limit: int) -> int:
        """Bytes that stay resident; Metal raises ValueError above the device's recommended working set."""

    def set_cache_limit(self, limit: int) -> int:
        """Bytes of freed buffers that are kept."""

    def set_memory_limit(self, limit: int) -> int:
        """Bytes above which an allocation waits for the device."""


class MemoryLimits:
    """The limits of a process that runs stages one after the other: each is held to its own ledger.

    Args:
        mlx: by default `mlx.core`.
    """

    def __init__(self, mlx: Mlx | None = None) -> None:
        self._mlx = cast("Mlx", mx) if mlx is None else mlx
        self._own_bytes: int | None = None

    def set(self, ledger: types_pb2.Ledger) -> None:
        """See `set_memory_limits`. A ledger without lines gives MLX its own limit back."""
        before = set_memory_limits(ledger, self._mlx)
        if self._own_bytes is None:
            self._own_bytes = before
        elif before is None:
            self._mlx.set_memory_limit(self._own_bytes)


def set_memory_limits(ledger: types_pb2.Ledger, mlx: Mlx | None = None) -> int | None:
    """Holds MLX to what the ledger charges.

    Metal keeps resident what the ledger says may be wired, at most what the device recommends, and all of that where
    the ledger does not say; elsewhere there is no such limit. Freed buffers are kept up to the size that the ledger
    has as allocator slack, on every backend. MLX waits for the GPU before it allocates beyond what the ledger charges
    for arrays; a ledger without lines sets no limit.

    Args:
        ledger: of the stage.
        mlx: by default `mlx.core`.

    Returns:
        The memory limit that was in force before; None where none is set.
    """
    mlx = cast("Mlx", mx) if mlx is None else mlx
    if mlx.metal.is_available():
        recommended = int(mlx.device_info()["max_recommended_working_set_size"])
        mlx.set_wired_limit(min(ledger.usable_bytes or recommended, recommended))
    kept_bytes = Reserves().buffer_cache_bytes
    mlx.set_cache_limit(kept_bytes)
    charged = {entry.name: entry.size_bytes for entry in ledger.entries}
    arrays_bytes = sum(size for name, size in charged.items() if name not in _NOT_ARRAYS)
    if arrays_bytes > kept_bytes:
        return mlx.set_memory_limit(arrays_bytes - min(kept_bytes, charged.get("allocator_slack", 0)))
    return None
