"""Who may call what: the table is whole, and every door holds to it, over real sockets."""

from __future__ import annotations

import asyncio
import os
import pkgutil
import subprocess
import sys
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib import import_module
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2

import macmesh.v1
from macmesh.reasons import Reason
from macmesh.wire_errors import read_failure
from macmesh_daemon.identity import (
    NodeCredentials,
    Role,
    create_cluster_ca,
    issue_node_certificate,
    load_credentials,
    provision_node,
)
from macmesh_daemon.identity.clients import issue_client_certificate
from macmesh_daemon.identity.keys import new_private_key, private_key_from_pem, private_key_to_pem
from macmesh_daemon.node import tls
from macmesh_daemon.node.authorisation import WHO_MAY_CALL, may_call
from macmesh_daemon.node.gate import CLIENT_CALLS, Gate
from macmesh_daemon.node.live_credentials import LiveCredentials

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from macmesh_daemon.identity import ClusterCredentials

DEADLINE_SECONDS = 60.0
#: A service of the network, and what its door lets each role do.
REMOTE = (Role.NODE, Role.ADMIN, Role.USER, Role.OBSERVER)


def every_method() -> set[str]:
    """Every RPC of every service of the contract, and of the health service that is served beside them."""
    files = [
        import_module(f"macmesh.v1.{module.name}").DESCRIPTOR
        for module in pkgutil.iter_modules(macmesh.v1.__path__)
        if module.name.endswith("_pb2")
    ]
    return {
        f"/{service.full_name}/{method.name}"
        for file in (*files, health_pb2.DESCRIPTOR)
        for service in file.services_by_name.values()
        for method in service.methods
    }


def test_every_rpc_of_every_service_is_in_the_table() -> None:
    assert set(WHO_MAY_CALL) == every_method()


def test_what_is_not_in_the_table_nobody_may() -> None:
    assert not any(may_call(role, "/macmesh.v1.ClusterService/Unheard") for role in Role)


def test_the_table_keeps_the_rules_that_matter() -> None:
    for method, roles in WHO_MAY_CALL.items():
        service = method.split("/")[1].rpartition(".")[2]
        if service in {"PeerService", "TrustService"}:
            assert roles == {Role.NODE}, method
        if method.rpartition("/")[2].startswith("Issue"):
            assert roles == {Role.LOCAL}, method
        if Role.OBSERVER in roles and service != "Health":
            assert method.rpartition("/")[2] in {"GetStatus", "WatchCluster"}
        if service != "Health":
            assert Role.NODE not in roles or roles == {Role.NODE}, method
        assert Role.LOCAL in roles or roles == {Role.NODE}


class Everything(grpc.GenericRpcHandler):
    """Answers every method of every service: what is refused, the gate refused."""

    def __init__(self) -> None:
        self.called: list[str] = []
        self.hold = asyncio.Event()

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        method = details.method

        async def answer(request: bytes, context: Any) -> bytes:
            del request, context
            self.called.append(method)
            return b""

        async def stream(request: bytes, context: Any) -> AsyncIterator[bytes]:
            del request, context
            self.called.append(method)
            yield b"1"
            await self.hold.wait()
            yield b"2"

        if method.endswith(("Watch", "WatchCluster", "Generate", "LoadModel", "RunRequest", "FetchRanges")):
            return grpc.unary_stream_rpc_method_handler(stream)
        return grpc.unary_unary_rpc_method_handler(answer)


class World:
    """A cluster with one node of each kind of caller, and a server behind its gate."""

    def __init__(self, folder: Any) -> None:
        self.ca = create_cluster_ca(now=datetime.now(UTC) - timedelta(days=1000))
        provision_node(folder / "server", self.ca)
        provision_node(folder / "node", self.ca)
        self.server = load_credentials(folder / "server")
        self.node = load_credentials(folder / "node")
        self.denied: set[str] = set()

    def credentials(self, role: Role) -> tuple[str, grpc.ChannelCredentials]:
        if role is Role.NODE:
            return self.node.node_id, tls.channel_credentials(self.node)
        return client(self.ca, role.value)


def client(ca: ClusterCredentials, role: str, **extra: Any) -> tuple[str, grpc.ChannelCredentials]:
    key = new_private_key()
    pem, record = issue_client_certificate(ca, key.public_key(), name="t", role=role, **extra)
    return record.client_id, channel_credentials(ca, private_key_to_pem(key), pem)


def channel_credentials(ca: ClusterCredentials, key_pem: bytes, pem: bytes) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(ca.ca_pem, key_pem, pem)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("w"))


@asynccontextmanager
async def serving(credentials: NodeCredentials, gate: Gate, handlers: Everything) -> AsyncIterator[str]:
    server = grpc.aio.server(options=tls.server_options(), interceptors=[gate])
    server.add_generic_rpc_handlers((handlers,))
    live = LiveCredentials(credentials)
    port = server.add_secure_port("127.0.0.1:0", tls.reloadable_server_credentials(live))
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


def connect(address: str, credentials: grpc.ChannelCredentials) -> Any:
    return grpc.aio.secure_channel(address, credentials, options=tls.channel_options(None))


async def refusal(call: Any) -> str:
    """The reason that a call ended with; empty where it was answered."""
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            await call
    except grpc.aio.AioRpcError as error:
        metadata = [(key, value) for key, value in (error.trailing_metadata() or ())]
        failure = read_failure(error.code(), error.details() or "", metadata)
        return failure.reason if failure is not None else error.code().name
    return ""


async def first_of(channel: Any, method: str) -> None:
    if method.endswith(("Watch", "WatchCluster", "Generate", "LoadModel", "RunRequest", "FetchRanges")):
        call = channel.unary_stream(method)(b"")
        try:
            assert await call.read() == b"1"
        finally:
            call.cancel()
    else:
        await channel.unary_unary(method)(b"", timeout=DEADLINE_SECONDS)


@pytest.mark.parametrize("role", REMOTE)
async def test_each_role_may_call_what_the_table_says_and_nothing_else(world: World, role: Role) -> None:
    handlers = Everything()
    gate = Gate(local=False, is_denied=lambda _: False)
    async with serving(world.server, gate, handlers) as address:
        _, credentials = world.credentials(role)
        async with connect(address, credentials) as channel:
            for method in sorted(WHO_MAY_CALL):
                reason = await refusal(first_of(channel, method))
                assert reason == ("" if may_call(role, method) else Reason.FORBIDDEN), method
            assert await refusal(first_of(channel, "/macmesh.v1.ClusterService/Unheard")) == Reason.FORBIDDEN
    assert set(handlers.called) == {m for m in WHO_MAY_CALL if may_call(role, m)}


async def test_strangers_do_not_get_through_the_handshake(world: World) -> None:
    other = create_cluster_ca()
    key = new_private_key()
    past = datetime.now(UTC) - timedelta(days=900)
    expired = issue_node_certificate(world.ca, key.public_key(), now=past)
    old_ca = create_cluster_ca(now=past)
    _, old_client = client(world.ca, "admin", days=1, now=datetime.now(UTC) - timedelta(days=2))
    strangers = {
        "no certificate": grpc.ssl_channel_credentials(world.ca.ca_pem),
        "another CA": grpc.ssl_channel_credentials(
            world.ca.ca_pem, private_key_to_pem(key), issue_node_certificate(other, key.public_key())
        ),
        "another CA of the same name": grpc.ssl_channel_credentials(
            world.ca.ca_pem, private_key_to_pem(key), issue_node_certificate(old_ca, key.public_key())
        ),
        "expired beyond the grace": channel_credentials(world.ca, private_key_to_pem(key), expired),
        "expired client": old_client,
    }
    handlers = Everything()
    gate = Gate(local=False, is_denied=lambda _: False)
    async with serving(world.server, gate, handlers) as address:
        for name, credentials in strangers.items():
            async with connect(address, credentials) as channel:
                assert (
                    await refusal(first_of(channel, "/macmesh.v1.ClusterService/GetStatus")) == "UNAVAILABLE"
                ), name
        async with grpc.aio.insecure_channel(address) as channel:
            assert await refusal(first_of(channel, "/grpc.health.v1.Health/Check")) == "UNAVAILABLE"
    assert handlers.called == []


async def test_within_the_grace_an_expired_node_still_talks(world: World) -> None:
    key = new_private_key()
    pem = issue_node_certificate(world.ca, key.public_key(), now=datetime.now(UTC) - timedelta(days=828))
    credentials = channel_credentials(world.ca, private_key_to_pem(key), pem)
    gate = Gate(local=False, is_denied=lambda _: False)
    async with serving(world.server, gate, Everything()) as address, connect(address, credentials) as channel:
        assert await refusal(first_of(channel, "/macmesh.v1.PeerService/Heartbeat")) == ""


@pytest.mark.parametrize("role", [Role.NODE, Role.USER])
async def test_who_is_shut_out_loses_the_running_stream_and_every_further_call(
    world: World, role: Role
) -> None:
    denied: set[str] = set()
    gate = Gate(local=False, is_denied=denied.__contains__)
    handlers = Everything()
    method = (
        "/macmesh.v1.PeerService/RunRequest" if role is Role.NODE else "/macmesh.v1.InferenceService/Generate"
    )
    async with serving(world.server, gate, handlers) as address:
        caller_id, credentials = world.credentials(role)
        bystander_id, bystander = client(world.ca, "observer")
        async with connect(address, credentials) as channel, connect(address, bystander) as other:
            running = channel.unary_stream(method)(b"")
            watching = other.unary_stream("/macmesh.v1.ClusterService/WatchCluster")(b"")
            assert await running.read() == b"1"
            assert await watching.read() == b"1"
            assert gate.callers() == {caller_id, bystander_id}
            denied.add(caller_id)
            assert gate.shut_out(caller_id) == 1
            assert await refusal(running.read()) == Reason.EVICTED
            for again in (method, "/grpc.health.v1.Health/Check"):
                assert await refusal(first_of(channel, again)) == Reason.EVICTED
            # A new connection with the same certificate is no better.
            async with connect(address, credentials) as fresh:
                assert await refusal(first_of(fresh, method)) == Reason.EVICTED
            handlers.hold.set()
            assert await watching.read() == b"2"


async def test_a_client_has_sixteen_calls_at_once_and_not_seventeen(world: World) -> None:
    handlers = Everything()
    gate = Gate(local=False, is_denied=lambda _: False)
    async with serving(world.server, gate, handlers) as address:
        _, credentials = world.credentials(Role.OBSERVER)
        async with connect(address, credentials) as channel:
            watch = channel.unary_stream("/macmesh.v1.ClusterService/WatchCluster")
            running = [watch(b"") for _ in range(CLIENT_CALLS)]
            for call in running:
                assert await call.read() == b"1"
            assert await refusal(watch(b"").read()) == Reason.RESOURCE_EXHAUSTED
            handlers.hold.set()
            for call in running:
                assert await call.read() == b"2"
                assert await call.read() is grpc.aio.EOF
            await first_of(channel, "/macmesh.v1.ClusterService/GetStatus")


async def test_a_message_beyond_the_limit_is_refused_unread(world: World) -> None:
    handlers = Everything()
    gate = Gate(local=False, is_denied=lambda _: False)
    async with serving(world.server, gate, handlers) as address:
        _, credentials = world.credentials(Role.USER)
        async with connect(address, credentials) as channel:
            call = channel.unary_unary("/macmesh.v1.ClusterService/GetStatus")
            too_long = bytes(tls.PEER_MESSAGE_BYTES + 1)
            assert await refusal(call(too_long, timeout=DEADLINE_SECONDS)) == "RESOURCE_EXHAUSTED"
            assert handlers.called == []
            assert await call(b"", timeout=DEADLINE_SECONDS) == b""


async def test_the_owner_of_the_socket_may_all_but_play_a_node(world: World, tmp_path: Any) -> None:
    del world
    server = grpc.aio.server(interceptors=[Gate(local=True, is_denied=lambda _: True)])
    handlers = Everything()
    server.add_generic_rpc_handlers((handlers,))
    server.add_insecure_port(f"unix:{tmp_path / 's'}")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"unix:{tmp_path / 's'}") as channel:
            assert await refusal(first_of(channel, "/macmesh.v1.AccessService/IssueJoinToken")) == ""
            assert await refusal(first_of(channel, "/macmesh.v1.PeerService/Commit")) == Reason.FORBIDDEN
    finally:
        await server.stop(None)


async def test_new_handshakes_show_the_renewed_certificate(world: World) -> None:
    live = LiveCredentials(world.server)
    server = grpc.aio.server(options=tls.server_options())
    server.add_generic_rpc_handlers((Everything(),))
    port = server.add_secure_port("127.0.0.1:0", tls.reloadable_server_credentials(live))
    await server.start()
    try:
        address = f"127.0.0.1:{port}"
        async with connect(address, tls.channel_credentials(world.node)) as old:
            await old.unary_unary("/x/y")(b"", timeout=DEADLINE_SECONDS)
            before = await served_certificate(port, world.node)
            key = private_key_from_pem(world.server.key_pem, where="t").public_key()
            live.replace(replace(world.server, cert_pem=issue_node_certificate(world.ca, key)))
            assert await served_certificate(port, world.node) != before
            await old.unary_unary("/x/y")(b"", timeout=DEADLINE_SECONDS)
        with pytest.raises(ValueError, match="another node"):
            live.replace(world.node)
    finally:
        await server.stop(None)


async def served_certificate(port: int, credentials: NodeCredentials) -> bytes:
    context = tls.client_ssl_context(credentials)
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="node.macmesh")
    certificate: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.transport.abort()
    return certificate


QUIET = """
import os, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "grpc":
            sys.stdout.write(os.environ.get("GRPC_VERBOSITY", "unset"))
sys.meta_path.insert(0, Watch())
import macmesh_daemon.cli.macmeshd
"""


@pytest.mark.process
def test_the_daemon_quiets_grpc_before_it_is_loaded() -> None:
    # A line for every failed handshake would let strangers fill the disk.
    env = {key: value for key, value in os.environ.items() if key != "GRPC_VERBOSITY"}
    done = subprocess.run([sys.executable, "-c", QUIET], capture_output=True, text=True, check=True, env=env)
    assert done.stdout == "ERROR"
