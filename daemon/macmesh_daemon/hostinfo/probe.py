"""The memory bandwidth of this machine: measured once in a subprocess, then read from a file.

What is measured is what the CPU cores copy. On a Mac the GPU reaches more of the memory's bandwidth than
the CPU does on the larger chips, so the chip's published figure is shown beside it.
"""

import asyncio
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

from macmesh_daemon.files import write_durably
from macmesh_daemon.hostinfo.errors import LocalProbeError

FILE_NAME = "bandwidth.json"
_FORMAT_VERSION = 1
# Faster than any memory of these years: a figure above it is a broken file.
_MAX_GB_PER_S = 100_000.0
_DEADLINE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class BandwidthRecord:
    """One measurement."""

    #: Names the machine: a result moves with a copied folder, but is not believed elsewhere.
    key: str
    bandwidth_gb_per_s: float

    def to_json(self) -> str:
        """Return one line of JSON."""
        return json.dumps(
            {"version": _FORMAT_VERSION, "key": self.key, "bandwidth_gb_per_s": self.bandwidth_gb_per_s}
        )


def parse_record(text: str, key: str) -> BandwidthRecord | None:
    """Read what ``to_json`` wrote; None where it is broken or of another key."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    if not isinstance(value, dict) or value.get("version") != _FORMAT_VERSION or value.get("key") != key:
        return None
    rate = value.get("bandwidth_gb_per_s")
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not math.isfinite(rate):
        return None
    return BandwidthRecord(key, float(rate)) if 0 < rate <= _MAX_GB_PER_S else None


def read_record(path: Path, key: str) -> BandwidthRecord | None:
    """Return the kept measurement for ``key``, None where there is none that can be read."""
    try:
        return parse_record(path.read_text("utf-8"), key)
    except (OSError, UnicodeDecodeError):
        return None


def write_record(path: Path, record: BandwidthRecord) -> None:
    """Keep a measurement.

    Raises:
        OSError: The file cannot be written.
    """
    write_durably(path, f"{record.to_json()}\n".encode(), mode=0o644)


async def bandwidth_gb_per_s(
    cache_dir: Path,
    key: str,
    *,
    deadline_seconds: float = _DEADLINE_SECONDS,
    command: tuple[str, ...] = (sys.executable, "-m", "macmesh_daemon.hostinfo.probe_main"),
) -> float:
    """Return the measured memory bandwidth in 10⁹ bytes per second, from the file or by measuring now.

    Args:
        cache_dir: Folder of the kept measurement; made where missing.
        key: Names the machine.
        deadline_seconds: For the measurement, other daemons' turns included.
        command: The measuring program; replaced in tests.

    Raises:
        LocalProbeError: It could not be measured.
    """
    path = cache_dir / FILE_NAME
    record = await asyncio.to_thread(read_record, path, key)
    if record is not None:
        return record.bandwidth_gb_per_s
    try:
        await asyncio.to_thread(cache_dir.mkdir, mode=0o700, parents=True, exist_ok=True)
        process = await asyncio.create_subprocess_exec(
            *command,
            "--cache",
            str(path),
            "--key",
            key,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except OSError as error:
        raise LocalProbeError(f"the memory bandwidth cannot be measured: {error}") from error
    try:
        async with asyncio.timeout(deadline_seconds):
            output, errors = await process.communicate()
    except TimeoutError:
        raise LocalProbeError(
            f"measuring the memory bandwidth took more than {deadline_seconds:g} s and was stopped"
        ) from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    record = parse_record(output.decode("utf-8", "replace"), key) if process.returncode == 0 else None
    if record is None:
        lines = errors.decode("utf-8", "replace").strip().splitlines()
        reason = lines[-1] if lines else "it printed no result"
        raise LocalProbeError(
            f"measuring the memory bandwidth failed (exit status {process.returncode}): {reason}"
        )
    return record.bandwidth_gb_per_s
