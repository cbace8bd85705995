"""Real worker processes that take up one stage after the other."""

import asyncio
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from macmesh.v1 import inference_pb2, lane_pb2, peer_pb2
from macmesh_daemon.supervisor.local_plan import local_plan, peers_of
from macmesh_daemon.supervisor.process import WorkerProcess
from tinymodels import write_tiny_model

pytestmark = pytest.mark.process

LAYERS = 4
PROMPT = [(7 * i * i + 3) % 300 + 4 for i in range(20)]
DEADLINE_SECONDS = 120.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"), "qwen3")


async def reached(worker: WorkerProcess, state: peer_pb2.WorkerState.ValueType) -> peer_pb2.WorkerReport:
    async for event in worker.events():
        if event.WhichOneof("event") == "report" and event.report.state == state:
            return event.report
    raise AssertionError("the epoch ended first")


class Mesh:
    """Workers on this machine, and the epochs that they serve."""

    def __init__(self, folder: Path, transfers: str = "") -> None:
        self._folder = folder
        self._transfers = transfers
        self._seq = 0
        self.starts: list[lane_pb2.StartStage] = []
        self.serving: list[WorkerProcess] = []

    async def stage(
        self, workers: Sequence[WorkerProcess], cuts: Sequence[int]
    ) -> list[peer_pb2.WorkerReport]:
        """The next epoch, head first; those that rest take it up."""
        self._seq += 1
        starts = self.starts = local_plan(
            [self._folder] * len(workers),
            cuts,
            layer_count=LAYERS,
            context_tokens=200,
            prefill_chunk_tokens=8,
        )
        for start in starts:
            start.epoch.seq = self._seq
            start.deployment.transfers = self._transfers
        self.serving = list(workers)
        for worker, start in zip(workers, starts, strict=True):
            await (worker.restart(start) if worker.resting else worker.start(start))
        loaded = [await reached(worker, peer_pb2.WORKER_STATE_LOADED) for worker in workers]
        peers = peers_of(starts, loaded)
        peers.epoch.CopyFrom(starts[0].epoch)
        for worker in workers:
            await worker.set_peers(peers)
        return [await reached(worker, peer_pb2.WORKER_STATE_READY) for worker in workers]

    async def retire(self) -> list[peer_pb2.WorkerReport]:
        """Ends the epoch in all workers at once; their last reports."""
        async with asyncio.TaskGroup() as group:
            for worker in self.serving:
                group.create_task(worker.retire(20))
        return [await last_report(worker) for worker in self.serving]

    async def tokens(self, name: str) -> list[int]:
        """What the head generates for the prompt, sampled with one seed."""
        sampling = inference_pb2.SamplingParameters(temperature=1.0, seed=7)
        await self.serving[0].submit(
            peer_pb2.RunRequestRequest(
                epoch=self.starts[0].epoch,
                request_id=name,
                prompt_token_ids=PROMPT,
                max_tokens=10,
                sampling=sampling,
            )
        )
        found: list[int] = []
        async for event in self.serving[0].events():
            if event.WhichOneof("event") == "progress" and event.progress.request_id == name:
                found.append(event.progress.response.token_id)
                if event.progress.response.finish_reason:
                    return found
        raise AssertionError("the epoch ended first")


async def last_report(worker: WorkerProcess) -> peer_pb2.WorkerReport:
    reports = [event.report async for event in worker.events() if event.WhichOneof("event") == "report"]
    return reports[-1]


@pytest.mark.parametrize("transfers", ["host", "graph"])
async def test_a_process_serves_stage_after_stage_and_keeps_what_it_holds(
    folder: Path, transfers: str
) -> None:
    mesh = Mesh(folder, transfers)
    one, other = WorkerProcess(), WorkerProcess()
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            (alone,) = await mesh.stage([one], [])
            pid = one.pid
            expected = await mesh.tokens("alone")
            assert alone.kept_bytes == 0
            (stopped,) = await mesh.retire()
            assert (stopped.state, stopped.resting) == (peer_pb2.WORKER_STATE_STOPPED, True)

            head, tail = await mesh.stage([one, other], [2])
            assert head.kept_bytes == head.loaded_bytes > 0
            assert tail.kept_bytes == 0
            assert head.transfers == transfers
            assert await mesh.tokens("two") == expected
            await mesh.retire()

            head, tail = await mesh.stage([other, one], [1])  # layers 0..1, and 1..4 where 0..2 were
            assert 0 < tail.kept_bytes < tail.loaded_bytes
            assert head.kept_bytes == 0, "it held the other end"
            assert await mesh.tokens("swapped") == expected

            assert other.pid is not None
            os.kill(other.pid, signal.SIGKILL)
            report = await last_report(one)
            assert (report.state, report.peer_lost) == (peer_pb2.WORKER_STATE_FAILED, True)
            assert one.resting
            (alone,) = await mesh.stage([one], [])
            assert 0 < alone.kept_bytes < alone.loaded_bytes
            assert await mesh.tokens("alone again") == expected
            assert one.pid == pid
    finally:
        await one.stop(5)
        await other.stop(5)


async def test_a_busy_epoch_ends_at_once_and_a_late_word_to_it_is_dropped(folder: Path) -> None:
    mesh = Mesh(folder)
    workers = [WorkerProcess(), WorkerProcess()]
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            await mesh.stage(workers, [2])
            old = mesh.starts[0].epoch
            expected = await mesh.tokens("first")
            await workers[0].submit(
                peer_pb2.RunRequestRequest(
                    epoch=old, request_id="long", prompt_token_ids=PROMPT, max_tokens=170
                )
            )
            async for event in workers[0].events():
                if event.WhichOneof("event") == "progress":
                    break
            reports = await mesh.retire()
            # Each may have seen the other go before it was asked itself.
            assert all(report.resting for report in reports)
            await mesh.stage(workers, [3])
            for worker in workers:
                await worker.send(lane_pb2.WorkerCommand(retire=lane_pb2.RetireEpoch(epoch=old)))
                await worker.set_peers(peer_pb2.SetPeersRequest(epoch=old, epoch_key=bytes(32)))
                await worker.cancel("long")
            assert await mesh.tokens("second") == expected
    finally:
        for worker in workers:
            await worker.stop(5)


def held(pid: int | None) -> tuple[int, int]:
    """Descriptors and threads of a process."""
    return tuple(sum(1 for _ in Path(f"/proc/{pid}/{what}").iterdir()) for what in ("fd", "task"))  # type: ignore[return-value]


async def memory(worker: WorkerProcess, nonce: int) -> int:
    await worker.ping(nonce)
    async for event in worker.events():
        if event.WhichOneof("event") == "pong" and event.pong.nonce == nonce:
            return event.pong.active_memory_bytes
    raise AssertionError("the epoch ended first")


@pytest.mark.skipif(
    not Path("/proc/self/fd").exists(), reason="the system does not show what a process holds"
)
@pytest.mark.parametrize(("transfers", "epochs"), [("host", 13), ("graph", 19)])
async def test_nothing_is_left_of_many_epochs(folder: Path, transfers: str, epochs: int) -> None:
    """Those of two stages have lanes, of hosts also where decode is in the graph; those of one are quick."""
    mesh = Mesh(folder, transfers)
    one, other = (WorkerProcess(ping_interval_seconds=600) for _ in range(2))
    descriptors, threads, memories = [], [], []
    try:
        async with asyncio.timeout(2 * DEADLINE_SECONDS):
            for number in range(epochs):
                await (mesh.stage([one], []) if number % 3 else mesh.stage([one, other], [2]))
                await mesh.tokens("r")
                if not number % 3:
                    memories.append(await memory(one, 1000 + number))
                    of_both = [held(worker.pid) for worker in (one, other)]
                    descriptors.append(max(count for count, _ in of_both))
                    threads.append(max(count for _, count in of_both))
                await mesh.retire()
        # A connection may be seen while it closes: more than that is left of no epoch.
        assert max(descriptors[3:]) <= max(descriptors[:3]) + 2, descriptors
        assert max(threads[3:]) <= max(threads[:3]), threads
        # The last step may have let go of its arrays by then, or not: some hundred bytes. An epoch's caches are more.
        assert max(memories[1:]) <= memories[0] + 1000, memories
    finally:
        for worker in (one, other):
            await worker.stop(5)
