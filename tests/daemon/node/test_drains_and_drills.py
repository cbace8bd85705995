"""Drains and faults for drills, on real nodes over real sockets, with fake workers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from macmesh import MacmeshError
from macmesh.reasons import Reason
from macmesh.types import epoch_text
from macmesh_daemon.demo.sizing import demo_reserves, usable_bytes_for
from macmesh_daemon.models.demo import demo_model_folder
from support.mesh import RESERVE_BYTES, Mesh, profile_demo_model

if TYPE_CHECKING:
    from pathlib import Path

    from macmesh import ClusterStatus

MODEL = str(demo_model_folder())


def serving(status: ClusterStatus) -> list[str]:
    return [n.member.node_id for n in status.nodes if n.HasField("stage")]


def drain_of(status: ClusterStatus, node_id: str) -> str:
    return next(n.drain for n in status.nodes if n.member.node_id == node_id)


async def test_a_drain_over_the_wire_is_refused_where_it_leaves_too_little(tmp_path: Path) -> None:
    usable = usable_bytes_for(await profile_demo_model(), 2, 256, demo_reserves(RESERVE_BYTES))
    async with Mesh(tmp_path, 3, usable_bytes=usable) as mesh:
        status = await mesh.formed()
        other = next(n for n in mesh.nodes if n is not mesh.coordinator(status))
        async with other.client() as client:
            await client.load(MODEL, context_tokens=256)
            first = serving(await client.status())
            victim = next(n for n in first if n != status.coordinator_node_id)
            await client.drain(victim)
            status = await mesh.until(
                other,
                lambda s: drain_of(s, victim) == "drained" and s.serving_state == "ready",
                "drained and ready",
            )
            assert victim not in serving(status)
            assert next(n for n in status.nodes if n.member.node_id == victim).member.voter
            assert any("is drained" in line for line in status.health)

            with pytest.raises(MacmeshError) as refused:
                await client.drain(serving(status)[0])
            assert refused.value.reason == Reason.DOES_NOT_FIT
            assert int(refused.value.metadata["bytes_to_add"]) > 0
            with pytest.raises(MacmeshError) as unknown:
                await client.drain("0" * 64)
            assert unknown.value.reason == Reason.NOT_FOUND

            assert (status.unserved_seconds, status.refusal_reason) == (0, "")
            second = next(n for n in serving(status) if n != status.coordinator_node_id)
            await client.drain(second, force=True)
            status = await mesh.until(other, lambda s: s.serving_state == "refused", "too small")
            assert status.refusal_reason == Reason.DOES_NOT_FIT
            assert status.unserved_seconds > 0
            assert status.document.wanted.context_tokens == 256
            for node_id in (victim, second):
                await client.drain(node_id, undo=True)
            status = await mesh.until(other, lambda s: s.serving_state == "ready", "ready again")
            assert {drain_of(status, n.node_id) for n in mesh.nodes} == {""}


async def test_a_node_makes_a_fault_of_its_own_wherever_it_was_asked_for(tmp_path: Path) -> None:
    async with Mesh(tmp_path, 2) as mesh:
        status = await mesh.formed()
        coordinator = mesh.coordinator(status)
        other = next(n for n in mesh.nodes if n is not coordinator)
        async with other.client() as client:
            with pytest.raises(MacmeshError) as idle:
                await client.drill_fault("kill-worker", coordinator.node_id)
            assert idle.value.reason == Reason.NOT_READY
            loaded = await client.load(MODEL, context_tokens=256, stage_count=2)
            done = await client.drill_fault("kill-worker", coordinator.node_id)
            assert done == "killed the worker, process 4000000"
            assert len(other.workers) == 1, "the other's worker was not touched by the drill"
            await mesh.until(
                other,
                lambda s: s.serving_state == "ready" and epoch_text(s.document.plan.epoch) != loaded.epoch,
                "ready anew",
            )
            with pytest.raises(MacmeshError) as wrong:
                await client.drill_fault("restart-coordinator", other.node_id)
            assert wrong.value.reason == Reason.NOT_COORDINATOR
            with pytest.raises(MacmeshError) as strange:
                await client.drill_fault("pull-the-plug", other.node_id)
            assert strange.value.reason == Reason.INVALID_ARGUMENT

            done = await client.drill_fault("restart-coordinator", coordinator.node_id)
            assert done.startswith(f"handed the office over to {other.node_id[:8]} and killed the worker")
            await mesh.until(
                other,
                lambda s: s.coordinator_node_id == other.node_id and s.serving_state == "ready",
                "served under the successor",
            )


async def test_a_node_that_allows_no_drills_refuses_them(tmp_path: Path) -> None:
    async with Mesh(tmp_path, 1, drills=False) as mesh:
        await mesh.formed()
        async with mesh.nodes[0].client() as client:
            await client.load(MODEL, context_tokens=256)
            with pytest.raises(MacmeshError, match="drills = true") as refused:
                await client.drill_fault("kill-worker", mesh.nodes[0].node_id)
            assert refused.value.reason == Reason.FORBIDDEN
            assert len(mesh.nodes[0].workers) == 1
            assert (await client.status()).serving_state == "ready"
