"""Bad input and faults on a node with real doors: each ends in a clear error, and nothing hangs."""

from __future__ import annotations

import asyncio
import dataclasses
from contextlib import aclosing
from typing import TYPE_CHECKING

import grpc
import pytest

from macmesh import MacmeshError, Waiting
from macmesh.reasons import Reason
from macmesh.v1 import peer_pb2, peer_pb2_grpc
from macmesh_daemon.files import LocalFolderInUseError
from macmesh_daemon.identity import init_cluster, load_credentials
from macmesh_daemon.models.demo import demo_model_folder
from macmesh_daemon.node import requests, stage_host
from macmesh_daemon.node.errors import LocalPortBusy
from macmesh_daemon.node.tls import open_channel
from macmesh_daemon.supervisor.testing import FakeWorker
from support import models
from support.mesh import Mesh
from support.ports import free_ports

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MODEL = str(demo_model_folder())


async def test_broken_model_folders_are_refused_by_name(tmp_path: Path) -> None:
    cases: dict[str, tuple[Callable[[Path], None], Reason, str]] = {
        "truncated": (models.truncate_weights, Reason.MODEL_BROKEN, ".safetensors"),
        "header": (models.spoil_header, Reason.MODEL_BROKEN, ".safetensors"),
        "index": (models.drop_index_entry, Reason.MODEL_BROKEN, "index"),
        "shard": (models.lose_shard, Reason.MODEL_BROKEN, ".safetensors"),
        "config": (models.no_config, Reason.MODEL_BROKEN, "config.json"),
        "architecture": (models.rename_architecture, Reason.UNSUPPORTED_ARCHITECTURE, "no_such_architecture"),
    }
    async with Mesh(tmp_path / "mesh", 1) as mesh:
        await mesh.formed()
        async with mesh.nodes[0].client() as client:
            for name, (spoil, reason, named) in cases.items():
                folder = models.copy_model(tmp_path / name)
                spoil(folder)
                with pytest.raises(MacmeshError) as refused:
                    await client.load(str(folder), context_tokens=256)

                assert refused.value.reason == reason, name
                assert named in str(refused.value), name


async def test_a_second_daemon_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    async with Mesh(tmp_path, 1) as mesh:
        twin = type(mesh.nodes[0])(config=mesh.nodes[0].config, node_id=mesh.nodes[0].node_id)
        with pytest.raises(LocalFolderInUseError):
            await twin.start()


async def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    mesh = Mesh(tmp_path, 1)
    port = mesh.nodes[0].config.listen_port
    blocker = await asyncio.start_server(lambda _r, w: w.close(), "127.0.0.1", port)
    async with blocker:
        with pytest.raises(BaseExceptionGroup) as refused:
            await mesh.nodes[0].start()
    assert refused.group_contains(LocalPortBusy, match=str(port))


async def test_a_node_of_another_cluster_sees_nothing(tmp_path: Path) -> None:
    stranger_folder = tmp_path / "stranger"
    init_cluster(stranger_folder)
    stranger = load_credentials(stranger_folder)
    async with Mesh(tmp_path / "mesh", 1) as mesh:
        node = mesh.nodes[0]
        await mesh.formed()
        channel = open_channel(
            f"127.0.0.1:{node.config.listen_port}", stranger, expected_node_id=node.node_id
        )
        async with channel:
            stub: peer_pb2_grpc.PeerServiceAsyncStub = peer_pb2_grpc.PeerServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.Hello(peer_pb2.HelloRequest(protocol_version=1), timeout=60)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert len((await node.status()).document.members) == 1


async def test_a_worker_that_cannot_load_is_told_to_whoever_asked(tmp_path: Path) -> None:
    mesh = Mesh(tmp_path, 1)
    node = mesh.nodes[0]
    node.make_worker = lambda: FakeWorker(load_error="layer 3 is made of cheese")
    async with mesh:
        await mesh.formed()
        async with node.client() as client:
            with pytest.raises(MacmeshError) as failed:
                await client.load(MODEL, context_tokens=256)

            assert failed.value.reason == Reason.WORKER_FAILED
            assert "made of cheese" in str(failed.value)
            await client.unload()
            assert (await client.status()).serving_state == "idle"


async def test_a_node_that_starts_again_elsewhere_is_found_by_its_own_hello(tmp_path: Path) -> None:
    """Only the restarted node knows a seed; the other learns its new port from its greeting."""
    mesh = Mesh(tmp_path, 2)
    first, second = mesh.nodes
    first.config = dataclasses.replace(first.config, seeds=())
    async with mesh:
        await mesh.formed()
        await second.end()
        [port] = free_ports(1)
        second.config = dataclasses.replace(second.config, listen_port=port)
        await second.start()
        # The coordinator's heartbeats are all that tells the second node of it.
        status = await mesh.until(
            second, lambda s: s.coordinator_node_id == first.node_id and s.has_quorum, "together again"
        )
        assert len(status.nodes) == 2


async def test_a_client_that_leaves_frees_its_slot(tmp_path: Path) -> None:
    gate = asyncio.Event()
    mesh = Mesh(tmp_path, 1)
    node = mesh.nodes[0]
    node.make_worker = lambda: FakeWorker(gate=gate)
    async with mesh:
        await mesh.formed()
        async with node.client() as client:
            await client.load(MODEL, context_tokens=256)
            waiting = asyncio.create_task(client.complete(token_ids=[1, 2], max_tokens=200))
            await mesh.until(node, lambda s: s.waiting_requests == 1, "waiting")
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await mesh.until(node, lambda s: s.waiting_requests == 0, "freed")
        cancelled = [c for c in node.workers[-1].commands if c.WhichOneof("command") == "cancel"]
        assert len(cancelled) == 1


async def test_a_stream_left_half_way_is_cancelled_on_the_worker(tmp_path: Path) -> None:
    async with Mesh(tmp_path, 1) as mesh:
        node = mesh.nodes[0]
        await mesh.formed()
        async with node.client() as client:
            await client.load(MODEL, context_tokens=2048)
            async with aclosing(client.generate(token_ids=[1], max_tokens=2000)) as chunks:
                async for _ in chunks:
                    break
            await mesh.until(node, lambda s: s.active_requests + s.waiting_requests == 0, "freed")
            done = await client.complete(token_ids=[1], max_tokens=3)
            assert len(done.token_ids) == 3


async def test_a_request_that_waits_gives_signs_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two nodes, so that the client's node hears of its request over the network."""
    monkeypatch.setattr(stage_host, "SIGN_OF_LIFE_SECONDS", 0.2)
    monkeypatch.setattr(requests, "HEAD_SILENCE_SECONDS", 2.0)
    gate = asyncio.Event()
    mesh = Mesh(tmp_path, 2)
    for node in mesh.nodes:
        node.make_worker = lambda: FakeWorker(gate=gate)
    async with mesh:
        await mesh.formed()
        async with mesh.nodes[0].client() as client:
            loaded = await client.load(MODEL, context_tokens=256)
        assert loaded.deployment is not None
        other = next(n for n in mesh.nodes if n.node_id != loaded.deployment.stages[0].node_id)
        await mesh.until(other, lambda s: s.serving_state == "ready", "told ready")
        async with other.client() as client:
            waiting = asyncio.create_task(client.complete(token_ids=[1, 2], max_tokens=3))
            done, _ = await asyncio.wait({waiting}, timeout=3)
            assert not done
            gate.set()
            assert len((await waiting).token_ids) == 3


async def test_a_client_is_told_where_its_request_waits(tmp_path: Path) -> None:
    """Two nodes, so that it travels from the head over the client's node."""
    gate = asyncio.Event()
    mesh = Mesh(tmp_path, 2)
    for node in mesh.nodes:
        node.make_worker = lambda: FakeWorker(gate=gate, waiting=(2, 1))
    async with mesh:
        await mesh.formed()
        async with mesh.nodes[0].client() as client:
            loaded = await client.load(MODEL, context_tokens=256)
        assert loaded.deployment is not None
        other = next(n for n in mesh.nodes if n.node_id != loaded.deployment.stages[0].node_id)
        await mesh.until(other, lambda s: s.serving_state == "ready", "told ready")
        async with (
            other.client() as client,
            aclosing(client.generate(token_ids=[1, 2], max_tokens=2, reuse_prefix=False)) as chunks,
        ):
            first, second = await anext(chunks), await anext(chunks)
            gate.set()
            rest = [chunk async for chunk in chunks]
    assert first.request is not None
    assert (first.waiting, second.waiting) == (Waiting(2), Waiting(1, 1.5))
    assert all(chunk.waiting is None for chunk in rest)
    assert sum(len(chunk.token_ids) for chunk in rest) == 2
    head = next(n for n in mesh.nodes if n.node_id == loaded.deployment.stages[0].node_id)
    submitted = [c.submit.request for c in head.workers[-1].commands if c.WhichOneof("command") == "submit"]
    assert [(r.HasField("reuse_prefix"), r.reuse_prefix, r.HasField("keep")) for r in submitted] == [
        (True, False, False)
    ]
