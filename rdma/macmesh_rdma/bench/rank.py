"""One process of a measurement: prints its endpoint, reads everyone's, measures, prints its rows.

Both directions are lines of JSON on the standard streams, so that the ranks need nothing else to meet.
"""

import json
import os
import secrets
import socket
import sys
from collections.abc import Callable
from typing import Any

from macmesh_rdma.bench.rows import SIZES_BYTES, Row

_HOST = "127.0.0.1"


def main() -> None:
    """Runs the measurement that the first line of the standard input describes."""
    task = _read()
    rows = _TASKS[task["provider"]](task)
    _write({"rows": [row.to_json() for row in rows]})
    # Nobody leaves before all have measured; and MLX's ring has threads that nothing ends.
    sys.stdin.read()
    os._exit(0)


def _read() -> dict[str, Any]:
    line = sys.stdin.readline()
    if not line:
        sys.exit("the measurement was given up")
    value: dict[str, Any] = json.loads(line)
    return value


def _write(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def _meet(endpoint: str) -> list[str]:
    _write({"endpoint": endpoint})
    endpoints: list[str] = _read()["endpoints"]
    return endpoints


def _ring(task: dict[str, Any]) -> list[Row]:
    import mlx.core as mx  # noqa: PLC0415  the raw measurements run without it

    from macmesh_rdma.ring.lane import ring_environment  # noqa: PLC0415
    from macmesh_rdma.ring.reserved_port import ReservedPort  # noqa: PLC0415

    reserved = ReservedPort(_HOST)
    endpoints = _meet(reserved.address)
    with ring_environment(endpoints, task["rank"]):
        group = mx.distributed.init(strict=True, backend="ring")
    reserved.release()
    return _measured(group, task)


def _own(task: dict[str, Any]) -> list[Row]:
    from macmesh_rdma.bench.own_group import links, opened  # noqa: PLC0415  imports mlx

    if task["what"] == ["links"]:
        return links(task, _meet, _HOST)
    with opened(task, _meet, _HOST) as group:
        if task["what"] == ["host"]:
            from macmesh_rdma.bench.host import HostMeasured  # noqa: PLC0415  imports mlx

            return HostMeasured(group, task["provider"], quick=task["quick"]).rows()
        return _measured(group.mlx, task)


def _measured(group: Any, task: dict[str, Any]) -> list[Row]:
    from macmesh_rdma.bench.hops import Hops  # noqa: PLC0415  imports mlx
    from macmesh_rdma.bench.through_mlx import Measured  # noqa: PLC0415  imports mlx

    measured = Measured(group, task["provider"], quick=task["quick"])
    kinds = {
        "sends": measured.sends,
        "sends_apart": measured.sends_apart,
        "all_sums": measured.all_sums,
        "late_peer": measured.late_peer,
        "hops": Hops(group, task["provider"], quick=task["quick"]).rows,
    }
    return [row for name in task["what"] for row in kinds[name]()]


def _alone(task: dict[str, Any]) -> list[Row]:
    from macmesh_rdma.bench.hops import bare_copies, crossings  # noqa: PLC0415  imports mlx

    _meet("nobody")
    return crossings(quick=task["quick"]) + bare_copies(quick=task["quick"])


def _socket(task: dict[str, Any]) -> list[Row]:
    from macmesh_rdma.bench.limits import socket_pings  # noqa: PLC0415

    first = task["rank"] == 0
    with socket.create_server((_HOST, 0)) as listener:
        port = listener.getsockname()[1]
        endpoints = _meet(f"{_HOST}:{port}")
        if first:
            connection, _ = listener.accept()
        else:
            host, _, other = endpoints[0].rpartition(":")
            connection = socket.create_connection((host, int(other)), timeout=30)
    connection.settimeout(60)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with connection:
        found = [
            socket_pings(connection, size_bytes, first=first, quick=task["quick"])
            for size_bytes in SIZES_BYTES
        ]
    return [row for row in found if row is not None]


def new_key() -> str:
    """A key for one measurement's group."""
    return secrets.token_hex(32)


_TASKS: dict[str, Callable[[dict[str, Any]], list[Row]]] = {
    "ring": _ring,
    "shm": _own,
    "tcp": _own,
    "socket": _socket,
    "none": _alone,
}

if __name__ == "__main__":
    main()
