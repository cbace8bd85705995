"""Runs this node's worker and routes requests to it where it is the head."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from macmesh.reasons import Reason
from macmesh.v1 import inference_pb2, lane_pb2, peer_pb2
from macmesh_daemon.cluster import events
from macmesh_daemon.cluster.messages import (
    Deployment,
    Epoch,
    SetPeersRequest,
    WorkerReport,
    WorkerState,
)
from macmesh_daemon.logs import get_logger
from macmesh_daemon.node.call_errors import CallError, known_reason
from macmesh_daemon.node.codec import from_proto, to_proto
from macmesh_daemon.node.pings import Pings
from macmesh_daemon.node.resting import Process, Resting, RestingPlace, why_replaced
from macmesh_daemon.supervisor.errors import SupervisorError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable
    from pathlib import Path

    from macmesh_daemon.cluster.messages import FetchProgress
    from macmesh_daemon.node.live_credentials import LiveCredentials
    from macmesh_daemon.node.recorder import Recorder
    from macmesh_daemon.node.sync_keeper import SyncKeeper
    from macmesh_daemon.node.verbs_keeper import VerbsKeeper
    from macmesh_daemon.supervisor.interface import Worker, WorkerFactory

_log = get_logger(part="stage host")

#: Longest wait for the worker to take a command; the socket buffer is large, so only a dead worker is slow.
SEND_DEADLINE_SECONDS = 5.0
#: A worker whose epoch ended and that does not end by itself within this is killed.
STOP_DEADLINE_SECONDS = 2.0
#: A worker that outlived its epoch waits this long for a plan that can use what it holds.
REST_SECONDS = 120.0
#: A request that waits gives an empty response this often, so that silence means loss.
SIGN_OF_LIFE_SECONDS = 5.0


@dataclass(eq=False)
class _Hosted:
    worker: Worker
    epoch: Epoch
    deployment: Deployment
    stage_index: int
    process: Process = field(default_factory=Process)
    ends: bool = False
    requests: dict[str, asyncio.Queue[peer_pb2.RunRequestResponse | CallError | None]] = field(
        default_factory=dict
    )
    ready: bool = False
    is_stopping: bool = False
    #: While the weights are brought here, before the worker is started.
    providing: asyncio.Timeout | None = None
    pings: Pings = field(default_factory=Pings)

    def require_wanted(self) -> None:
        if self.is_stopping:
            raise _StoppedError("the stage was taken away before it began")


class StageHost:
    """Owns at most one worker at a time; tells the core what becomes of it.

    Between two epochs the worker's process may rest, with its layers (`resting`), and is given the next stage where it
    can take it up. What cannot be kept is gone before its successor starts.

    Every method must be called on the event loop. Commands for an epoch that is not the hosted one are
    ignored: the worker of an older epoch is already ending.
    """

    def __init__(
        self,
        *,
        factory: WorkerFactory,
        credentials: LiveCredentials,
        provide: Callable[[Deployment, int, Callable[[FetchProgress], None]], Awaitable[Path]],
        bind_host: Callable[[], str],
        host_id: str,
        step_deadline_seconds: float,
        sync: SyncKeeper,
        notify: Callable[[events.Event], None],
        recorder: Recorder,
        tasks: asyncio.TaskGroup,
        rest_seconds: float = REST_SECONDS,
        verbs: VerbsKeeper | None = None,
        os_build: str = "",
    ) -> None:
        self._factory = factory
        self._credentials = credentials
        self._provide = provide
        self._bind_host = bind_host
        self._host_id = host_id
        self._step_deadline_seconds = step_deadline_seconds
        self._sync = sync
        self._verbs = verbs
        self._os_build = os_build
        self._notify = notify
        self._recorder = recorder
        self._tasks = tasks
        self._hosted: _Hosted | None = None
        self._resting = RestingPlace(rest_seconds=rest_seconds, recorder=recorder, tasks=tasks)

    def start(self, epoch: Epoch, deployment: Deployment, stage_index: int) -> None:
        """Give a worker a stage: the one that rests, or a new one. Its reports reach the core as WorkerReported."""
        resting, process = self._resting.choose(deployment)
        worker = resting.worker if resting is not None and process.kind == "kept" else self._factory()
        hosted = self._hosted = _Hosted(worker, epoch, deployment, stage_index, process)
        self._recorder.worker_started(epoch, stage_index)
        self._tasks.create_task(self._run(hosted, resting), name=f"worker of stage {stage_index}")

    def stop(self, epoch: Epoch, deadline_seconds: float, *, keep: bool = False) -> None:
        """End an epoch, and with it its process unless that is to be kept; WorkerStopped follows.

        It comes at once where nothing serves that epoch.
        """
        hosted = self._hosted
        if hosted is None or hosted.epoch != epoch:
            if not keep:
                self.release()
            self._notify(events.WorkerStopped(epoch=epoch))
            return
        hosted.ends |= not keep
        hosted.is_stopping = True
        _interrupt(hosted.providing)
        if keep:
            self._resting.expect(deadline_seconds)
            self._tasks.create_task(hosted.worker.retire(deadline_seconds), name="retire worker")
        else:
            self._tasks.create_task(hosted.worker.stop(deadline_seconds), name="stop worker")

    def release(self) -> None:
        """End the process that rests, where there is one: no plan needs what it holds."""
        if not self._resting.is_empty:
            reason = "no plan of this node needs what it holds"
            self._tasks.create_task(self._resting.end(reason), name="release worker")

    def give_peers(self, request: SetPeersRequest) -> None:
        """Tell the worker where the other stages listen."""
        hosted = self._hosted
        if hosted is not None and hosted.epoch == request.epoch:
            command = lane_pb2.WorkerCommand(peers=to_proto(request))
            self._tasks.create_task(self._send(hosted, command), name="give peers")

    @property
    def is_serving(self) -> bool:
        """Whether the worker may be at work on requests; of one that is not the head, its head's node knows."""
        hosted = self._hosted
        return hosted is not None and hosted.ready and (hosted.stage_index > 0 or bool(hosted.requests))

    async def stats(self, epoch: Epoch, deadline_seconds: float) -> peer_pb2.StageStats:
        """What the worker of this epoch says of its memory and its time, now.

        Raises:
            CallError: there is no such worker, or it gave no figures; see `Pings.ask`.
        """
        hosted = self._ready(epoch)
        try:
            return await hosted.pings.ask(hosted.worker.ping, deadline_seconds)
        except SupervisorError as error:
            raise CallError(Reason.WORKER_FAILED, f"the worker cannot be asked: {error}") from error

    def newest_stats(self, epoch: Epoch) -> peer_pb2.StageStats:
        """The newest figures that the worker of this epoch has given, with their age; it is not asked.

        Raises:
            CallError: there is no such worker, or it gave no figures yet.
        """
        return self._ready(epoch).pings.newest()

    def _ready(self, epoch: Epoch) -> _Hosted:
        hosted = self._hosted
        if hosted is None or hosted.epoch != epoch:
            raise CallError(Reason.EPOCH_CHANGED, f"this node runs no worker of epoch {epoch}; try again")
        if not hosted.ready:
            raise CallError(Reason.NOT_READY, "the worker is still loading; try again shortly")
        return hosted

    def kill_worker(self) -> int | None:
        """Kill the worker as a fault would, for a drill; its process id, None where none runs."""
        hosted = self._hosted
        pid = hosted.worker.pid if hosted is not None else None
        if hosted is not None and pid is not None:
            hosted.worker.kill("a drill asked for it")
        return pid

    async def close(self) -> None:
        """End the worker, whatever it does."""
        if self._hosted is not None:
            self._hosted.ends = self._hosted.is_stopping = True
            _interrupt(self._hosted.providing)
            await self._hosted.worker.stop(STOP_DEADLINE_SECONDS)
        await self._resting.end("the daemon ends")

    async def run_request(
        self, request: peer_pb2.RunRequestRequest
    ) -> AsyncGenerator[peer_pb2.RunRequestResponse, None]:
        """Run a request on the hosted head and yield its tokens; leaving early cancels it.

        Responses with neither token nor end are signs of life of a request that waits.

        Raises:
            CallError: the head does not serve this epoch, refused the request, or was lost.
        """
        hosted = self._serving(request)
        queue: asyncio.Queue[peer_pb2.RunRequestResponse | CallError | None] = asyncio.Queue()
        hosted.requests[request.request_id] = queue
        self._recorder.run_started(request.request_id, hosted.epoch, first=len(request.generated_token_ids))
        ended = False
        how = "cancelled"
        try:
            await self._send(hosted, lane_pb2.WorkerCommand(submit=lane_pb2.SubmitRequest(request=request)))
            while not ended:
                # A request may wait long for a slot. Its end is certain all the same: the worker fails one
                # whose step passes the deadline, and the end of its process fails every request.
                try:
                    async with asyncio.timeout(SIGN_OF_LIFE_SECONDS):
                        item = await queue.get()
                except TimeoutError:
                    yield peer_pb2.RunRequestResponse()
                    continue
                if item is None:
                    how = "failed"
                    raise CallError(
                        Reason.WORKER_FAILED,
                        "the head worker ended while it served the request; try again once the plan is ready",
                    )
                if isinstance(item, CallError):
                    ended, how = True, "failed"
                    raise item
                if item.finish_reason != 0:
                    ended, how = True, "finished"
                yield item
        finally:
            hosted.requests.pop(request.request_id, None)
            self._recorder.run_ended(request.request_id, how)
            if not ended and self._hosted is hosted:
                cancel = lane_pb2.CancelRequest(request_id=request.request_id)
                self._tasks.create_task(
                    self._send(hosted, lane_pb2.WorkerCommand(cancel=cancel)), name="cancel request"
                )

    def _serving(self, request: peer_pb2.RunRequestRequest) -> _Hosted:
        hosted = self._hosted
        wanted = from_proto(request.epoch)
        if hosted is None or hosted.epoch != wanted or hosted.stage_index != 0:
            raise CallError(
                Reason.EPOCH_CHANGED,
                "this node is not the head of the epoch that the request names; the plan has changed, try again",
            )
        if not hosted.ready:
            raise CallError(Reason.NOT_READY, "the model is still loading; try again shortly")
        if request.request_id in hosted.requests:
            raise CallError(
                Reason.INVALID_ARGUMENT,
                f"run {request.request_id} is already running",
            )
        return hosted

    async def _send(self, hosted: _Hosted, command: lane_pb2.WorkerCommand) -> None:
        if self._hosted is not hosted:
            return  # its epoch has ended, and its process may serve another one
        try:
            async with asyncio.timeout(SEND_DEADLINE_SECONDS):
                await hosted.worker.send(command)
        except (OSError, TimeoutError, SupervisorError) as error:
            # The end of the process is reported by its event stream; here it is only noted.
            _log.warning(
                "worker did not take command", command=command.WhichOneof("command"), error=str(error)
            )

    async def _run(self, hosted: _Hosted, resting: Resting | None) -> None:
        failure = ""
        rests = False
        sync_mode, deployment = "", hosted.deployment
        try:
            sync_mode = await self._begin(hosted, resting)
            self._recorder.worker_runs(
                hosted.epoch,
                hosted.stage_index,
                hosted.worker.pid,
                hosted.process.kind,
                hosted.process.reason,
            )
            async for event in hosted.worker.events():
                self._take(hosted, event)
            rests = hosted.worker.resting and not hosted.ends
        except _StoppedError as stopped:
            _log.info("worker not started", epoch=str(hosted.epoch), reason=str(stopped))
            if resting is not None and resting.worker is hosted.worker:
                # It has not been asked to take the stage up: it rests as before.
                rests, deployment, sync_mode = (
                    hosted.worker.resting and not hosted.ends,
                    resting.deployment,
                    resting.sync_mode,
                )
        except Exception as error:  # noqa: BLE001  whatever ends a worker must reach the core as a report
            failure = f"{type(error).__name__}: {error}"
        finally:
            if self._hosted is hosted:
                self._hosted = None
            for queue in hosted.requests.values():
                queue.put_nowait(None)
            hosted.pings.end()
            if rests:
                self._resting.lay(Resting(hosted.worker, hosted.epoch, deployment, sync_mode))
            else:
                with contextlib.suppress(Exception):
                    await hosted.worker.stop(STOP_DEADLINE_SECONDS)
                self._recorder.worker_stopped(hosted.epoch)
        if failure:
            _log.error("worker could not be run", epoch=str(hosted.epoch), error=failure)
            self._tell(
                WorkerReport(
                    epoch=hosted.epoch,
                    stage_index=hosted.stage_index,
                    state=WorkerState.FAILED,
                    error=failure,
                )
            )
        self._notify(events.WorkerStopped(epoch=hosted.epoch))

    async def _begin(self, hosted: _Hosted, resting: Resting | None) -> str:
        """Hand the worker its stage, once what cannot take it up is gone; returns the synchronisation in force."""
        is_kept = False
        try:
            start = await self._start_message(hosted, hosted.deployment)
            hosted.require_wanted()
            if resting is not None and resting.worker is hosted.worker:
                reason = why_replaced(resting, hosted.deployment, start.sync_mode)
                is_kept = not reason
                if reason:
                    hosted.process = Process("replaced", reason)
                    hosted.worker = self._factory()
        except _StoppedError:
            is_kept = resting is not None and resting.worker is hosted.worker and not hosted.ends
            raise
        finally:
            if resting is not None and not is_kept:
                await self._resting.dismiss(
                    resting, hosted.process.reason or "its next stage cannot be started"
                )
        if is_kept:
            await hosted.worker.restart(start)
            return start.sync_mode
        await self._resting.settled()
        hosted.require_wanted()
        await hosted.worker.start(start)
        return start.sync_mode

    def _tell(self, report: WorkerReport) -> None:
        self._recorder.worker_reported(report)
        self._notify(events.WorkerReported(report=report))

    async def _start_message(self, hosted: _Hosted, deployment: Deployment) -> lane_pb2.StartStage:
        path = await self._provided(hosted, deployment)
        sync = await self._sync.decide(deployment.sync_mode)
        return lane_pb2.StartStage(
            epoch=to_proto(hosted.epoch),
            deployment=to_proto(deployment),
            stage_index=hosted.stage_index,
            model_path=str(path),
            bind_host=self._bind_host(),
            host_id=self._host_id,
            ca_pem=self._credentials.current.ca_pem,
            certificate_pem=self._credentials.current.cert_pem,
            key_pem=self._credentials.current.key_pem,
            step_deadline_seconds=self._step_deadline_seconds,
            sync_mode=sync.mode,
            sync_reason=sync.reason,
            verbs_library=self._verbs.library if self._verbs is not None else "",
            os_build=self._os_build,
        )

    async def _provided(self, hosted: _Hosted, deployment: Deployment) -> Path:
        """The folder that the worker loads from, once what it needs is there; the core is told how it goes."""

        def told(fetch: FetchProgress) -> None:
            here = fetch.disk_bytes + fetch.peer_bytes + fetch.hub_bytes
            self._tell(
                WorkerReport(
                    epoch=hosted.epoch,
                    stage_index=hosted.stage_index,
                    state=WorkerState.LOADING,
                    loaded_bytes=here,
                    total_bytes=fetch.total_bytes,
                    fetch=fetch,
                )
            )

        hosted.require_wanted()
        scope = asyncio.timeout(None)
        try:
            async with scope:
                hosted.providing = scope
                return await self._provide(deployment, hosted.stage_index, told)
        except TimeoutError:
            if scope.expired():
                raise _StoppedError("the stage was taken away while its weights were fetched") from None
            raise
        finally:
            hosted.providing = None

    def _take(self, hosted: _Hosted, event: lane_pb2.WorkerEvent) -> None:
        match event.WhichOneof("event"):
            case "report":
                report = dataclasses.replace(
                    from_proto(event.report),
                    process=hosted.process.kind,
                    process_reason=hosted.process.reason,
                )
                hosted.ready = report.state is WorkerState.READY
                if report.hung and report.sync_mode == "fast":
                    self._tasks.create_task(self._sync.note_hang(report.error), name="note hang")
                self._tell(report)
            case "rdma_use" if self._verbs is not None:
                node_ids = tuple(stage.node_id for stage in hosted.deployment.stages)
                note = self._verbs.note(event.rdma_use, node_ids)
                self._tasks.create_task(note, name="note RDMA use")
            case "pong":
                hosted.pings.take(event.pong)
            case "progress":
                self._deliver(hosted, event.progress.request_id, event.progress.response)
            case "waiting":
                told = event.waiting
                waiting = inference_pb2.Waiting(
                    position=told.position,
                    estimate_seconds=told.estimate_seconds if told.HasField("estimate_seconds") else None,
                )
                response = peer_pb2.RunRequestResponse(waiting=waiting)
                self._deliver(hosted, told.request_id, response)
            case "failed":
                failed = event.failed
                self._deliver(hosted, failed.request_id, request_error(failed.reason, failed.message))

    @staticmethod
    def _deliver(hosted: _Hosted, request_id: str, item: peer_pb2.RunRequestResponse | CallError) -> None:
        queue = hosted.requests.get(request_id)
        if queue is not None:
            queue.put_nowait(item)


class _StoppedError(Exception):
    """The stage was taken away before its worker was started."""


def _interrupt(scope: asyncio.Timeout | None) -> None:
    if scope is not None:
        scope.reschedule(asyncio.get_running_loop().time())


def request_error(reason: str, message: str) -> CallError:
    """The error of a request that a worker refused or lost."""
    return CallError(known_reason(reason), message)
