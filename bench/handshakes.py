"""What a flood of handshakes without a certificate costs a node: heartbeats' round trips with and without it.

python bench/handshakes.py [--seconds 3] [--flooders 8]

The flood comes from a process of its own and is as fast as that process can shake hands. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
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
FLOOD = Path(__file__).with_name("handshake_flood.py")


class _Peer(peer_pb2_grpc.PeerServiceServicer):
    async def Heartbeat(self, request: Any, context: Any) -> peer_pb2.HeartbeatResponse:  # noqa: N802  the contract's
        del context
        return peer_pb2.HeartbeatResponse(round=request.round)


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
    try:
        async with tls.open_channel(f"127.0.0.1:{port}", a, expected_node_id=b.node_id) as channel:
            stub = peer_pb2_grpc.PeerServiceStub(channel)
            await beats(stub, 0.2)
            peace = figures(await beats(stub, seconds))
            flooding = await asyncio.create_subprocess_exec(
                sys.executable,
                str(FLOOD),
                str(port),
                str(seconds),
                str(flooders),
                stdout=asyncio.subprocess.PIPE,
            )
            assert flooding.stdout is not None  # noqa: S101  a pipe was asked for
            async with asyncio.timeout(30):
                await flooding.stdout.readline()
            cpu = time.process_time()
            under = figures(await beats(stub, seconds))
            cpu = time.process_time() - cpu
            async with asyncio.timeout(30):
                shaken = int(await flooding.stdout.readline())
                await flooding.wait()
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
