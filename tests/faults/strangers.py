"""Callers who should not get in: wrong certificates, a token used twice, a flood of handshakes."""

from __future__ import annotations

import asyncio
import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import macmesh_daemon.node  # noqa: F401  before gRPC, as in the daemon: it keeps gRPC from logging handshakes

# isort: split
import grpc
import grpc.aio

from faults.cluster import Node, announced, now
from faults.links import HEAL_SECONDS, terms_led
from faults.results import LocalOutcomeWrongError
from faults.world import Group
from macmesh.v1 import cluster_pb2, cluster_pb2_grpc
from macmesh_daemon.demo.nodes import free_ports, toml_of
from macmesh_daemon.identity import create_cluster_ca, issue_node_certificate, load_cluster_credentials
from macmesh_daemon.identity.certificates import GRACE, NODE_VALIDITY
from macmesh_daemon.identity.clients import issue_client_certificate
from macmesh_daemon.identity.credentials import CERT_FILE_NAME
from macmesh_daemon.identity.keys import new_private_key, private_key_to_pem
from macmesh_daemon.node import tls

if TYPE_CHECKING:
    from faults.world import World

REFUSED_SECONDS = 2.0
FLOOD_SECONDS = 6.0
FLOODERS = 8
_FLOOD = Path(__file__).parents[2] / "bench" / "handshake_flood.py"
_COMMAND_SECONDS = 60.0


async def set_up(world: World) -> None:
    """Two nodes."""
    await world.cluster.prepare(2, stages=1)
    await world.cluster.start()
    await world.cluster.formed()


async def _refused(address: str, credentials: grpc.ChannelCredentials) -> tuple[str, float]:
    """How a call for the status ended, and after which time."""
    began = now()
    async with grpc.aio.secure_channel(address, credentials, options=tls.channel_options(None)) as channel:
        stub = cluster_pb2_grpc.ClusterServiceStub(channel)
        try:
            await stub.GetStatus(cluster_pb2.GetStatusRequest(), timeout=10)
        except grpc.aio.AioRpcError as error:
            return error.code().name, now() - began
    return "OK", now() - began


async def certificates(world: World) -> None:
    """No certificate, an expired one, one of another CA: nobody gets as far as a call."""
    leader = await world.cluster.formed()
    ca = await asyncio.to_thread(load_cluster_credentials, world.cluster.nodes[0].folder)
    key = new_private_key()
    key_pem = private_key_to_pem(key)
    # Issued so long ago that validity and grace ended yesterday; before that is before the CA's own begin.
    long_ago = datetime.now(UTC) - NODE_VALIDITY - GRACE - timedelta(days=1)
    expired_client, _ = issue_client_certificate(
        ca, key.public_key(), name="t", role="admin", days=1, now=datetime.now(UTC) - timedelta(days=2)
    )
    strangers = {
        "without a certificate": grpc.ssl_channel_credentials(ca.ca_pem),
        "an expired node": grpc.ssl_channel_credentials(
            ca.ca_pem, key_pem, issue_node_certificate(ca, key.public_key(), now=long_ago)
        ),
        "an expired client": grpc.ssl_channel_credentials(ca.ca_pem, key_pem, expired_client),
        "a node of another CA": grpc.ssl_channel_credentials(
            ca.ca_pem, key_pem, issue_node_certificate(create_cluster_ca(), key.public_key())
        ),
    }
    hurt = now()
    for name, credentials in strangers.items():
        code, seconds = await _refused(leader.address, credentials)
        world.measure(f"{name}: refused after", seconds, target=REFUSED_SECONDS)
        world.holds(f"{name} gets as far as UNAVAILABLE", code == "UNAVAILABLE", code)
    good, _ = issue_client_certificate(ca, key.public_key(), name="t", role="observer")
    code, _ = await _refused(leader.address, grpc.ssl_channel_credentials(ca.ca_pem, key_pem, good))
    world.holds("a good certificate gets in by the same way", code == "OK", code)
    world.holds("the coordinator stays", not terms_led(world, hurt), terms_led(world, hurt))


async def _daemonctl(*arguments: str) -> tuple[int, str]:
    """Exit code, and what was written to both outputs."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "macmesh_daemon.cli.daemonctl",
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(_COMMAND_SECONDS):
        output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


async def _token(issuer: Node) -> dict[str, Any]:
    code, output = await _daemonctl("cluster", "token", "--json", "--socket", str(issuer.socket_path))
    if code:
        raise LocalOutcomeWrongError(f"no token: {output}")
    issued: dict[str, Any] = json.loads(output)
    return issued


async def _join(token: dict[str, Any], door: list[str], folder: Path) -> tuple[int, str]:
    addresses = [word for address in door for word in ("--address", address)]
    return await _daemonctl(
        "cluster", "join", token["token"], *addresses, "--data-dir", str(folder), "--timeout", "5"
    )


async def token_replayed(world: World) -> None:
    """A join token lets one machine in; used again, it lets nobody in."""
    await world.cluster.formed()
    issuer = world.cluster.nodes[0]
    folders = [world.folder / name for name in ("j1", "j2")]
    used = await _token(issuer)
    code, output = await _join(used, used["addresses"], folders[0])
    world.holds("the first machine gets in", code == 0, output)
    # While another token lives the door is open, so that the replay meets its guard and not a shut door.
    other = await _token(issuer)
    began = now()
    code, output = await _join(used, other["addresses"], folders[1])
    world.measure("replay at an open door -> refused (the command included)", now() - began, target=5.0)
    world.holds("the second machine is refused", code != 0, output)
    world.holds("and is told why", "token" in output.lower(), output)
    world.holds("it has no certificate", not (folders[1] / CERT_FILE_NAME).exists())
    [port] = free_ports(1)
    node_id = json.loads((folders[0] / "identity.json").read_text("utf-8"))["node_id"]
    joined = Node(folders[0], node_id, f"127.0.0.1:{port}")
    joined.config_path.write_text(
        toml_of(
            {
                "data_dir": str(joined.folder),
                "socket_path": str(joined.socket_path),
                "listen_host": "127.0.0.1",
                "listen_port": port,
                "mdns": False,
                "seeds": [issuer.address],
                "bandwidth_probe": False,
                "log_format": "json",
            }
        ),
        "utf-8",
    )
    world.cluster.joined.append(joined)
    await joined.up()
    began = now()
    await world.cluster.formed()
    world.measure("the daemon that joined answers -> member", now() - began, target=HEAL_SECONDS)


async def handshake_flood(world: World) -> None:
    """Handshakes without a certificate as fast as one process can: heartbeats go on, nobody is suspected."""
    leader = await world.cluster.formed()
    hurt = now()
    cpu = sum(leader.process().cpu_times()[:2])
    flood = await asyncio.create_subprocess_exec(
        sys.executable,
        str(_FLOOD),
        leader.address.rpartition(":")[2],
        str(FLOOD_SECONDS),
        str(FLOODERS),
        stdout=asyncio.subprocess.PIPE,
    )
    assert flood.stdout is not None
    async with asyncio.timeout(30):
        await flood.stdout.readline()
    began = now()
    beats: list[float] = []
    answers: list[float] = []
    while now() < began + FLOOD_SECONDS - 0.5:
        asked = now()
        status = await leader.status()
        answers.append((now() - asked) * 1000)
        if status is not None:
            beats += [n.heartbeat_ms for n in status.nodes if n.heartbeat_ms >= 0]
        await asyncio.sleep(0.1)
    busy = sum(leader.process().cpu_times()[:2]) - cpu
    async with asyncio.timeout(30):
        shaken = int(await flood.stdout.readline())
        await flood.wait()
    world.measure("handshakes per second", shaken / FLOOD_SECONDS, unit="")
    world.measure("the coordinator's share of a core", busy / (now() - hurt), unit="")
    world.measure("longest round trip of a heartbeat seen", max(beats), target=250, unit="ms")
    world.measure("longest wait for `status`", max(answers), target=1000, unit="ms")
    suspect = [r for r in leader.records() if r.mono >= hurt and announced("member suspect")(r)]
    world.holds("nobody is suspected", not suspect, suspect)
    world.holds("the coordinator stays", not terms_led(world, hurt), terms_led(world, hurt))


GROUP = Group(
    "strangers",
    set_up,
    {
        "strangers": certificates,
        "token-replayed": token_replayed,
        "handshake-flood": handshake_flood,
    },
    unprivileged=True,
)
