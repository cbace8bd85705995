"""Real worker processes: requests, faults, and that nothing is left running."""

import asyncio
import collections
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from macmesh.v1 import inference_pb2, lane_pb2, peer_pb2, types_pb2
from macmesh_daemon.supervisor.interface import Worker
from macmesh_daemon.supervisor.local_plan import local_plan, peers_of
from macmesh_daemon.supervisor.process import WorkerProcess
from macmesh_daemon.supervisor.verify import running_plan
from macmesh_rdma.messages.stream_port import LENGTH
from tinymodels import write_tiny_model
from zoo import write_model

pytestmark = pytest.mark.process

LAYERS = 4
PROMPT = [(7 * i * i + 3) % 300 + 4 for i in range(20)]
DEADLINE_SECONDS = 120.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"), "qwen3")


def plan(
    paths: Sequence[Path], cuts: Sequence[int], *, deadline_seconds: float = 60
) -> list[lane_pb2.StartStage]:
    return local_plan(
        paths,
        cuts,
        layer_count=LAYERS,
        context_tokens=2000,
        slots=2,
        prefill_chunk_tokens=8,
        step_deadline_seconds=deadline_seconds,
    )


def request(
    starts: Sequence[lane_pb2.StartStage], name: str, max_tokens: int, *, seed: int | None = None
) -> peer_pb2.RunRequestRequest:
    sampling = inference_pb2.SamplingParameters()
    if seed is not None:
        sampling = inference_pb2.SamplingParameters(temperature=1.0, top_p=0.95, seed=seed)
    return peer_pb2.RunRequestRequest(
        epoch=starts[0].epoch,
        request_id=name,
        prompt_token_ids=PROMPT,
        max_tokens=max_tokens,
        sampling=sampling,
    )


class Talk:
    """What a head tells, by request."""

    def __init__(self, worker: Worker) -> None:
        self.events = worker.events()
        self.tokens: dict[str, list[int]] = collections.defaultdict(list)
        self.ends: dict[str, str] = {}
        self.final: peer_pb2.WorkerReport | None = None

    async def until(self, *, tokens: tuple[str, int] | None = None, ends: int = -1) -> None:
        """Listens until a request has so many tokens, so many requests have ended, or the worker has."""
        async for event in self.events:
            match event.WhichOneof("event"):
                case "progress":
                    name, response = event.progress.request_id, event.progress.response
                    if response.has_token:
                        assert response.index == len(self.tokens[name])
                        self.tokens[name].append(response.token_id)
                    if response.finish_reason:
                        self.ends[name] = inference_pb2.FinishReason.Name(response.finish_reason)
                case "failed":
                    self.ends[event.failed.request_id] = event.failed.reason
                case "report" if event.report.state in (
                    peer_pb2.WORKER_STATE_FAILED,
                    peer_pb2.WORKER_STATE_STOPPED,
                ):
                    self.final = event.report
                    return
            if tokens is not None and len(self.tokens[tokens[0]]) >= tokens[1]:
                return
            if len(self.ends) == ends:
                return


async def final_report(worker: Worker) -> peer_pb2.WorkerReport:
    talk = Talk(worker)
    await talk.until()
    assert talk.final is not None
    return talk.final


class Epochs:
    """Workers that take up one plan after another; a context manager that ends them."""

    def __init__(self) -> None:
        self._seq = 0
        self._all: list[WorkerProcess] = []
        self.workers: list[WorkerProcess] = []
        """Those of the plan, head first."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for worker in self._all:
            await worker.stop(5)

    async def serve(self, starts: Sequence[lane_pb2.StartStage]) -> list[peer_pb2.WorkerReport]:
        """Ends the plan before, brings this one to READY; what each of its workers reports then."""
        async with asyncio.TaskGroup() as group:
            for worker in self.workers:
                group.create_task(worker.retire(60))
        for worker in self.workers:
            async for _ in worker.events():
                pass
        self._seq += 1
        for start in starts:
            start.epoch.seq = self._seq
        self._all += [WorkerProcess() for _ in starts[len(self._all) :]]
        self.workers = self._all[: len(starts)]
        for worker, start in zip(self.workers, starts, strict=True):
            await (worker.restart(start) if worker.resting else worker.start(start))
        peers = peers_of(starts, [await reached(w, peer_pb2.WORKER_STATE_LOADED) for w in self.workers])
        peers.epoch.CopyFrom(starts[0].epoch)
        for worker in self.workers:
            await worker.set_peers(peers)
        return [await reached(worker, peer_pb2.WORKER_STATE_READY) for worker in self.workers]


async def generate(epochs: Epochs, starts: Sequence[lane_pb2.StartStage]) -> dict[str, list[int]]:
    """Three requests at once, of which two sample, on two slots."""
    await epochs.serve(starts)
    head = epochs.workers[0]
    for name, seed in (("greedy", None), ("seed-1", 1), ("seed-2", 2)):
        await head.submit(request(starts, name, 12, seed=seed))
    talk = Talk(head)
    await talk.until(ends=3)
    assert set(talk.ends.values()) == {"FINISH_REASON_LENGTH"}
    return dict(talk.tokens)


async def test_cuts_and_company_change_no_token(folder: Path) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS), Epochs() as epochs:
        alone = await generate(epochs, plan([folder], []))
        cut = await generate(epochs, plan([folder, folder], [1]))
        apart = plan([folder, folder], [1])
        apart[1].host_id = "another machine"
        over_tcp = await generate(epochs, apart)
    assert alone == cut == over_tcp
    assert {len(tokens) for tokens in cut.values()} == {12}
    assert len({tuple(tokens) for tokens in cut.values()}) == 3


LINKS = [
    (["a", "a", "a"], "auto", "shm", "same machine"),
    (["a", "b", "c"], "auto", "tcp", "not shm: they are on different machines"),
    (["a", "a", "a"], "tcp", "tcp", "asked for"),
]


async def test_links_are_chosen_for_each_pair_and_told_with_what_they_do(folder: Path) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS), Epochs() as epochs:
        for hosts, transport, provider, reason in LINKS:
            starts = plan([folder] * 3, [1, 2])
            for start, host in zip(starts, hosts, strict=True):
                start.host_id = host
                start.deployment.transport = transport
                start.deployment.link_buffers.CopyFrom(
                    types_pb2.LinkBuffers(num_buffers=2, frame_bytes=4096, buffer_sizes=2)
                )
            for index, report in enumerate(await epochs.serve(starts)):
                assert [link.peer_stage for link in report.links] == [i for i in range(3) if i != index]
                for link in report.links:
                    assert (link.provider, link.reason) == (provider, reason)
                    assert link.latency_us > 0
                    assert link.gb_per_s > 0
                    assert link.pool_bytes > 0


async def test_requests_are_refused_cancelled_and_stopped(folder: Path) -> None:
    starts = plan([folder], [])
    async with asyncio.timeout(DEADLINE_SECONDS), running_plan(starts) as (worker,):
        talk = Talk(worker)
        await worker.submit(request(starts, "long", 1900))
        await talk.until(tokens=("long", 5))
        stale = request(starts, "stale", 5)
        stale.epoch.seq += 1
        await worker.submit(stale)
        await worker.submit(request(starts, "too long", 1999))
        await worker.cancel("long")
        await talk.until(ends=3)
        assert talk.ends == {
            "long": "FINISH_REASON_CANCELLED",
            "stale": "EPOCH_CHANGED",
            "too long": "CONTEXT_LENGTH_EXCEEDED",
        }
        stopping = request(starts, "stopping", 50)
        stopping.stop_token_ids.append(talk.tokens["long"][2])
        await worker.submit(stopping)
        await talk.until(ends=4)
        assert talk.ends["stopping"] == "FINISH_REASON_STOP"
        first = talk.tokens["long"].index(stopping.stop_token_ids[0])
        assert talk.tokens["stopping"] == talk.tokens["long"][: first + 1]
        pid = worker.pid
        assert pid is not None
        await worker.stop(10)
        await talk.until()
        assert talk.final is not None
        assert talk.final.state == peer_pb2.WORKER_STATE_STOPPED
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


async def test_killed_stage_fails_the_plan_at_once_and_the_other_rests(folder: Path) -> None:
    starts = plan([folder, folder], [2])
    async with asyncio.timeout(DEADLINE_SECONDS), running_plan(starts) as workers:
        await workers[0].submit(request(starts, "r", 1900))
        talk = Talk(workers[0])
        await talk.until(tokens=("r", 3))
        assert workers[1].pid is not None
        os.kill(workers[1].pid, signal.SIGKILL)
        async with asyncio.timeout(30):  # by its end, not by the deadline of a step
            await talk.until()
        assert talk.ends == {"r": "WORKER_FAILED"}
        assert talk.final is not None
        assert talk.final.state == peer_pb2.WORKER_STATE_FAILED
        assert "stage 1" in talk.final.error or "peer" in talk.final.error
        assert talk.final.peer_lost
        killed = await final_report(workers[1])
        assert "SIGKILL" in killed.error
        assert not killed.peer_lost
        assert talk.final.resting
        assert [worker.resting for worker in workers] == [True, False]
        assert workers[1].pid is None


async def test_silent_stage_fails_the_plan_at_the_step_deadline(folder: Path) -> None:
    starts = plan([folder, folder], [2], deadline_seconds=2.0)
    # As of a machine that is frozen whole: the daemon of the silent stage does not end it either.
    starts[1].step_deadline_seconds = 60
    async with asyncio.timeout(DEADLINE_SECONDS), running_plan(starts) as workers:
        await workers[0].submit(request(starts, "r", 1900))
        talk = Talk(workers[0])
        await talk.until(tokens=("r", 3))
        pid = workers[1].pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            async with asyncio.timeout(20):  # before any other deadline
                await talk.until()
        finally:
            os.kill(pid, signal.SIGCONT)
        assert talk.final is not None
        assert talk.final.state == peer_pb2.WORKER_STATE_FAILED
        assert "overdue" in talk.final.error or "longer than 2 s" in talk.final.error
        assert talk.final.peer_lost


async def reached(worker: Worker, state: peer_pb2.WorkerState.ValueType) -> peer_pb2.WorkerReport:
    async for event in worker.events():
        if event.WhichOneof("event") == "report" and event.report.state == state:
            return event.report
    raise AssertionError("the worker ended first")


async def test_the_same_addresses_may_come_twice_but_no_others(folder: Path) -> None:
    starts = plan([folder, folder], [2])
    workers = [WorkerProcess() for _ in starts]
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            for worker, start in zip(workers, starts, strict=True):
                await worker.start(start)
            peers = peers_of(starts, [await reached(w, peer_pb2.WORKER_STATE_LOADED) for w in workers])
            for worker in (*workers, *workers):
                await worker.set_peers(peers)
            for worker in workers:
                await reached(worker, peer_pb2.WORKER_STATE_READY)
            peers.epoch_key = bytes(32)
            await workers[1].set_peers(peers)
            failed = await reached(workers[1], peer_pb2.WORKER_STATE_FAILED)
            assert "other addresses came" in failed.error
            assert not failed.peer_lost
            assert (await reached(workers[0], peer_pb2.WORKER_STATE_FAILED)).peer_lost
    finally:
        for worker in workers:
            await worker.stop(5)


async def failure_of(start: lane_pb2.StartStage) -> str:
    worker = WorkerProcess()
    async with asyncio.timeout(DEADLINE_SECONDS):
        await worker.start(start)
        report = await final_report(worker)
        await worker.stop(5)
    assert report.state == peer_pb2.WORKER_STATE_FAILED
    return report.error


async def test_broken_models_and_plans_are_told_in_words(folder: Path, tmp_path: Path) -> None:
    cut_short = tmp_path / "cut-short"
    shutil.copytree(folder, cut_short)
    shard = cut_short / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    looped = write_model(tmp_path / "looped", "nanbeige", num_hidden_layers=4)

    (single,) = plan([cut_short], [])
    abroad = plan([folder, folder], [2])[1]
    abroad.bind_host = "192.0.2.7"
    (backwards,) = plan([folder], [])
    backwards.deployment.layer_count = 9
    expected = {
        "cut short": single,
        "cannot be cut": plan([looped, looped], [2])[0],
        "192.0.2.7": abroad,
        "end at layer 4 of 9": backwards,
    }
    async with asyncio.TaskGroup() as group:
        tasks = {text: group.create_task(failure_of(start)) for text, start in expected.items()}
    for text, task in tasks.items():
        assert text in task.result()


async def test_neighbour_that_never_joins_is_named(folder: Path) -> None:
    """A plan whose tail has died before the peers were told."""
    starts = plan([folder, folder], [2])
    workers = [WorkerProcess(), WorkerProcess()]
    async with asyncio.timeout(DEADLINE_SECONDS):
        reports = []
        for worker, start in zip(workers, starts, strict=True):
            await worker.start(start)
        for worker in workers:
            async for event in worker.events():
                if event.report.state == peer_pb2.WORKER_STATE_LOADED:
                    reports.append(event.report)
                    break
        assert all(report.loaded_bytes == report.total_bytes > 0 for report in reports)
        peers = peers_of(starts, reports)
        peers.epoch.seq += 1
        await workers[0].set_peers(peers)
        assert "another epoch" in (await final_report(workers[0])).error
        await workers[1].stop(5)


def wait_for_end_of(pid: int) -> bool:
    """Whether a process that is not our child ends soon."""
    pidfd = os.pidfd_open(pid)
    try:
        import select  # noqa: PLC0415  beside its only use

        return bool(select.select([pidfd], [], [], 60)[0])
    finally:
        os.close(pidfd)


# A worker whose inference thread never comes back from a call to the system.
HANGING_WORKER = """
import os
from macmesh_daemon.worker import inference, main

def hang(thread):
    thread._milestones.progress(1, 2)
    os.read(os.pipe()[0], 1)

inference.InferenceThread._guarded = hang
main.main()
"""


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="watches a process that is no child")
@pytest.mark.parametrize(
    ("state", "command"),
    [
        pytest.param("LOADED", None, id="idle"),
        pytest.param("LOADING", [sys.executable, "-c", HANGING_WORKER], id="hanging"),
    ],
)
def test_worker_ends_when_its_daemon_is_killed(folder: Path, state: str, command: list[str] | None) -> None:
    script = textwrap.dedent(
        """
        import asyncio, json, sys
        from macmesh.v1 import lane_pb2, peer_pb2
        from macmesh_daemon.supervisor.process import WorkerProcess

        async def main():
            command = json.loads(sys.argv[3])
            worker = WorkerProcess(**({"command": command} if command else {}))
            await worker.start(lane_pb2.StartStage.FromString(bytes.fromhex(sys.argv[1])))
            async for event in worker.events():
                if peer_pb2.WorkerState.Name(event.report.state) == "WORKER_STATE_" + sys.argv[2]:
                    print(worker.pid, flush=True)

        asyncio.run(main())
        """
    )
    (start,) = plan([folder], [])
    daemon = subprocess.Popen(
        [sys.executable, "-c", script, start.SerializeToString().hex(), state, json.dumps(command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert daemon.stdout is not None
    pid = int(daemon.stdout.readline())
    daemon.kill()
    daemon.communicate()
    assert wait_for_end_of(pid)


def test_worker_ends_when_the_connection_closes_before_or_after_the_first_command(folder: Path) -> None:
    (start,) = plan([folder], [])
    command = lane_pb2.WorkerCommand(start=start).SerializeToString()
    for first in (b"", LENGTH.pack(len(command)) + command, b"\xff\xff\xff\xff", b"\x00\x00\x00\x01\xff"):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            # A worker that is given no rings talks over the socket.
            process = subprocess.Popen(
                [sys.executable, "-m", "macmesh_daemon.worker.main", "--fd", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stderr=subprocess.DEVNULL,
            )
            theirs.close()
            ours.sendall(first)
        assert process.wait(60) == 2


def test_worker_without_a_socket_says_who_starts_it() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "macmesh_daemon.worker.main", "--fd", "0"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert "started by macmeshd" in done.stderr


async def test_the_head_tells_what_its_schedule_counted_and_how_it_started(folder: Path) -> None:
    """A prompt that came before is read from what was kept of it, unless that is not wanted."""
    starts = plan([folder, folder], [2])
    told: list[peer_pb2.SchedulerStats] = []
    async with asyncio.timeout(DEADLINE_SECONDS):
        workers = [WorkerProcess(ping_interval_seconds=30) for _ in starts]
        try:
            for worker, start in zip(workers, starts, strict=True):
                await worker.start(start)
            peers = peers_of(starts, [await reached(w, peer_pb2.WORKER_STATE_LOADED) for w in workers])
            for worker in workers:
                await worker.set_peers(peers)
            reports = [await reached(worker, peer_pb2.WORKER_STATE_READY) for worker in workers]
            for report in reports:
                names = [phase.name for phase in report.start_phases]
                assert names == ["import", "load", "warm_up", "connect"]
                assert all(phase.seconds > 0 for phase in report.start_phases)
            talk = Talk(workers[0])
            for name, reuse in (("first", None), ("again", None), ("fresh", False)):
                asked = request(starts, name, 4)
                if reuse is not None:
                    asked.reuse_prefix = reuse
                await workers[0].submit(asked)
                await talk.until(ends=len(talk.ends) + 1)
                await workers[0].ping(100 + len(told))
                async for event in talk.events:
                    if event.WhichOneof("event") == "pong" and event.pong.nonce == 100 + len(told):
                        told.append(event.pong.scheduler)
                        break
        finally:
            for worker in workers:
                await worker.stop(5)
    assert [(one.prompts, one.prefix_hits, one.generated_tokens) for one in told] == [
        (1, 0, 4),
        (2, 1, 8),
        (3, 1, 12),
    ]
    assert told[1].reused_tokens == len(PROMPT) - 1
    assert talk.tokens["first"] == talk.tokens["again"] == talk.tokens["fresh"]
    assert 0 < told[0].cache_bytes[0] <= told[0].cache_budget_bytes[0]
