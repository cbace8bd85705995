"""What no transport can beat here: a copy in memory, and plain sockets without frames, checks or MLX."""

import socket
import time

import numpy as np

from macmesh_rdma.bench.rows import Row, flood_count, percentiles, repeats


def memcpy(size_bytes: int, *, quick: bool) -> Row:
    """One copy of that many bytes in this process."""
    source = np.ones(size_bytes, dtype=np.uint8)
    target = np.empty_like(source)
    seconds = []
    for _ in range(repeats(size_bytes, quick=quick)):
        began = time.perf_counter()
        np.copyto(target, source)
        seconds.append(time.perf_counter() - began)
    p50, p99 = percentiles(seconds)
    return Row("memcpy", "raw", "copy", 1, size_bytes, p50, p99, round(size_bytes / p50 / 1000, 3))


def socket_pings(connection: socket.socket, size_bytes: int, *, first: bool, quick: bool) -> Row | None:
    """Round trips over a plain blocking socket; the row comes from the first side."""
    payload = bytes(size_bytes)
    into = memoryview(bytearray(size_bytes))
    seconds = []
    for _ in range(repeats(size_bytes, quick=quick)):
        began = time.perf_counter()
        if first:
            connection.sendall(payload)
            _receive(connection, into)
        else:
            _receive(connection, into)
            connection.sendall(payload)
        seconds.append((time.perf_counter() - began) / 2)
    speed = _socket_flood(connection, payload, into, first=first, quick=quick)
    if not first:
        return None
    p50, p99 = percentiles(seconds)
    return Row("socket", "raw", "send", 2, size_bytes, p50, p99, speed)


def _socket_flood(
    connection: socket.socket, payload: bytes, into: memoryview, *, first: bool, quick: bool
) -> float:
    count = flood_count(len(payload), quick=quick)
    began = time.perf_counter()
    if first:
        for _ in range(count):
            connection.sendall(payload)
        _receive(connection, memoryview(bytearray(1)))
    else:
        for _ in range(count):
            _receive(connection, into)
        connection.sendall(b"1")
    return round(len(payload) * count / (time.perf_counter() - began) / 1e9, 3)


def _receive(connection: socket.socket, into: memoryview) -> None:
    left = into
    while left:
        received = connection.recv_into(left)
        if not received:
            raise ConnectionError("the other side of the measurement has gone")
        left = left[received:]
