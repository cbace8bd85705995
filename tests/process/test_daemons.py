"""Real daemons, real workers, real signals, on one machine."""

from __future__ import annotations

import asyncio
import signal
import sys
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING

import psutil
import pytest

from macmesh import AsyncClient
from macmesh_daemon.demo.nodes import DemoCluster, DemoNode, NodeSettings
from macmesh_daemon.demo.scenario import RUNTIME_RESERVE_BYTES
from macmesh_daemon.demo.sizing import demo_reserves, usable_bytes_for
from macmesh_daemon.models.demo import demo_model_folder
from support import mesh
from support.clients import issue_client

if TYPE_CHECKING:
    from pathlib import Path

    from macmesh import ClusterStatus, GenerateOptions

pytestmark = [pytest.mark.process, pytest.mark.timeout(150)]
MODEL = str(demo_model_folder())
CONTEXT_TOKENS = 2048
DEADLINE_SECONDS = 60.0
#: Much more than is generated until a signal has its effect.
LONG: GenerateOptions = {"max_tokens": 150, "temperature": 0.9, "seed": 5, "ignore_eos": True}
# Real processes take longer to start than nodes of this one.
until = partial(mesh.until, deadline_seconds=DEADLINE_SECONDS)


async def _cluster(folder: Path, count: int, *, needed: int) -> DemoCluster:
    """Some daemons of which the model needs `needed`."""
    usable_bytes = usable_bytes_for(
        await mesh.profile_demo_model(), needed, CONTEXT_TOKENS, demo_reserves(RUNTIME_RESERVE_BYTES)
    )
    settings = NodeSettings(
        usable_bytes=usable_bytes,
        runtime_reserve_bytes=RUNTIME_RESERVE_BYTES,
        bootstrap_expect=count,
        mdns=False,
        probe_cache_dir=folder,
        extra={"bandwidth_probe": False},
    )
    return DemoCluster(folder, count, settings)


async def _start(cluster: DemoCluster) -> None:
    await cluster.start()
    for node in cluster.nodes:
        await node.ready(DEADLINE_SECONDS)


def _process(node: DemoNode) -> psutil.Process:
    assert node.pid is not None
    return psutil.Process(node.pid)


def _worker(node: DemoNode) -> psutil.Process:
    [worker] = _process(node).children()
    return worker


def _gone(processes: list[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=15)
    return not alive


async def _tokens(client: AsyncClient, seed: int | None = None) -> tuple[int, ...]:
    temperature = 0.0 if seed is None else 0.9
    done = await client.complete(
        "A plan is", max_tokens=12, temperature=temperature, seed=seed, ignore_eos=True
    )
    return done.token_ids


async def test_processes_are_killed_and_the_cluster_recovers(tmp_path: Path) -> None:
    async with await _cluster(tmp_path, 2, needed=2) as cluster:
        await _start(cluster)
        first, second = cluster.nodes
        async with first.client() as client:
            await until(client, lambda s: s.has_quorum and len(s.document.members) == 2, "formed")
            loaded = await client.load(MODEL, context_tokens=CONTEXT_TOKENS)
            assert loaded.deployment is not None
            assert len(loaded.deployment.stages) == 2
            greedy, seeded = await _tokens(client), await _tokens(client, seed=11)
            async with second.client() as other:
                assert await _tokens(other) == greedy
                assert await _tokens(other, seed=11) == seeded

            for node in cluster.nodes:
                maps = [m.path for m in _process(node).memory_maps()]
                assert not any("libmlx" in path for path in maps)
                assert any("/_ring." in path for path in maps), "the daemon talks through no ring"
                lanes = [c for c in _worker(node).net_connections("inet") if c.status == psutil.CONN_LISTEN]
                assert lanes
                assert {c.laddr.ip for c in lanes} == {"127.0.0.1"}

            victim = next(n for n in cluster.nodes if n.node_id != loaded.deployment.stages[0].node_id)
            survivor = next(n for n in cluster.nodes if n is not victim)
            kept = _worker(survivor)
            undisturbed = await client.complete("A plan is", **LONG)
            assert undisturbed.token_ids == await _tokens_although_killed(client, _worker(victim))
            await until(
                client,
                lambda s: s.serving_state == "ready" and _epoch(s) > loaded.epoch,
                "ready after the loss of a worker",
            )
            assert await _tokens(client) == greedy
            assert _worker(survivor) == kept, "the worker that lost the other one lives on"
            reports = {n.member.node_id: n.worker for n in (await client.status()).nodes}
            told = reports[survivor.node_id]
            assert (told.process, told.kept_bytes) == ("kept", told.loaded_bytes)
            assert reports[victim.node_id].process == "new"

        orphan = _worker(second)
        second.signal(signal.SIGKILL)
        await second.wait(5)
        assert await asyncio.to_thread(_gone, [orphan])

        async with first.client() as client:
            await until(
                client, lambda s: s.serving_state in {"refused", "degraded"} or bool(s.health), "told"
            )
            await second.start()
            await second.ready(DEADLINE_SECONDS)
            await until(client, lambda s: s.serving_state == "ready", "ready with the node back")
            assert await _tokens(client) == greedy
        everything = [p for n in cluster.nodes for p in (_process(n), _worker(n))]
        for node in cluster.nodes:
            node.signal(signal.SIGTERM)
        assert [await node.wait(12) for node in cluster.nodes] == [0, 0]
        assert await asyncio.to_thread(_gone, everything)


async def test_the_survivors_keep_their_processes_and_layers(tmp_path: Path) -> None:
    """A daemon of three is killed: the node that was left out takes its part, the other one goes on as it is."""
    async with await _cluster(tmp_path, 3, needed=2) as cluster:
        await _start(cluster)
        async with cluster.nodes[0].client() as client:
            await until(client, lambda s: s.has_quorum and len(s.document.members) == 3, "formed")
            loaded = await client.load(MODEL, context_tokens=CONTEXT_TOKENS)
            assert loaded.deployment is not None
            placed = [stage.node_id for stage in loaded.deployment.stages]
            assert len(placed) == 2
            greedy = await _tokens(client)
        victim = next(n for n in cluster.nodes if n.node_id == placed[1])
        survivor = next(n for n in cluster.nodes if n.node_id == placed[0])
        kept = _worker(survivor)
        victim.signal(signal.SIGKILL)
        await victim.wait(5)
        async with survivor.client() as client:
            await until(
                client,
                lambda s: s.serving_state == "ready" and _epoch(s) > loaded.epoch,
                "ready without the node",
            )
            assert await _tokens(client) == greedy
            status = await client.status()
        assert _worker(survivor) == kept
        report = next(n.worker for n in status.nodes if n.member.node_id == survivor.node_id)
        assert (report.process, report.resting) == ("kept", False)
        assert report.kept_bytes > 0


async def _tokens_although_killed(client: AsyncClient, worker: psutil.Process) -> tuple[int, ...]:
    """The tokens of a long generation whose worker is killed at its eleventh."""
    tokens: list[int] = []
    paused = 0
    async with aclosing(client.generate("A plan is", **LONG)) as chunks:
        async for chunk in chunks:
            paused += chunk.paused is not None
            if len(tokens) <= 10 < len(tokens) + len(chunk.token_ids):
                worker.send_signal(signal.SIGKILL)
            tokens += chunk.token_ids
    assert paused
    return tuple(tokens)


def _epoch(status: ClusterStatus) -> str:
    epoch = status.document.plan.epoch
    return f"{epoch.generation}.{epoch.term}.{epoch.seq}"


async def test_a_client_goes_on_at_another_daemon_where_its_own_is_killed(tmp_path: Path) -> None:
    async with await _cluster(tmp_path, 2, needed=1) as cluster:
        await _start(cluster)
        founder = cluster.nodes[0]
        async with founder.client() as client:
            status = await until(client, lambda s: s.has_quorum and len(s.document.members) == 2, "formed")
            loaded = await client.load(MODEL, context_tokens=CONTEXT_TOKENS, stage_count=1)
            assert loaded.deployment is not None
            undisturbed = await client.complete("A plan is", **LONG)
        head_id = loaded.deployment.stages[0].node_id
        addresses = {member.node_id: member.addresses[0] for member in status.document.members}
        api = next(node for node in cluster.nodes if node.node_id != head_id)
        async with api.client() as client:
            await until(client, lambda s: s.serving_state == "ready", "told ready")
        credentials = await issue_client(
            founder.socket_path, "user", [addresses[api.node_id], addresses[head_id]]
        )
        tokens: list[int] = []
        text = ""
        async with (
            AsyncClient(credentials=credentials) as client,
            aclosing(client.generate("A plan is", **LONG)) as chunks,
        ):
            async for chunk in chunks:
                if len(tokens) <= 10 < len(tokens) + len(chunk.token_ids):
                    api.signal(signal.SIGKILL)
                tokens += chunk.token_ids
                text += chunk.text
        assert tuple(tokens) == undisturbed.token_ids
        assert text == undisturbed.text
        await api.wait(5)


async def test_a_second_daemon_on_a_data_folder_says_so_and_ends(tmp_path: Path) -> None:
    async with await _cluster(tmp_path, 1, needed=1) as cluster:
        await _start(cluster)
        [node] = cluster.nodes
        twin = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "macmesh_daemon.cli.macmeshd",
            "--config",
            str(node.config_path),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        async with asyncio.timeout(DEADLINE_SECONDS):
            output, _ = await twin.communicate()

        assert twin.returncode == 1
        assert f"process {node.pid}) already runs" in output.decode()
        async with node.client() as client:
            assert (await client.status()).node_id == node.node_id


async def test_a_node_serves_on_without_mdns_and_bandwidth(tmp_path: Path) -> None:
    """Multicast on an interface that does not exist: a health line, not an end."""
    cluster = await _cluster(tmp_path, 1, needed=1)
    settings = NodeSettings(
        usable_bytes=cluster.settings.usable_bytes,
        runtime_reserve_bytes=RUNTIME_RESERVE_BYTES,
        bootstrap_expect=1,
        mdns=True,
        probe_cache_dir=tmp_path / "no" / "such" / "folder",
        extra={"mdns_interfaces": ["nosuch0"]},
    )
    async with DemoCluster(tmp_path / "c", 1, settings) as cluster:
        await _start(cluster)
        async with cluster.nodes[0].client() as client:
            status = await until(
                client, lambda s: s.has_quorum and any("mDNS" in h for h in s.health), "told"
            )
            assert status.serving_state == "idle"
            await client.load(MODEL, context_tokens=CONTEXT_TOKENS)
            assert len(await _tokens(client)) == 12
