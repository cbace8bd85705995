"""Real nodes over real sockets and mutual TLS, with fake workers: election, load, generation, failures."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from macmesh import MacmeshError
from macmesh.reasons import Reason
from macmesh.v1 import peer_pb2
from macmesh_daemon.demo.sizing import demo_reserves, usable_bytes_for
from macmesh_daemon.models.demo import demo_model_folder
from macmesh_daemon.supervisor.testing import fake_token
from support.mesh import RESERVE_BYTES, Mesh, profile_demo_model, states

if TYPE_CHECKING:
    from pathlib import Path

MODEL = str(demo_model_folder())


async def usable_bytes(nodes: int, context_tokens: int) -> int:
    """What each node may use, so that the demo model needs that many."""
    return usable_bytes_for(await profile_demo_model(), nodes, context_tokens, demo_reserves(RESERVE_BYTES))


async def test_nodes_elect_load_and_generate_from_any_of_them(tmp_path: Path) -> None:
    async with Mesh(tmp_path, 3) as mesh:
        status = await mesh.formed()
        assert status.term >= 1
        assert {m.discovery for m in status.document.members if m.node_id != mesh.nodes[0].node_id} == {
            "static"
        }

        async with mesh.nodes[1].client() as client:
            progress = await client.load(MODEL, context_tokens=256, stage_count=3)
            assert progress.phase == "ready"
        texts = []
        for node in mesh.nodes:
            async with node.client() as client:
                done = await client.complete(token_ids=[1, 2, 3], max_tokens=5, temperature=0.0)
                assert list(done.token_ids) == [fake_token([1, 2, 3], i) for i in range(5)]
                texts.append(done.text)
        assert len(set(texts)) == 1

        status = await mesh.until(mesh.nodes[2], lambda s: s.serving_state == "ready", "told ready")
        assert [s.state for s in states(status)] == [peer_pb2.WORKER_STATE_READY] * 3
        covered = sorted((s.first_layer, s.end_layer) for s in status.document.plan.deployments[0].stages)
        assert covered[0][0] == 0
        assert all(a[1] == b[0] for a, b in itertools.pairwise(covered))


async def test_another_coordinator_adopts_the_running_plan(tmp_path: Path) -> None:
    async with Mesh(tmp_path, 3) as mesh:
        status = await mesh.formed()
        coordinator = mesh.coordinator(status)
        others = [n for n in mesh.nodes if n is not coordinator]
        async with others[0].client() as client:
            await client.load(MODEL, context_tokens=256, stage_count=1)
        before = await others[0].status()
        serving = next(n for n in before.nodes if n.HasField("stage")).member.node_id
        await coordinator.crash()
        after = await mesh.until(
            others[0],
            lambda s: s.coordinator_node_id not in {"", coordinator.node_id} and s.has_quorum,
            "elected again",
        )
        assert after.term > before.term
        if serving != coordinator.node_id:
            assert after.document.plan.epoch == before.document.plan.epoch
            assert sum(len(n.workers) for n in mesh.nodes) == 1


async def test_every_stage_tells_its_memory_and_time_to_any_node(tmp_path: Path) -> None:
    async with Mesh(tmp_path, 3, usable_bytes=await usable_bytes(nodes=2, context_tokens=256)) as mesh:
        status = await mesh.formed()
        coordinator = mesh.coordinator(status)
        other = next(n for n in mesh.nodes if n is not coordinator)
        async with coordinator.client() as client, other.client() as asking:
            with pytest.raises(MacmeshError) as nothing:
                await asking.stage_stats()
            assert nothing.value.reason == Reason.NO_MODEL_LOADED
            loaded = await client.load(MODEL, context_tokens=256)
            await client.complete(token_ids=[5, 6, 7], max_tokens=9, ignore_eos=True)
            told = await asking.stage_stats()
            assert loaded.deployment is not None
            assert [m.stage for m in told.stages] == list(loaded.deployment.stages)
            assert [m.reason for m in told.stages] == ["", ""]
            assert [m.stats.steps for m in told.stages] == [9, 0]  # a fake has no neighbours to tell
            times = {p.name: p.count for p in told.stages[0].stats.phases}
            assert (times["describe"], times["idle"]) == (9, 0)
            assert told.stages[0].stats.peak_memory_bytes == 1_000_000
            assert told.context_tokens == 256
            assert told.vocabulary_tokens == 1024

            # The tail's node goes, and is not found dead yet: the head still tells.
            tail = next(n for n in mesh.nodes if n.node_id == told.stages[1].stage.node_id)
            head = next(n for n in mesh.nodes if n.node_id == told.stages[0].stage.node_id)
            await tail.crash()
            async with head.client() as left:
                told = await left.stage_stats()
        assert told.stages[0].stats.steps == 9
        assert not told.stages[1].HasField("stats")
        assert told.stages[1].reason


async def test_the_loss_of_a_plan_member_brings_a_new_plan(tmp_path: Path) -> None:
    async with Mesh(tmp_path, 3, usable_bytes=await usable_bytes(nodes=2, context_tokens=256)) as mesh:
        status = await mesh.formed()
        coordinator = mesh.coordinator(status)
        async with coordinator.client() as client:
            await client.load(MODEL, context_tokens=256)
        loaded = await coordinator.status()
        epoch = loaded.document.plan.epoch
        stage_nodes = [s.node_id for s in loaded.document.plan.deployments[0].stages]
        assert len(stage_nodes) == 2
        victim = next(n for n in mesh.nodes if n.node_id in stage_nodes and n is not coordinator)
        await victim.crash()
        after = await mesh.until(
            coordinator,
            lambda s: s.serving_state == "ready" and s.document.plan.epoch != epoch,
            "ready without the lost node",
        )
        assert victim.node_id not in {s.node_id for s in after.document.plan.deployments[0].stages}


async def test_what_does_not_fit_is_refused_with_the_numbers(tmp_path: Path) -> None:
    async with Mesh(tmp_path, 1, usable_bytes=3_000_000) as mesh:
        await mesh.formed()
        async with mesh.nodes[0].client() as client:
            with pytest.raises(MacmeshError) as refused:
                await client.load(MODEL)
            assert refused.value.reason == Reason.DOES_NOT_FIT
            with pytest.raises(MacmeshError) as refused:
                await client.load(MODEL, context_tokens=10_000_000)
            assert refused.value.reason == Reason.CONTEXT_ABOVE_POSITION_LIMIT
            with pytest.raises(MacmeshError) as refused:
                await client.load("no-such-model")
            assert refused.value.reason == Reason.MODEL_NOT_FOUND
            with pytest.raises(MacmeshError) as refused:
                await client.complete("hello", max_tokens=3)
            assert refused.value.reason == Reason.NO_MODEL_LOADED


async def test_a_request_beyond_the_context_is_refused_before_any_work(tmp_path: Path) -> None:
    async with Mesh(tmp_path, 1) as mesh:
        await mesh.formed()
        async with mesh.nodes[0].client() as client:
            await client.load(MODEL, context_tokens=256)
            with pytest.raises(MacmeshError) as refused:
                await client.complete(token_ids=[1] * 250, max_tokens=50)
            assert refused.value.reason == Reason.CONTEXT_LENGTH_EXCEEDED
            epoch = await client.unload()
            assert epoch
            status = await client.status()
            assert not status.document.plan.deployments
