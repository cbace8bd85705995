"""What Linux says about the machine."""

import re
from pathlib import Path

_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
_CPUINFO = Path("/proc/cpuinfo")
_CHASSIS = Path("/sys/class/dmi/id/chassis_type")
# SMBIOS 3.x, table 17: portable, laptop, notebook, sub-notebook, convertible, detachable.
_PORTABLE_CHASSIS = frozenset({"8", "9", "10", "14", "31", "32"})


def parse_cpu_name(cpuinfo: str) -> str:
    """Find the processor's name in ``/proc/cpuinfo``; empty where it has none."""
    match = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return match.group(1).strip() if match else ""


def limited_ram_bytes(total_bytes: int, cgroup_limit: str) -> int:
    """Return the memory that a process may take: all of it, or the control group's limit where that is less.

    Args:
        total_bytes: The machine's memory.
        cgroup_limit: Content of ``memory.max``: a number, ``max``, or empty where there is none.
    """
    text = cgroup_limit.strip()
    return min(total_bytes, int(text)) if text.isascii() and text.isdigit() else total_bytes


def read_cpu_name() -> str:
    """Return the processor's name."""
    return parse_cpu_name(_read(_CPUINFO))


def read_ram_bytes(total_bytes: int) -> int:
    """Return the memory that this process may take of ``total_bytes``."""
    return limited_ram_bytes(total_bytes, _read(_CGROUP_LIMIT))


def is_portable() -> bool:
    """Say whether the firmware calls the machine portable."""
    return _read(_CHASSIS).strip() in _PORTABLE_CHASSIS


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""
