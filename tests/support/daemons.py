"""Real daemons on this machine, with room so that the demo model needs some of them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import psutil

from macmesh_daemon.demo.nodes import DemoCluster, DemoNode, NodeSettings
from macmesh_daemon.demo.scenario import RUNTIME_RESERVE_BYTES
from macmesh_daemon.demo.sizing import demo_reserves, usable_bytes_for
from macmesh_daemon.models.demo import demo_model_folder
from support import mesh

if TYPE_CHECKING:
    from pathlib import Path

    from macmesh import ClusterStatus

MODEL = str(demo_model_folder())
#: Of whatever a daemon is waited for. Real processes take longer to start than nodes of the test's own.
DEADLINE_SECONDS = 120.0
until = partial(mesh.until, deadline_seconds=DEADLINE_SECONDS)


async def cluster_of(
    folder: Path, count: int, *, needed: int, context_tokens: int, **extra: object
) -> DemoCluster:
    """Some daemons of which the model needs `needed`; they know each other's addresses, and measure nothing."""
    usable_bytes = usable_bytes_for(
        await mesh.profile_demo_model(), needed, context_tokens, demo_reserves(RUNTIME_RESERVE_BYTES)
    )
    settings = NodeSettings(
        usable_bytes=usable_bytes,
        runtime_reserve_bytes=RUNTIME_RESERVE_BYTES,
        bootstrap_expect=count,
        mdns=False,
        probe_cache_dir=folder,
        extra={"bandwidth_probe": False, **extra},
    )
    return DemoCluster(folder, count, settings)


async def start(cluster: DemoCluster) -> None:
    """Start the daemons; return once they answer."""
    await cluster.start()
    for node in cluster.nodes:
        await node.ready(DEADLINE_SECONDS)


def process_of(node: DemoNode) -> psutil.Process:
    """The daemon's process."""
    assert node.pid is not None
    return psutil.Process(node.pid)


def worker_of(node: DemoNode) -> psutil.Process:
    """The process of the daemon's only worker."""
    [worker] = process_of(node).children()
    return worker


def has_formed(count: int, status: ClusterStatus) -> bool:
    """Whether so many nodes are one cluster."""
    return status.has_quorum and len(status.document.members) == count


def epoch_of(status: ClusterStatus) -> tuple[int, int, int]:
    """The plan's epoch, which grows."""
    epoch = status.document.plan.epoch
    return epoch.generation, epoch.term, epoch.seq
