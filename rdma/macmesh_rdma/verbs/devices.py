"""Asks the verbs library for this machine's RDMA devices, in a process of its own.

A driver may crash or hang, and the native module brings MLX; neither is for the daemon. The process is `devices_main`.
"""

import json
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from macmesh_rdma.jaccl.facts import run_command
from macmesh_rdma.verbs.facts import VerbsFacts
from macmesh_rdma.verbs.settings import LIBRARY_VARIABLE

Runner = Callable[[Sequence[str]], Awaitable[str]]
"""As `macmesh_rdma.jaccl.facts.Runner`."""

PROGRAM = "macmesh_rdma.verbs.devices_main"
LINUX_DEVICES = Path("/sys/class/infiniband")


async def verbs_facts(library: str, *, runner: Runner = run_command) -> VerbsFacts:
    """What the verbs library tells of this machine. Never fails: what cannot be found out becomes the refusal.

    Args:
        library: its file; empty: the system's.
        runner: runs the process; see `macmesh_rdma.jaccl.facts.run_command`, whose deadline holds.
    """
    try:
        value = json.loads(await runner((sys.executable, "-m", PROGRAM, library)))
        return VerbsFacts.from_json(value)
    except (OSError, TimeoutError, ValueError) as error:
        told = str(error) or type(error).__name__
        return VerbsFacts(refused=f"the devices of the verbs library cannot be found out: {told}")


def may_have_devices(library: str, *, platform: str = sys.platform, folder: Path = LINUX_DEVICES) -> bool:
    """Whether it is worth asking: a library was named, or the system knows of devices. Blocks for a moment."""
    if library or os.environ.get(LIBRARY_VARIABLE):
        return True
    if platform == "linux":
        return folder.is_dir() and any(folder.iterdir())
    return platform == "darwin"
