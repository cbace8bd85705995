"""What macOS says about the machine: commands and the parsing of their output."""

import re
import subprocess
from dataclasses import dataclass

_DEADLINE_SECONDS = 5.0
_SYSCTL_COMMAND = (
    "/usr/sbin/sysctl",
    "-i",  # a name that this version of macOS lacks is left out, not an error
    "machdep.cpu.brand_string",
    "hw.memsize",
    "hw.ncpu",
    "iogpu.wired_limit_mb",
    "hw.model",
)
_BATTERY_COMMAND = ("/usr/bin/pmset", "-g", "batt")
_GPU_COMMAND = ("/usr/sbin/ioreg", "-rd1", "-c", "AGXAccelerator")
_GPU_CORES = re.compile(r'"gpu-core-count"\s*=\s*(\d+)')


@dataclass(frozen=True, slots=True)
class MacFacts:
    """What the commands said; 0, empty or False where one said nothing."""

    chip: str = ""
    ram_bytes: int = 0
    cpu_count: int = 0
    wired_limit_mb: int = 0
    model: str = ""
    gpu_cores: int = 0
    portable: bool = False


def parse_sysctl(output: str) -> dict[str, str]:
    """Read lines of ``name: value``."""
    values: dict[str, str] = {}
    for line in output.splitlines():
        name, separator, value = line.partition(":")
        if separator:
            values[name.strip()] = value.strip()
    return values


def parse_gpu_cores(output: str) -> int:
    """Find the number of GPU cores in the output of ``ioreg -rd1 -c AGXAccelerator``; 0 where it lacks."""
    match = _GPU_CORES.search(output)
    return int(match.group(1)) if match else 0


def parse_has_battery(output: str) -> bool:
    """Say from the output of ``pmset -g batt`` whether the machine has a battery of its own.

    A desktop Mac lists none; one on an uninterruptible power supply lists that, under another name.
    """
    return "InternalBattery" in output


def facts_from(sysctl: str, gpu: str, battery: str) -> MacFacts:
    """Put the three outputs together."""
    values = parse_sysctl(sysctl)
    model = values.get("hw.model", "")
    return MacFacts(
        chip=values.get("machdep.cpu.brand_string", ""),
        ram_bytes=_number(values.get("hw.memsize")),
        cpu_count=_number(values.get("hw.ncpu")),
        wired_limit_mb=_number(values.get("iogpu.wired_limit_mb")),
        model=model,
        gpu_cores=parse_gpu_cores(gpu),
        portable=parse_has_battery(battery) or model.startswith("MacBook"),
    )


def read_mac_facts() -> MacFacts:
    """Ask the running system. Blocks for at most 15 s, normally for some tens of milliseconds."""
    return facts_from(_output(_SYSCTL_COMMAND), _output(_GPU_COMMAND), _output(_BATTERY_COMMAND))


def _output(command: tuple[str, ...]) -> str:
    try:
        result = subprocess.run(  # noqa: S603  constant absolute paths
            command, capture_output=True, text=True, timeout=_DEADLINE_SECONDS, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return result.stdout


def _number(text: str | None) -> int:
    return int(text) if text is not None and text.isascii() and text.isdigit() else 0
