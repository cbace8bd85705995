"""Trust in whole clusters of real nodes: joining, eviction, clients and renewal, over real sockets."""

from __future__ import annotations

import asyncio
import stat
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from macmesh import AsyncClient, Credentials, MacmeshError
from macmesh.reasons import Reason
from macmesh.v1 import access_pb2, access_pb2_grpc, join_pb2, join_pb2_grpc, peer_pb2, peer_pb2_grpc
from macmesh_daemon.clock import SystemClock
from macmesh_daemon.identity import (
    JoinToken,
    create_cluster_ca,
    init_cluster,
    load_credentials,
    make_certificate_request,
    provision_node,
)
from macmesh_daemon.identity.certificates import issue_node_certificate
from macmesh_daemon.identity.clients import issue_client_certificate
from macmesh_daemon.identity.keys import new_private_key, private_key_from_pem, private_key_to_pem
from macmesh_daemon.models.demo import demo_model_folder
from macmesh_daemon.node import tls
from macmesh_daemon.node.issuer import Issuer
from macmesh_daemon.node.join_client import join_cluster
from macmesh_daemon.node.live_credentials import LiveCredentials
from macmesh_daemon.node.peers import PeerPool
from macmesh_daemon.node.renewer import Renewer
from macmesh_daemon.node.runtime import run_node
from macmesh_daemon.node.trust_service import TrustService
from support.mesh import LOOPBACK, Mesh, MeshNode, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

DEADLINE_SECONDS = 120.0
SOON_AGAIN = (("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 100))
"""A channel whose other side is not there yet tries again ten times a second."""


async def drained(updates: Any) -> None:
    """Read a stream to its end."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        async for _ in updates:
            pass


async def access(node: MeshNode, name: str, request: Any) -> Any:
    """Call the access service on the node's Unix socket, as its owner."""
    async with grpc.aio.insecure_channel(f"unix:{node.config.resolved_socket_path()}") as channel:
        stub = access_pb2_grpc.AccessServiceStub(channel)
        return await getattr(stub, name)(request, timeout=DEADLINE_SECONDS)


async def issue_client(node: MeshNode, role: str) -> tuple[str, Credentials]:
    key_pem = private_key_to_pem(new_private_key())
    response = await access(
        node,
        "IssueClient",
        access_pb2.IssueClientRequest(name="t", role=role, request_der=make_certificate_request(key_pem)),
    )
    credentials = Credentials(
        response.ca_pem, response.certificate_pem, key_pem, addresses=tuple(response.addresses)
    )
    return response.info.client_id, credentials


@asynccontextmanager
async def waiting_node(mesh: Mesh, folder: Path) -> AsyncIterator[tuple[MeshNode, asyncio.Event]]:
    """A daemon that was started on a machine that belongs to no cluster, and what is set once it has joined one."""
    config = replace(
        mesh.nodes[0].config,
        data_dir=folder,
        socket_path=folder / "s",
        listen_port=0,
        seeds=(),
    )
    node = MeshNode(config=config, node_id="")
    stop, joined = asyncio.Event(), asyncio.Event()
    running = run_node(config, stop=stop, worker_factory=node.new_worker, on_ready=joined.set)
    task = asyncio.create_task(running)
    try:
        # It waits behind a door of its own, which opens some time after the start.
        async with (
            asyncio.timeout(DEADLINE_SECONDS),
            grpc.aio.insecure_channel(f"unix:{folder / 's'}", options=SOON_AGAIN) as channel,
        ):
            await channel.channel_ready()
        yield node, joined
    finally:
        stop.set()
        async with asyncio.timeout(DEADLINE_SECONDS):
            await task


async def test_a_waiting_daemon_joins_without_a_restart_and_is_evicted_for_good(tmp_path: Path) -> None:
    async with Mesh(tmp_path, 1, join_quiet_seconds=0.1) as mesh:
        await mesh.formed()
        founder = mesh.nodes[0]
        async with waiting_node(mesh, tmp_path / "new") as (node, at_home):
            told = await node.status()
            assert told.serving_state == "unjoined"
            assert "cluster join" in told.health[0]
            async with node.client() as client:
                with pytest.raises(MacmeshError) as caught:
                    await client.load("x")
                assert caught.value.reason == Reason.NOT_JOINED

            issued = await access(founder, "IssueJoinToken", access_pb2.IssueJoinTokenRequest())
            assert issued.addresses
            # No multicast and no seed: what the door tells is enough.
            joined = await join_cluster(tmp_path / "new", JoinToken.parse(issued.token), issued.addresses)
            new_id = joined.credentials.node_id
            await mesh.until(founder, lambda s: {n.member.node_id for n in s.nodes} >= {new_id}, "joined")
            async with asyncio.timeout(DEADLINE_SECONDS):
                await at_home.wait()
            assert (await node.status()).serving_state != "unjoined"

            # It may not play the coordinator, nor take what only the owner gives.
            address = f"{LOOPBACK}:{founder.config.listen_port}"
            before = await founder.status()
            async with tls.open_channel(address, joined.credentials, expected_node_id=None) as channel:
                stub = peer_pb2_grpc.PeerServiceStub(channel)
                plan = peer_pb2.PrepareRequest(term=before.term, generation=before.document.generation)
                plan.plan.epoch.term = before.term + 1
                plan.plan.epoch.generation = before.document.generation
                answer = await stub.Prepare(plan, timeout=DEADLINE_SECONDS)
                assert not answer.promised
                assert "coordinator" in answer.reason
                beat = peer_pb2.HeartbeatRequest(term=before.term, generation=before.document.generation)
                assert not (await stub.Heartbeat(beat, timeout=DEADLINE_SECONDS)).accepted
                commit = peer_pb2.CommitRequest(term=before.term, generation=before.document.generation)
                assert not (await stub.Commit(commit, timeout=DEADLINE_SECONDS)).committed
                given = peer_pb2.SetPeersRequest(term=before.term, generation=before.document.generation)
                assert not (await stub.SetPeers(given, timeout=DEADLINE_SECONDS)).accepted
                denied = access_pb2_grpc.AccessServiceStub(channel)
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await denied.IssueJoinToken(access_pb2.IssueJoinTokenRequest(), timeout=DEADLINE_SECONDS)
                assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED

                await access(founder, "Evict", access_pb2.EvictRequest(id=new_id))
                after = await founder.status()
                assert list(after.document.denied_node_ids) == [new_id]
                assert new_id not in {n.member.node_id for n in after.nodes}
                with pytest.raises(grpc.aio.AioRpcError, match="shut this caller out"):
                    await stub.Heartbeat(beat, timeout=DEADLINE_SECONDS)
        issued = await access(founder, "IssueJoinToken", access_pb2.IssueJoinTokenRequest())
        with pytest.raises(Exception, match="was evicted"):
            await join_cluster(tmp_path / "new", JoinToken.parse(issued.token), issued.addresses)


async def test_remote_clients_do_what_their_role_allows_until_they_are_revoked(tmp_path: Path) -> None:
    async with Mesh(tmp_path, 1) as mesh:
        await mesh.formed()
        node = mesh.nodes[0]
        credentials = {role: await issue_client(node, role) for role in ("admin", "user", "observer")}
        model = str(demo_model_folder())
        for role in ("observer", "user"):
            async with AsyncClient(credentials=credentials[role][1]) as client:
                assert (await client.status()).has_quorum
                with pytest.raises(MacmeshError) as caught:
                    await client.load(model)
                assert (caught.value.reason, caught.value.code) == (Reason.FORBIDDEN, "PERMISSION_DENIED")
        async with AsyncClient(credentials=credentials["admin"][1]) as client:
            await client.load(model, context_tokens=256)
        async with AsyncClient(credentials=credentials["observer"][1]) as client:
            with pytest.raises(MacmeshError) as caught:
                await client.complete(token_ids=[1, 2], max_tokens=2)
            assert caught.value.reason == Reason.FORBIDDEN
        client_id, user = credentials["user"]
        async with AsyncClient(credentials=user) as client:
            assert len((await client.complete(token_ids=[1, 2], max_tokens=2)).token_ids) == 2
            async with client.watch() as updates:
                await anext(aiter(updates))
                await access(node, "Evict", access_pb2.EvictRequest(id=client_id))
                with pytest.raises(MacmeshError) as caught:
                    await drained(updates)
                assert caught.value.reason == Reason.EVICTED
            with pytest.raises(MacmeshError) as caught:
                await client.status()
            assert caught.value.reason == Reason.EVICTED
        listed = await access(node, "ListClients", access_pb2.ListClientsRequest())
        assert {(c.role, c.revoked) for c in listed.clients} == {
            ("admin", False),
            ("user", True),
            ("observer", False),
        }
        assert stat.S_IMODE((node.config.data_dir / "clients.json").stat().st_mode) == 0o600


async def test_a_node_without_the_ca_key_issues_nothing_and_says_where_to_go(tmp_path: Path) -> None:
    async with Mesh(tmp_path, 2) as mesh:
        await mesh.formed()
        with pytest.raises(grpc.aio.AioRpcError, match="cluster init") as caught:
            await access(mesh.nodes[1], "IssueJoinToken", access_pb2.IssueJoinTokenRequest())
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        # Everything else about access is committed by the cluster, from any node.
        shut_out, credentials = await issue_client(mesh.nodes[0], "admin")
        await access(mesh.nodes[1], "Evict", access_pb2.EvictRequest(id=shut_out))
        for node in mesh.nodes:
            async with AsyncClient(
                f"{LOOPBACK}:{node.config.listen_port}", credentials=credentials
            ) as client:
                async with node.client() as own:
                    await until(own, lambda s: shut_out in s.document.denied_node_ids, "told")
                with pytest.raises(MacmeshError) as refused:
                    await client.status()
                assert refused.value.reason == Reason.EVICTED


async def test_a_foreign_cluster_beside_ours_stays_apart(tmp_path: Path) -> None:
    ca = init_cluster(tmp_path / "theirs")
    stranger = load_credentials(tmp_path / "theirs")
    async with Mesh(tmp_path / "ours", 1) as ours:
        await ours.formed()
        address = f"{LOOPBACK}:{ours.nodes[0].config.listen_port}"
        async with tls.open_channel(address, stranger, expected_node_id=None) as channel:
            stub = peer_pb2_grpc.PeerServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Hello(peer_pb2.HelloRequest(protocol_version=1), timeout=DEADLINE_SECONDS)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        key = new_private_key()
        pem, _ = issue_client_certificate(ca, key.public_key(), name="t", role="admin")
        client = Credentials(
            load_credentials(ours.nodes[0].config.data_dir).ca_pem, pem, private_key_to_pem(key)
        )
        async with AsyncClient(address, credentials=client) as connected:
            with pytest.raises(MacmeshError) as refused:
                await connected.status()
            assert refused.value.reason == Reason.CONNECTION_FAILED


class Peer(peer_pb2_grpc.PeerServiceServicer):
    """Answers heartbeats, and streams two tokens with a pause between them."""

    def __init__(self) -> None:
        self.held = asyncio.Event()

    async def Heartbeat(self, request: Any, context: Any) -> peer_pb2.HeartbeatResponse:  # noqa: N802  the contract's
        del context
        return peer_pb2.HeartbeatResponse(round=request.round)

    async def RunRequest(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802  the contract's
        del request, context
        yield peer_pb2.RunRequestResponse(index=0)
        await self.held.wait()
        yield peer_pb2.RunRequestResponse(index=1)


class OldPair:
    """A signer and a node whose certificates were made 800 days ago: due for 250 days, and good for 25 more."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        made = datetime.now(UTC) - timedelta(days=800)
        ca = create_cluster_ca(now=made)
        for name in ("signer", "node"):
            provision_node(folder / name, ca)
            key = private_key_from_pem((folder / name / "node.key").read_bytes(), where="t").public_key()
            (folder / name / "node.crt").write_bytes(issue_node_certificate(ca, key, now=made))
        (folder / "signer" / "ca.key").write_bytes(ca.ca_key_pem)
        self.signer = LiveCredentials(load_credentials(folder / "signer"))
        self.node = LiveCredentials(load_credentials(folder / "node"))
        self.peers = PeerPool(self.node)

    def issuer(self, name: str) -> Issuer:
        return Issuer(
            self.folder / name,
            node_id=load_credentials(self.folder / name).node_id,
            wall_seconds=datetime.now(UTC).timestamp,
            is_denied=lambda _: False,
        )

    def renewer(self, name: str) -> Renewer:
        return Renewer(
            data_dir=self.folder / name,
            credentials=self.signer if name == "signer" else self.node,
            issuer=self.issuer(name),
            peers=self.peers,
            members=lambda: [self.signer.current.node_id],
            clock=SystemClock(),
            wall_seconds=datetime.now(UTC).timestamp,
        )

    def stub(self) -> Any:
        found = self.peers.stub(self.signer.current.node_id)
        assert found is not None
        return found

    async def beat(self, stop: asyncio.Event) -> int:
        count = 0
        while not stop.is_set():
            count += 1
            answer = await self.stub().Heartbeat(
                peer_pb2.HeartbeatRequest(round=count), timeout=DEADLINE_SECONDS
            )
            assert answer.round == count
        return count

    @asynccontextmanager
    async def serving(self, peer: Peer) -> AsyncIterator[int]:
        server = grpc.aio.server(options=tls.server_options())
        peer_pb2_grpc.add_PeerServiceServicer_to_server(peer, server)
        join_pb2_grpc.add_TrustServiceServicer_to_server(TrustService(self.issuer("signer")), server)
        port = server.add_secure_port(f"{LOOPBACK}:0", tls.reloadable_server_credentials(self.signer))
        await server.start()
        self.peers.learn(self.signer.current.node_id, [f"{LOOPBACK}:{port}"])
        try:
            yield port
        finally:
            await self.peers.close()
            await server.stop(None)


async def test_certificates_are_renewed_under_load_without_a_failed_call(tmp_path: Path) -> None:
    pair, stop = OldPair(tmp_path), asyncio.Event()
    peer = Peer()  # type: ignore[abstract]  # the other calls answer UNIMPLEMENTED
    async with pair.serving(peer) as port, asyncio.TaskGroup() as tasks:
        beats = tasks.create_task(pair.beat(stop))
        stream = pair.stub().RunRequest(peer_pb2.RunRequestRequest())
        assert (await stream.read()).index == 0
        old = pair.node.current, pair.signer.current
        assert await pair.renewer("signer").renew_if_due()
        assert await pair.renewer("node").renew_if_due()
        assert not await pair.renewer("node").renew_if_due()
        # New calls go over a new connection; the stream on the old one goes on until it ends by itself.
        reopening = tasks.create_task(pair.peers.renew())
        await pair.stub().Heartbeat(peer_pb2.HeartbeatRequest(), timeout=DEADLINE_SECONDS)
        assert not reopening.done()
        peer.held.set()
        assert (await stream.read()).index == 1
        assert await stream.read() is grpc.aio.EOF
        await reopening
        stop.set()
        assert await beats > 3
        assert pair.node.current not in old
        assert pair.signer.current not in old
        assert load_credentials(tmp_path / "node") == pair.node.current
        assert pair.node.current.remaining_days() > 820
        found = await tls.probe_node_id(LOOPBACK, port, pair.node.current, deadline_seconds=DEADLINE_SECONDS)
        assert found == pair.signer.current.node_id


async def test_a_node_renews_only_its_own_key(tmp_path: Path) -> None:
    ca = init_cluster(tmp_path / "signer")
    provision_node(tmp_path / "node", ca)
    node = load_credentials(tmp_path / "node")
    issuer = Issuer(
        tmp_path / "signer",
        node_id=load_credentials(tmp_path / "signer").node_id,
        wall_seconds=datetime.now(UTC).timestamp,
        is_denied=lambda _: False,
    )
    server = grpc.aio.server(options=tls.server_options())
    join_pb2_grpc.add_TrustServiceServicer_to_server(TrustService(issuer), server)
    live = LiveCredentials(load_credentials(tmp_path / "signer"))
    port = server.add_secure_port(f"{LOOPBACK}:0", tls.reloadable_server_credentials(live))
    await server.start()
    try:
        async with tls.open_channel(f"{LOOPBACK}:{port}", node, expected_node_id=None) as channel:
            stub = join_pb2_grpc.TrustServiceStub(channel)
            foreign = make_certificate_request(private_key_to_pem(new_private_key()))
            for request in (foreign, b"", b"junk", make_certificate_request(live.current.key_pem)):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await stub.RenewCertificate(
                        join_pb2.RenewCertificateRequest(request_der=request), timeout=DEADLINE_SECONDS
                    )
                assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    finally:
        await server.stop(None)
