"""Reads weights into the page cache, or fetches them, before a plan changes: the switch need not wait for them.

The names of the tensors are hints, no more: what is missed is read by the worker, as ever. What was not fetched in time
is fetched once the plan is committed.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from typing import TYPE_CHECKING

from macmesh_daemon.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from macmesh_daemon.cluster.messages import Deployment, FetchProgress, Plan
    from macmesh_daemon.models import ModelFolder

    #: As `WeightsDesk.provide`.
    Provide = Callable[[Deployment, int, Callable[[FetchProgress], None]], Awaitable[Path]]

_log = get_logger(part="read ahead")

_CHUNK_BYTES = 8 << 20
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")


def layer_of(tensor_name: str) -> int | None:
    """The layer that a tensor belongs to, by the usual names; None where it names none."""
    found = _LAYER.search(tensor_name)
    return int(found[1]) if found else None


def missing_layers(current: Plan | None, coming: Plan, node_id: str) -> frozenset[int]:
    """The layers that a node will run and does not run now."""
    found, held = coming.stage_of(node_id), current.stage_of(node_id) if current is not None else None
    if found is None:
        return frozenset()
    deployment, stage = found
    layers = frozenset(range(stage.first_layer, stage.end_layer))
    if held is None or held[0].model is None or held[0].model != deployment.model:
        return layers
    return layers - frozenset(range(held[1].first_layer, held[1].end_layer))


def read_ahead(folder: ModelFolder, layers: frozenset[int], deadline_seconds: float) -> int:
    """Read the tensors of these layers, until done or out of time; returns the bytes read.

    Blocks: call in a thread. Files that cannot be read are left to the worker, which tells why.
    """
    until = time.monotonic() + deadline_seconds
    read_bytes = 0
    wanted = sorted(
        (info.file, info.begin, info.end) for name, info in folder.tensors.items() if layer_of(name) in layers
    )
    for name in sorted({name for name, _, _ in wanted}):
        try:
            with (folder.path / name).open("rb", buffering=0) as file:
                for _, begin, end in (part for part in wanted if part[0] == name):
                    for at in range(begin, end, _CHUNK_BYTES):
                        if time.monotonic() >= until:
                            return read_bytes
                        read_bytes += len(os.pread(file.fileno(), min(_CHUNK_BYTES, end - at), at))
        except OSError:
            continue
    return read_bytes


async def fetch_ahead(provide: Provide, deployment: Deployment, stage_index: int, until: float) -> int:
    """Bring a stage's weights to this machine, until done or out of time; returns the bytes that came.

    What came stays, whatever becomes of the plan, and is not fetched again. What goes wrong is left to the fetch
    after the commit, which tells why.

    Args:
        provide: Fetches; leaves what came where it is cancelled.
        deployment: The plan's.
        stage_index: The stage of this node.
        until: By the event loop's clock.
    """
    fetched_bytes = 0

    def told(fetch: FetchProgress) -> None:
        nonlocal fetched_bytes
        fetched_bytes = fetch.peer_bytes + fetch.hub_bytes

    try:
        async with asyncio.timeout_at(until):
            await provide(deployment, stage_index, told)
    except TimeoutError:
        _log.info("out of time to fetch ahead", size_bytes=fetched_bytes)
    except Exception as error:  # noqa: BLE001  whatever it is, the PREPARE is answered
        _log.warning("weights cannot be fetched ahead", error=str(error))
    return fetched_bytes
