"""Real nodes that are cabled as Macs would be: jaccl is planned, fails in the workers, and is given up."""

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
from support.mesh import Mesh, states

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from macmesh_daemon.config import Config
    from macmesh_daemon.hostinfo import HostReport

FAILURE = "2 transfer(s) of the group's self-test arrived wrong"


class UncabledWorker(FakeWorker):
    """Finds, where the plan is over jaccl, that it delivers wrong data."""

    async def send(self, command: lane_pb2.WorkerCommand) -> None:
        start = self.started_with
        if start is None or command.WhichOneof("command") != "peers" or start.deployment.transport != "jaccl":
            await super().send(command)
            return
        self._tell(
            lane_pb2.WorkerEvent(
                report=peer_pb2.WorkerReport(
                    epoch=start.epoch,
                    state=peer_pb2.WORKER_STATE_FAILED,
                    error=FAILURE,
                    peer_lost=True,
                    transport_failure=FAILURE,
                )
            )
        )
        self._end(FAILURE)


async def on_a_machine_of_its_own(config: Config) -> HostReport:
    report = await collect_facts(config)
    return dataclasses.replace(report, facts=dataclasses.replace(report.facts, host_id=config.data_dir.name))


async def facts(name: str, other: str) -> RdmaFacts:
    return RdmaFacts("25C56", "0.32.4", (CableEnd(f"rdma_{name}", name, (other,)),), 10, 100)


async def test_jaccl_is_planned_and_given_up_where_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "collect_facts", on_a_machine_of_its_own)
    mesh = Mesh(tmp_path, 2)
    for node, (name, other) in zip(mesh.nodes, [("en2", "en3"), ("en3", "en2")], strict=True):
        node.make_worker = UncabledWorker
        node.rdma = RdmaWatch(functools.partial(facts, name, other), changes=False)
    async with mesh:
        status = await mesh.formed()
        told = [json.loads(member.facts.rdma_json) for member in status.document.members]
        assert sorted(fact["ends"][0]["device"] for fact in told) == ["rdma_en2", "rdma_en3"]
        async with mesh.nodes[0].client() as client:
            await client.load(str(demo_model_folder()), context_tokens=256, stage_count=2)
        status = await mesh.until(mesh.nodes[1], lambda s: s.serving_state == "ready", "told ready")

    deployment = status.document.plan.deployments[0]
    assert deployment.transport == "auto"
    assert FAILURE in deployment.transport_reason
    assert [report.state for report in states(status)] == [peer_pb2.WORKER_STATE_READY] * 2
    for node in mesh.nodes:
        first, second = node.workers
        assert first.started_with is not None
        assert first.started_with.deployment.transport == "jaccl"
        rows = first.started_with.deployment.device_matrix.rows
        assert sorted(name for row in rows for cell in row.cells for name in cell.devices) == [
            "rdma_en2",
            "rdma_en3",
        ]
        assert second.started_with is not None
        assert second.started_with.deployment.transport == "auto"
