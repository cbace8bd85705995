"""Our groups and links between the ranks of a measurement. Imports mlx."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx  # noqa: F401  the native module needs it loaded first

from macmesh_rdma import _group
from macmesh_rdma.bench.rows import SIZES_BYTES, Row, flood_count, percentiles, repeats
from macmesh_rdma.group import Group, open_group
from macmesh_rdma.joining.bringup import connect_peers
from macmesh_rdma.joining.endpoint import Endpoint
from macmesh_rdma.joining.listener import Listener
from macmesh_rdma.native_links import native_links
from macmesh_rdma.options import LinkOptions

_EPOCH = (1, 1, 1)
_HOST_ID = "measured"
_DEADLINE_SECONDS = 60.0
_Meet = Callable[[str], list[str]]


@contextlib.contextmanager
def opened(task: dict[str, Any], meet: _Meet, host: str) -> Iterator[Group]:
    """A group of all ranks over the provider that the task names."""
    with Listener(host, host_id=_HOST_ID) as listener:
        endpoints = [Endpoint.decode(text) for text in meet(listener.endpoint.encode())]
        with open_group(
            listener,
            task["rank"],
            endpoints,
            key=bytes.fromhex(task["key"]),
            epoch=_EPOCH,
            options=LinkOptions.preset(task["preset"]),
            provider=task["provider"],
            timeout_seconds=_DEADLINE_SECONDS,
            measure=False,
        ) as group:
            yield group


def links(task: dict[str, Any], meet: _Meet, host: str) -> list[Row]:
    """The native link alone between two ranks; the rows come from rank 0."""
    options = LinkOptions.preset(task["preset"])
    rank, quick = task["rank"], task["quick"]
    with Listener(host, host_id=_HOST_ID) as listener:
        endpoints = [Endpoint.decode(text) for text in meet(listener.endpoint.encode())]
        connected = connect_peers(
            listener,
            rank,
            endpoints,
            key=bytes.fromhex(task["key"]),
            epoch=_EPOCH,
            name="links",
            lanes=(0,),
            options=options,
            provider=task["provider"],
            timeout_seconds=_DEADLINE_SECONDS,
        )
        link = native_links(connected[1 - rank], options)[0][0]
        rows = []
        for size_bytes in SIZES_BYTES:
            count, floods = repeats(size_bytes, quick=quick), flood_count(size_bytes, quick=quick)
            if rank == 0:
                trips = _group.link_ping(link, size_bytes, count + 10, _DEADLINE_SECONDS)[10:]
                seconds = _group.link_flood(link, size_bytes, floods, _DEADLINE_SECONDS)
                p50, p99 = percentiles([trip / 2 for trip in trips])
                speed = round(size_bytes * floods / seconds / 1e9, 3)
                rows.append(Row(task["provider"], "link", "send", 2, size_bytes, p50, p99, speed))
            else:
                _group.link_echo(link, size_bytes, count + 10, _DEADLINE_SECONDS)
                _group.link_drain(link, size_bytes, floods, _DEADLINE_SECONDS)
        del link
        connected[1 - rank].close()
    return rows
