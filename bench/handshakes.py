"""What a flood of handshakes without a certificate costs a node: heartbeats' round trips with and without it.

python bench/handshakes.py [--seconds 3] [--flooders 8]

The flood comes from a process of its own and is as fast as that process can shake hands. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import socket
import ssl
import tempfile
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

import macmesh_daemon.node  # noqa: F401  before gRPC, as in the daemon: it keeps gRPC from logging handshakes

# isort: split
import grpc
import grpc.aio

from macmesh.v1 import peer_pb2, peer_pb2_grpc
from macmesh_daemon.identity import create_cluster_ca, load_credentials, provision_node
from macmesh_daemon.node import tls
from macmesh_daemon.node.gate import Gate
from macmesh_daemon.node.live_credentials import LiveCredentials

BEAT_SECONDS = 0.05


class _Peer(peer_pb2_grpc.PeerServiceServicer):
    async def Heartbeat(self, request: Any, context: Any) -> peer_pb2.HeartbeatResponse:  # noqa: N802  the contract's
        del context
        return peer_pb2.HeartbeatResponse(round=request.round)


def flood(port: int, seconds: float, flooders: int, results: Any, started: Any) -> None:
    """Shake hands, show no certificate, begin again."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    until = time.monotonic() + seconds
    counts = [0] * flooders

    def one(index: int) -> None:
        while time.monotonic() < until:
            try:
                with (
                    socket.create_connection(("127.0.0.1", port), timeout=2) as raw,
                    context.wrap_socket(raw) as secured,
                ):
                    secured.settimeout(2)
                    secured.recv(1)
            except OSError:
                pass
            counts[index] += 1

    threads = [threading.Thread(target=one, args=(i,)) for i in range(flooders)]
    for thread in threads:
        thread.start()
    started.set()
    for thread in threads:
        thread.join()
    results.put(sum(counts))


async def beats(stub: Any, seconds: float) -> list[float]:
    """Round trips in milliseconds; a missed deadline raises."""
    found = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        began = time.monotonic()
        await stub.Heartbeat(peer_pb2.HeartbeatRequest(round=1), timeout=0.5)
        found.append((time.monotonic() - began) * 1000)
        await asyncio.sleep(BEAT_SECONDS)
    return found


def figures(values: list[float]) -> dict[str, float]:
    """Median, 99th percentile and maximum."""
    ordered = sorted(values)
    return {
        "beats": len(ordered),
        "median_ms": round(median(ordered), 2),
        "p99_ms": round(ordered[int(0.99 * (len(ordered) - 1))], 2),
        "max_ms": round(ordered[-1], 2),
    }


async def measure(folder: Path, seconds: float, flooders: int) -> dict[str, Any]:
    """Beat in peace, then under the flood."""
    ca = create_cluster_ca()
    for name in ("a", "b"):
        provision_node(folder / name, ca)
    a, b = load_credentials(folder / "a"), load_credentials(folder / "b")
    gate = Gate(local=False, is_denied=lambda _: False)
    server = grpc.aio.server(options=tls.server_options(), interceptors=[gate])
    peer_pb2_grpc.add_PeerServiceServicer_to_server(_Peer(), server)  # type: ignore[abstract]  # one suffices
    port = server.add_secure_port("127.0.0.1:0", tls.reloadable_server_credentials(LiveCredentials(b)))
    await server.start()
    spawn = multiprocessing.get_context("spawn")
    results: Any = spawn.Queue()
    started = spawn.Event()
    try:
        async with tls.open_channel(f"127.0.0.1:{port}", a, expected_node_id=b.node_id) as channel:
            stub = peer_pb2_grpc.PeerServiceStub(channel)
            await beats(stub, 0.2)
            peace = figures(await beats(stub, seconds))
            flooding = spawn.Process(
                target=flood, args=(port, seconds, flooders, results, started), daemon=True
            )
            flooding.start()
            await asyncio.to_thread(started.wait, 10)
            cpu = time.process_time()
            under = figures(await beats(stub, seconds))
            cpu = time.process_time() - cpu
            shaken = await asyncio.to_thread(results.get, timeout=30)
            flooding.join(5)
    finally:
        await server.stop(None)
    return {
        "peace": peace,
        "flood": under,
        "handshakes_per_second": round(shaken / seconds),
        "processor_share_of_node": round(cpu / seconds, 2),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--flooders", type=int, default=8)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(asyncio.run(measure(Path(folder), arguments.seconds, arguments.flooders)), indent=1))


if __name__ == "__main__":
    main()
