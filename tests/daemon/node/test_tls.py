"""Mutual TLS over real sockets on the loopback interface."""

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from macmesh.v1 import peer_pb2, peer_pb2_grpc
from macmesh_daemon.identity import (
    LocalCredentialsError,
    NodeCredentials,
    RemoteUnreachableError,
    RemoteUntrustedError,
    create_cluster_ca,
    load_credentials,
    provision_node,
)
from macmesh_daemon.node import tls

DEADLINE_SECONDS = 60.0


class HelloServicer(peer_pb2_grpc.PeerServiceServicer):
    """Answers with the caller's id, as its certificate says."""

    async def Hello(  # noqa: N802  the name is the contract's
        self, request: peer_pb2.HelloRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> peer_pb2.HelloResponse:
        del request
        return peer_pb2.HelloResponse(coordinator_node_id=tls.caller_node_id(context))


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, NodeCredentials]:
    """Nodes a, b and c of one cluster, and x of another."""
    folder = tmp_path_factory.mktemp("nodes")
    ours, theirs = create_cluster_ca(), create_cluster_ca()
    for name in ("a", "b", "c", "x"):
        provision_node(folder / name, theirs if name == "x" else ours)
    return {name: load_credentials(folder / name) for name in ("a", "b", "c", "x")}


@asynccontextmanager
async def serving(credentials: NodeCredentials, host: str = "127.0.0.1") -> AsyncIterator[int]:
    server = grpc.aio.server(options=tls.server_options())
    peer_pb2_grpc.add_PeerServiceServicer_to_server(
        HelloServicer(),  # type: ignore[abstract]  # the other calls answer UNIMPLEMENTED
        server,
    )
    port = server.add_secure_port(f"{host}:0", tls.server_credentials(credentials))
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


async def hello(channel: grpc.aio.Channel) -> str:
    async with channel:
        stub = peer_pb2_grpc.PeerServiceStub(channel)
        answer = await stub.Hello(peer_pb2.HelloRequest(), timeout=DEADLINE_SECONDS)
    return answer.coordinator_node_id


@pytest.mark.parametrize("expected", ["b", None])
async def test_the_right_peer_is_reached_and_knows_the_caller(
    nodes: dict[str, NodeCredentials], expected: str | None
) -> None:
    async with serving(nodes["b"]) as port:
        node_id = nodes[expected].node_id if expected else None
        channel = tls.open_channel(f"127.0.0.1:{port}", nodes["a"], expected_node_id=node_id)
        assert await hello(channel) == nodes["a"].node_id


@pytest.mark.parametrize(
    ("caller", "server", "expected"),
    [("a", "b", "c"), ("x", "b", "b"), ("a", "x", "x"), ("x", "b", None), ("a", "x", None)],
    ids=["wrong node", "foreign caller", "foreign server", "foreign caller, any", "foreign server, any"],
)
async def test_a_wrong_peer_is_refused(
    nodes: dict[str, NodeCredentials], caller: str, server: str, expected: str | None
) -> None:
    async with serving(nodes[server]) as port:
        node_id = nodes[expected].node_id if expected else None
        channel = tls.open_channel(f"127.0.0.1:{port}", nodes[caller], expected_node_id=node_id)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await hello(channel)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("secure", [True, False], ids=["no certificate", "plaintext"])
async def test_a_caller_without_a_certificate_is_refused(
    nodes: dict[str, NodeCredentials], secure: bool
) -> None:
    async with serving(nodes["b"]) as port:
        address, options = f"127.0.0.1:{port}", tls.channel_options(nodes["b"].node_id)
        if secure:
            anonymous = grpc.ssl_channel_credentials(root_certificates=nodes["a"].ca_pem)
            channel = grpc.aio.secure_channel(address, anonymous, options=options)
        else:
            channel = grpc.aio.insecure_channel(address, options=options)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await hello(channel)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_port_in_use_is_an_error_and_not_shared(nodes: dict[str, NodeCredentials]) -> None:
    async with serving(nodes["a"]) as port:
        server = grpc.aio.server(options=tls.server_options())
        with pytest.raises(RuntimeError, match="bind"):
            server.add_secure_port(f"127.0.0.1:{port}", tls.server_credentials(nodes["b"]))


async def test_pings_are_permitted_at_the_rate_of_the_channels(nodes: dict[str, NodeCredentials]) -> None:
    # An idle channel pings each second; a server that counts them as strikes would end it within a few.
    async with serving(nodes["b"]) as port:
        channel = tls.open_channel(f"127.0.0.1:{port}", nodes["a"], expected_node_id=nodes["b"].node_id)
        async with channel:
            stub = peer_pb2_grpc.PeerServiceStub(channel)
            await stub.Hello(peer_pb2.HelloRequest(), timeout=DEADLINE_SECONDS)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(3.5):
                    await channel.wait_for_state_change(grpc.ChannelConnectivity.READY)


async def test_a_prober_finds_out_who_answers(nodes: dict[str, NodeCredentials]) -> None:
    async with serving(nodes["b"]) as port:
        found = await tls.probe_node_id("127.0.0.1", port, nodes["a"], deadline_seconds=DEADLINE_SECONDS)
        assert found == nodes["b"].node_id


async def test_a_prober_refuses_another_cluster(nodes: dict[str, NodeCredentials]) -> None:
    async with serving(nodes["x"]) as port:
        with pytest.raises(RemoteUntrustedError, match=f"127.0.0.1:{port} is no node of this cluster"):
            await tls.probe_node_id("127.0.0.1", port, nodes["a"], deadline_seconds=DEADLINE_SECONDS)


async def test_a_prober_says_when_nobody_answers(nodes: dict[str, NodeCredentials]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(RemoteUnreachableError, match="did not answer within"):
            await tls.probe_node_id("127.0.0.1", port, nodes["a"], deadline_seconds=0.3)
    with pytest.raises(RemoteUnreachableError, match="cannot be reached"):
        await tls.probe_node_id("127.0.0.1", port, nodes["a"], deadline_seconds=DEADLINE_SECONDS)


async def test_a_prober_says_when_the_peer_speaks_no_tls(nodes: dict[str, NodeCredentials]) -> None:
    async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(RemoteUnreachableError, match="over TLS"):
            await tls.probe_node_id("127.0.0.1", port, nodes["a"], deadline_seconds=DEADLINE_SECONDS)


async def test_a_prober_says_when_its_own_key_is_gone(tmp_path: Path) -> None:
    ca = create_cluster_ca()
    provision_node(tmp_path, ca)
    credentials = load_credentials(tmp_path)
    credentials.key_path.unlink()
    with pytest.raises(LocalCredentialsError):
        await tls.probe_node_id("127.0.0.1", 1, credentials, deadline_seconds=DEADLINE_SECONDS)


class Context:
    """The part of a servicer context that tells who calls."""

    def __init__(self, auth: dict[str, Sequence[bytes]]) -> None:
        self._auth = auth

    def auth_context(self) -> dict[str, Sequence[bytes]]:
        return self._auth


def test_a_caller_without_mutual_tls_has_no_node_id() -> None:
    with pytest.raises(RemoteUntrustedError, match="no certificate"):
        tls.caller_node_id(Context({}))  # type: ignore[arg-type]
    with pytest.raises(RemoteUntrustedError, match="cannot be read"):
        tls.caller_node_id(Context({"x509_pem_cert": [b"junk"]}))  # type: ignore[arg-type]
    with pytest.raises(RemoteUntrustedError):
        tls.caller_node_id(Context({"x509_pem_cert": [create_cluster_ca().ca_pem]}))  # type: ignore[arg-type]


def test_a_malformed_node_id_makes_no_channel() -> None:
    with pytest.raises(ValueError, match="not a node id"):
        tls.channel_options("node.macmesh.evil.example")
