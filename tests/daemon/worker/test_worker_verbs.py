"""A plan over links of our own in real worker processes, with a fabric of RDMA devices that are not there."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from macmesh.v1 import lane_pb2, peer_pb2, types_pb2
from macmesh_daemon.supervisor.local_plan import local_plan, peers_of
from macmesh_daemon.supervisor.process import WorkerProcess
from macmesh_daemon.supervisor.verify import run_pipeline
from macmesh_rdma.testing.fakeverbs import FakeFabric
from tinymodels import write_tiny_model

PROMPT = [(7 * i * i + 3) % 300 + 4 for i in range(37)]
DEADLINE_SECONDS = 60.0
CABLE = [("a.fake0", "b.fake0")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"), "qwen3")


def plan(folder: Path, device: str = "fake0", *, compared: bool = False) -> list[lane_pb2.StartStage]:
    starts = local_plan(
        [folder] * 2,
        [2],
        layer_count=4,
        context_tokens=200,
        prefill_chunk_tokens=8,
        step_deadline_seconds=20,
    )
    own, none = types_pb2.DeviceList(devices=[device]), types_pb2.DeviceList()
    rows = [types_pb2.DeviceRow(cells=[none, own]), types_pb2.DeviceRow(cells=[own, none])]
    for start in starts:
        start.deployment.transport = "verbs"
        start.deployment.transport_compared = compared
        start.deployment.device_matrix.CopyFrom(types_pb2.DeviceMatrix(rows=rows))
    return starts


class Stage:
    """A worker and what it told."""

    def __init__(self, fabric: FakeFabric, host: str) -> None:
        self.worker = WorkerProcess(environment={**os.environ, **fabric.environment(host)})
        self.use = lane_pb2.RdmaUse()
        self.tokens: list[int] = []

    async def until(self, told: Callable[[lane_pb2.WorkerEvent], bool]) -> lane_pb2.WorkerEvent:
        async for event in self.worker.events():
            if event.WhichOneof("event") == "rdma_use":
                self.use.setups += event.rdma_use.setups
                self.use.queue_pairs_made += event.rdma_use.queue_pairs_made
                self.use.queue_pairs_freed += event.rdma_use.queue_pairs_freed
                self.use.faults.extend(event.rdma_use.faults)
            if event.WhichOneof("event") == "progress":
                self.tokens.append(event.progress.response.token_id)
            if told(event):
                return event
        raise AssertionError("the worker ended without that")

    async def reached(self, *states: peer_pb2.WorkerState.ValueType) -> peer_pb2.WorkerReport:
        event = await self.until(lambda e: e.WhichOneof("event") == "report" and e.report.state in states)
        return event.report

    async def rest(self) -> None:
        """Reads to the end of what the worker tells."""
        async for event in self.worker.events():
            if event.WhichOneof("event") == "rdma_use":
                self.use.queue_pairs_made += event.rdma_use.queue_pairs_made
                self.use.queue_pairs_freed += event.rdma_use.queue_pairs_freed


@asynccontextmanager
async def stages(
    starts: list[lane_pb2.StartStage], fabric: FakeFabric
) -> AsyncIterator[tuple[list[Stage], list[peer_pb2.WorkerReport]]]:
    """Both stages, and how each came out of joining."""
    made = [Stage(fabric, host) for host in "ab"]
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            for stage, start in zip(made, starts, strict=True):
                await stage.worker.start(start)
            loaded = [await stage.reached(peer_pb2.WORKER_STATE_LOADED) for stage in made]
            peers = peers_of(starts, loaded)
            for stage in made:
                await stage.worker.set_peers(peers)
            ends = (peer_pb2.WORKER_STATE_READY, peer_pb2.WORKER_STATE_FAILED)
            joined = [await stage.reached(*ends) for stage in made]
        yield made, joined
    finally:
        for stage in made:
            await stage.worker.stop(5)


@pytest.mark.process
async def test_stages_give_the_tokens_of_one_process_and_free_what_they_made(folder: Path) -> None:
    starts = plan(folder)
    with FakeFabric(CABLE) as fabric:
        async with stages(starts, fabric) as (made, joined):
            for index, report in enumerate(joined):
                assert report.error == ""
                (link,) = report.links
                assert (link.peer_stage, link.provider, list(link.devices)) == (1 - index, "verbs", ["fake0"])
                assert link.latency_us > 0
                assert report.transport_failure == ""
            head = made[0]
            request = peer_pb2.RunRequestRequest(
                epoch=starts[0].epoch, request_id="r", prompt_token_ids=PROMPT, max_tokens=12
            )
            async with asyncio.timeout(DEADLINE_SECONDS):
                await head.worker.submit(request)
                await head.until(
                    lambda e: e.WhichOneof("event") == "progress" and bool(e.progress.response.finish_reason)
                )
            for stage in made:
                assert stage.use.setups == 1
                assert stage.use.queue_pairs_made > 0
            sent = fabric.counters().sent[0]
            assert min(end.delivered for end in sent) > 12
        for stage in made:
            async with asyncio.timeout(DEADLINE_SECONDS):
                await stage.rest()
            assert stage.use.queue_pairs_freed == stage.use.queue_pairs_made
        assert fabric.counters().queue_pairs == 0
    single = local_plan([folder], [], layer_count=4, context_tokens=200, prefill_chunk_tokens=8)
    async with asyncio.timeout(DEADLINE_SECONDS):
        alone = await run_pipeline(single, PROMPT, 12)
    assert tuple(head.tokens) == alone.token_ids
    assert len(head.tokens) == 12


@pytest.mark.process
async def test_a_cable_that_damages_everything_is_a_fault_of_the_pair(folder: Path) -> None:
    with FakeFabric(CABLE, corrupt=1.0) as fabric:
        async with stages(plan(folder), fabric) as (made, joined):
            assert {report.state for report in joined} == {peer_pb2.WORKER_STATE_FAILED}
            assert any(report.transport_failure for report in joined)
            faults = [(stage, fault) for stage, told in enumerate(made) for fault in told.use.faults]
            assert faults
            assert all(fault.peer_stage == 1 - stage for stage, fault in faults)
