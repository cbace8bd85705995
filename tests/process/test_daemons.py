"""Real daemons, real workers, real signals, on one machine."""

from __future__ import annotations

import asyncio
import signal
import sys
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import psutil
import pytest

from macmesh import AsyncClient
from support.clients import issue_client
from support.daemons import (
    DEADLINE_SECONDS,
    MODEL,
    cluster_of,
    epoch_of,
    has_formed,
    process_of,
    start,
    until,
    worker_of,
)

if TYPE_CHECKING:
    from pathlib import Path

    from macmesh import GenerateOptions
    from macmesh_daemon.demo.nodes import DemoNode

pytestmark = pytest.mark.process
CONTEXT_TOKENS = 2048
#: Much more than is generated until a signal has its effect.
LONG: GenerateOptions = {"max_tokens": 80, "temperature": 0.9, "seed": 5, "ignore_eos": True}


def _gone(processes: list[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=60)
    return not alive


async def _tokens(client: AsyncClient, seed: int | None = None) -> tuple[int, ...]:
    temperature = 0.0 if seed is None else 0.9
    done = await client.complete(
        "A plan is", max_tokens=12, temperature=temperature, seed=seed, ignore_eos=True
    )
    return done.token_ids


async def test_processes_are_killed_and_the_cluster_recovers(tmp_path: Path) -> None:
    async with await cluster_of(tmp_path, 2, needed=2, context_tokens=CONTEXT_TOKENS) as cluster:
        await start(cluster)
        first, second = cluster.nodes
        async with first.client() as client:
            await until(client, partial(has_formed, 2), "formed")
            loaded = await client.load(MODEL, context_tokens=CONTEXT_TOKENS)
            assert loaded.deployment is not None
            assert len(loaded.deployment.stages) == 2
            greedy, seeded = await _tokens(client), await _tokens(client, seed=11)
            async with second.client() as other:
                assert await _tokens(other) == greedy
                assert await _tokens(other, seed=11) == seeded

            for node in cluster.nodes:
                maps = [m.path for m in process_of(node).memory_maps()]
                assert not any("libmlx" in path for path in maps)
                assert any("/_ring." in path for path in maps), "the daemon talks through no ring"
                lanes = [c for c in worker_of(node).net_connections("inet") if c.status == psutil.CONN_LISTEN]
                assert lanes
                assert {c.laddr.ip for c in lanes} == {"127.0.0.1"}

            victim = next(n for n in cluster.nodes if n.node_id != loaded.deployment.stages[0].node_id)
            survivor = next(n for n in cluster.nodes if n is not victim)
            kept = worker_of(survivor)
            undisturbed = await client.complete("A plan is", **LONG)
            before = epoch_of(await client.status())
            assert undisturbed.token_ids == await _tokens_although_killed(client, worker_of(victim))
            await until(
                client,
                lambda s: s.serving_state == "ready" and epoch_of(s) > before,
                "ready after the loss of a worker",
            )
            assert await _tokens(client) == greedy
            assert worker_of(survivor) == kept, "the worker that lost the other one lives on"
            reports = {n.member.node_id: n.worker for n in (await client.status()).nodes}
            told = reports[survivor.node_id]
            assert (told.process, told.kept_bytes) == ("kept", told.loaded_bytes)
            assert reports[victim.node_id].process == "new"

        orphan = worker_of(second)
        second.signal(signal.SIGKILL)
        await second.wait(60)
        assert await asyncio.to_thread(_gone, [orphan])

        async with first.client() as client:
            await until(
                client, lambda s: s.serving_state in {"refused", "degraded"} or bool(s.health), "told"
            )
            await second.start()
            await second.ready(DEADLINE_SECONDS)
            await until(client, lambda s: s.serving_state == "ready", "ready with the node back")
            assert await _tokens(client) == greedy
        everything = [p for n in cluster.nodes for p in (process_of(n), worker_of(n))]
        for node in cluster.nodes:
            node.signal(signal.SIGTERM)
        assert [await node.wait(60) for node in cluster.nodes] == [0, 0]
        assert await asyncio.to_thread(_gone, everything)


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


async def test_a_client_goes_on_at_another_daemon_where_its_own_is_killed(tmp_path: Path) -> None:
    async with await cluster_of(tmp_path, 2, needed=1, context_tokens=CONTEXT_TOKENS) as cluster:
        await start(cluster)
        founder = cluster.nodes[0]
        async with founder.client() as client:
            status = await until(client, partial(has_formed, 2), "formed")
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
        await api.wait(60)


async def test_a_node_serves_on_without_mdns_and_bandwidth_and_is_alone_on_its_folder(tmp_path: Path) -> None:
    """Multicast on an interface that does not exist: a health line, not an end. A second daemon says so and ends."""
    cluster = await cluster_of(
        tmp_path,
        1,
        needed=1,
        context_tokens=CONTEXT_TOKENS,
        mdns_interfaces=["nosuch0"],
        bandwidth_probe=True,
    )
    cluster.settings = replace(
        cluster.settings, mdns=True, probe_cache_dir=tmp_path / "no" / "such" / "folder"
    )
    async with cluster:
        await start(cluster)
        [node] = cluster.nodes
        async with node.client() as client:
            status = await until(
                client, lambda s: s.has_quorum and any("mDNS" in h for h in s.health), "told"
            )
            assert status.serving_state == "idle"
            await _twin_is_refused(node)
            await client.load(MODEL, context_tokens=CONTEXT_TOKENS)
            assert len(await _tokens(client)) == 12


async def _twin_is_refused(node: DemoNode) -> None:
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
