"""Real nodes that are cabled as Macs would be: verbs and jaccl are planned, fail in the workers, and are given up."""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import TYPE_CHECKING

from macmesh.v1 import lane_pb2, peer_pb2
from macmesh_daemon.hostinfo import collect_facts
from macmesh_daemon.models.demo import demo_model_folder
from macmesh_daemon.node import runtime
from macmesh_daemon.node.rdma_watch import RdmaWatch
from macmesh_daemon.supervisor.testing import FakeWorker
from macmesh_rdma.jaccl.facts import CableEnd, RdmaFacts
from macmesh_rdma.verbs.facts import PORT_ACTIVE, VerbsFacts, VerbsPort
from support.mesh import Mesh, states

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from macmesh_daemon.config import Config
    from macmesh_daemon.hostinfo import HostReport

FAILURE = "2 transfer(s) of the group's self-test arrived wrong"


class UncabledWorker(FakeWorker):
    """Finds, where the plan is over RDMA devices, that they deliver wrong data."""

    async def send(self, command: lane_pb2.WorkerCommand) -> None:
        start = self.started_with
        transport = start.deployment.transport if start is not None else ""
        if start is None or command.WhichOneof("command") != "peers" or transport not in {"verbs", "jaccl"}:
            await super().send(command)
            return
        if transport == "verbs":
            fault = lane_pb2.RdmaFault(peer_stage=1 - start.stage_index, reason=FAILURE)
            self._tell(lane_pb2.WorkerEvent(rdma_use=lane_pb2.RdmaUse(setups=1, faults=[fault])))
        self._tell(
            lane_pb2.WorkerEvent(
                report=peer_pb2.WorkerReport(
                    epoch=start.epoch,
                    state=peer_pb2.WORKER_STATE_FAILED,
                    error=FAILURE,
                    peer_lost=True,
                    transport_failure=f"{transport}: {FAILURE}",
                )
            )
        )
        self._end(FAILURE)


async def on_a_machine_of_its_own(config: Config) -> HostReport:
    report = await collect_facts(config)
    return dataclasses.replace(report, facts=dataclasses.replace(report.facts, host_id=config.data_dir.name))


async def facts(name: str, other: str) -> RdmaFacts:
    port = VerbsPort(f"rdma_{name}", 1, PORT_ACTIVE, 1, "::ffff:169.254.1.2")
    ends = (CableEnd(port.device, name, (other,)),)
    return RdmaFacts("25C56", "0.32.4", ends, 10, 100, verbs=VerbsFacts((port,)))


async def test_verbs_then_jaccl_are_planned_and_given_up_where_they_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "collect_facts", on_a_machine_of_its_own)
    mesh = Mesh(tmp_path, 2)
    for node, (name, other) in zip(mesh.nodes, [("en2", "en3"), ("en3", "en2")], strict=True):
        node.make_worker = UncabledWorker
        node.rdma = RdmaWatch(functools.partial(facts, name, other), changes=False)
    async with mesh:
        status = await mesh.formed()
        found = [json.loads(member.facts.rdma_json) for member in status.document.members]
        assert sorted(fact["ends"][0]["device"] for fact in found) == ["rdma_en2", "rdma_en3"]
        async with mesh.nodes[0].client() as client:
            await client.load(str(demo_model_folder()), context_tokens=256, stage_count=2)
        status = await mesh.until(mesh.nodes[1], lambda s: s.serving_state == "ready", "told ready")
        health: list[str] = []
        for node in mesh.nodes:
            async with node.client() as client:
                health += (await client.status()).health

    deployment = status.document.plan.deployments[0]
    assert deployment.transport == "auto"
    for transport in ("verbs", "jaccl"):
        assert f"{transport}: {FAILURE}" in deployment.transport_reason
    # The end that found it first keeps the other's name; the planner hears it from either.
    told = [line for line in health if "in quarantine" in line]
    assert told
    assert all(FAILURE in line for line in told)
    assert [report.state for report in states(status)] == [peer_pb2.WORKER_STATE_READY] * 2
    for node in mesh.nodes:
        plans = [worker.started_with.deployment for worker in node.workers if worker.started_with is not None]
        assert [plan.transport for plan in plans] == ["verbs", "jaccl", "auto"]
        for plan in plans[:2]:
            rows = plan.device_matrix.rows
            assert sorted(name for row in rows for cell in row.cells for name in cell.devices) == [
                "rdma_en2",
                "rdma_en3",
            ]
        assert [plan.transport_compared for plan in plans] == [True, False, False]
