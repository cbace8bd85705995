"""Which physical machine this is, so that a cloned disk does not become a second node with the same id."""

import hashlib
import re
import subprocess
import sys
from pathlib import Path

_IOREG_COMMAND = ("/usr/sbin/ioreg", "-rd1", "-c", "IOPlatformExpertDevice")
_IOREG_UUID = re.compile(r'"IOPlatformUUID"\s*=\s*"([0-9A-Fa-f-]{36})"')
_MACHINE_ID_PATHS = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))
_BOOT_ID_PATH = Path("/proc/sys/kernel/random/boot_id")
_COMMAND_DEADLINE_SECONDS = 5.0


def parse_ioreg_uuid(output: str) -> str | None:
    """Find the hardware UUID in the output of ``ioreg -rd1 -c IOPlatformExpertDevice``."""
    match = _IOREG_UUID.search(output)
    return match.group(1).upper() if match else None


def hardware_uuid() -> str | None:
    """Return the machine's own identifier, or None where it has none that can be read.

    macOS: ``IOPlatformUUID``. Linux: ``/etc/machine-id`` (made at installation; cloned images are expected to
    remove it). Blocks for at most 5 s.
    """
    if sys.platform == "darwin":
        try:
            result = subprocess.run(  # noqa: S603  a constant absolute path
                _IOREG_COMMAND, capture_output=True, text=True, timeout=_COMMAND_DEADLINE_SECONDS, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return parse_ioreg_uuid(result.stdout)
    return _read_first(_MACHINE_ID_PATHS)


def hardware_id() -> str:
    """Return a hash of the hardware UUID, 32 hex digits; empty where the machine has none.

    The UUID itself stays on the machine.
    """
    uuid = hardware_uuid()
    return _digest("hardware", uuid) if uuid else ""


def host_id() -> str:
    """Return what tells this machine from others, so that several daemons on one are counted once.

    The hardware id where there is one; else a hash of the running kernel's boot id, which all daemons of
    the machine share until it restarts; else empty.
    """
    found = hardware_id()
    if found:
        return found
    boot_id = _read_first((_BOOT_ID_PATH,))
    return _digest("boot", boot_id) if boot_id else ""


def _digest(kind: str, value: str) -> str:
    return hashlib.sha256(f"macmesh {kind} {value}".encode()).hexdigest()[:32]


def _read_first(paths: tuple[Path, ...]) -> str | None:
    for path in paths:
        try:
            text = path.read_text("ascii").strip()
        except (OSError, ValueError):
            continue
        if text and text != "uninitialized":
            return text
    return None
