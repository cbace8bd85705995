"""How much of a machine's memory models may take: pure arithmetic on what the system says."""

_MIB = 1 << 20
_GIB = 1 << 30

#: Up to this much RAM, Metal recommends a working set of two thirds of it; above, three quarters.
METAL_SMALL_RAM_BYTES = 36 * _GIB

LINUX_LEAST_RESERVE_BYTES = 2 * _GIB


def metal_usable_bytes(ram_bytes: int, wired_limit_mb: int) -> int:
    """Return the bytes that Metal lets the GPU wire on a Mac.

    ``iogpu.wired_limit_mb`` is the limit where it is set (mebibytes). 0 means the default, which is Metal's
    ``recommendedMaxWorkingSetSize``: observed as two thirds of RAM up to 36 GiB and three quarters above.
    It is computed here rather than asked for, because asking needs Metal in the daemon's process. A worker
    that loads mlx sees the true figure and must refuse to exceed it.
    """
    if wired_limit_mb > 0:
        return min(wired_limit_mb * _MIB, ram_bytes)
    return ram_bytes * 2 // 3 if ram_bytes <= METAL_SMALL_RAM_BYTES else ram_bytes * 3 // 4


def linux_usable_bytes(ram_bytes: int) -> int:
    """Return the bytes that models may take on Linux, where macmesh computes on the CPU.

    RAM less a reserve for the system: an eighth of it, at least 2 GiB, at most half.
    """
    reserve = min(max(ram_bytes // 8, LINUX_LEAST_RESERVE_BYTES), ram_bytes // 2)
    return ram_bytes - reserve


def capped(usable_bytes: int, cap_bytes: int) -> int:
    """Apply the configured cap; 0 means none. A cap never raises what the system allows."""
    return min(usable_bytes, cap_bytes) if cap_bytes > 0 else usable_bytes
