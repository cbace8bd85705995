"""A worker without a process or a model, held to the same contract as the real one."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence

from macmesh.v1 import inference_pb2, lane_pb2, peer_pb2, types_pb2
from macmesh_daemon.supervisor.closing import OpenBusiness
from macmesh_daemon.supervisor.errors import LocalWorkerStateError, RemoteWorkerEndedError
from macmesh_daemon.supervisor.interface import Worker, require_start

_ports = itertools.count(20_000)


def fake_token(prompt: Sequence[int], index: int) -> int:
    """The token that a `FakeWorker` generates at a position: printable ASCII, made of the prompt alone."""
    return 33 + (sum(prompt) * 7 + index * index * 13 + index) % 94


class FakeWorker(Worker):
    """Loads nothing, listens nowhere and generates `fake_token`, one token in each turn of the event loop.

    Args:
        total_bytes: weights that it claims to load.
        load_error: makes loading fail with this text.
        gate: while given and not set, no token is generated; so a test can act in the middle of a request.
        waiting: positions that it tells of every request before its first token; no estimate with the first.
        pid: process id that it claims.
        can_rest: False ends with the first epoch, as a process does that does not come to rest in time.
    """

    def __init__(
        self,
        *,
        total_bytes: int = 1_000_000,
        load_error: str = "",
        gate: asyncio.Event | None = None,
        waiting: Sequence[int] = (),
        pid: int = 4_000_000,
        can_rest: bool = True,
    ) -> None:
        self._total_bytes = total_bytes
        self._load_error = load_error
        self._gate = gate
        self._waiting = tuple(waiting)
        self._claimed_pid = pid
        self._can_rest = can_rest
        self._resting = False
        self._held = range(0)
        self._business = OpenBusiness()
        self._events: asyncio.Queue[lane_pb2.WorkerEvent | None] = asyncio.Queue()
        self._start: lane_pb2.StartStage | None = None
        self._running: dict[str, asyncio.Task[None]] = {}
        self._steps = 0
        self._kept_bytes = 0
        self._ended = False
        self.commands: list[lane_pb2.WorkerCommand] = []
        """What it was told after its start, for tests to look at."""

    @property
    def pid(self) -> int | None:
        """The claimed id while it runs."""
        return self._claimed_pid if self._start is not None and not self._ended else None

    @property
    def started_with(self) -> lane_pb2.StartStage | None:
        """What it was started with."""
        return self._start

    async def start(self, start: lane_pb2.StartStage) -> None:
        """See `Worker.start`."""
        if self._start is not None or self._ended:
            raise LocalWorkerStateError("a worker is started once; make a new one")
        self._begin(start)

    async def restart(self, start: lane_pb2.StartStage) -> None:
        """See `Worker.restart`."""
        if self._ended:
            raise RemoteWorkerEndedError("the worker has ended while it rested; start a new one")
        if not self._resting:
            raise LocalWorkerStateError("the worker does not rest; retire() it first")
        self._resting = False
        self._business = OpenBusiness()
        self._begin(start)

    @property
    def epoch(self) -> types_pb2.Epoch:
        """The epoch that it serves, or served last."""
        return self._business.epoch

    @property
    def resting(self) -> bool:
        """See `Worker.resting`."""
        return self._resting and not self._ended

    async def retire(self, deadline_seconds: float) -> None:  # noqa: ARG002  a fake's epoch ends at once
        """See `Worker.retire`."""
        if self._ended or self._resting:
            return
        self._business.note_stop()
        if self._start is None or not self._can_rest:
            self._end("")
        else:
            self._end_epoch(peer_pb2.WorkerReport(state=peer_pb2.WORKER_STATE_STOPPED))

    def lose_peer(self, error: str = "stage 1 is lost") -> None:
        """Ends its epoch as a worker does that lost another stage: it rests where it can."""
        if self._ended or self._resting:
            return
        if not self._can_rest:
            self._end(error)
            return
        report = peer_pb2.WorkerReport(state=peer_pb2.WORKER_STATE_FAILED, error=error, peer_lost=True)
        self._end_epoch(report)

    def _begin(self, start: lane_pb2.StartStage) -> None:
        self._start = start
        self._business.note_start(start)
        layers = range(0)
        if start.stage_index < len(start.deployment.stages):
            stage = start.deployment.stages[start.stage_index]
            layers = range(stage.first_layer, stage.end_layer)
        common = len(set(layers) & set(self._held))
        self._kept_bytes = self._total_bytes * common // len(layers) if layers else 0
        self._held = layers
        self._report(peer_pb2.WORKER_STATE_STARTING)
        self._report(peer_pb2.WORKER_STATE_LOADING, loaded_bytes=self._kept_bytes)
        if self._load_error:
            self._end(self._load_error)
            return
        half_way = (self._kept_bytes + self._total_bytes) // 2
        self._report(peer_pb2.WORKER_STATE_LOADING, loaded_bytes=half_way)
        self._report(
            peer_pb2.WORKER_STATE_LOADED,
            loaded_bytes=self._total_bytes,
            control_address=f"{start.bind_host or '127.0.0.1'}:{next(_ports)}",
            tensor_address=f"{start.bind_host or '127.0.0.1'}:{next(_ports)}",
        )

    async def send(self, command: lane_pb2.WorkerCommand) -> None:
        """See `Worker.send`."""
        require_start(command)
        if self._ended or self._resting:
            raise RemoteWorkerEndedError("the worker has ended; start a new one")
        if self._start is None:
            raise LocalWorkerStateError("the worker is not started; call start() first")
        self.commands.append(command)
        self._business.note_command(command)
        match command.WhichOneof("command"):
            case "peers":
                self._report(peer_pb2.WORKER_STATE_READY, loaded_bytes=self._total_bytes)
            case "submit":
                self._submit(command.submit.request)
            case "cancel":
                self._cancel(command.cancel.request_id)
            case "ping":
                self._tell(lane_pb2.WorkerEvent(pong=self._pong(command.ping.nonce)))
            case "stop":
                self._end("")

    async def events(self) -> AsyncIterator[lane_pb2.WorkerEvent]:
        """See `Worker.events`."""
        while (event := await self._events.get()) is not None:
            yield event

    async def stop(self, deadline_seconds: float) -> None:  # noqa: ARG002  a fake ends at once
        """See `Worker.stop`."""
        if self._ended:
            return
        self._business.note_stop()
        self._end("")

    def kill(self, reason: str) -> None:
        """See `Worker.kill`."""
        if self._start is not None:
            self.die(f"the worker was killed by SIGKILL because {reason}")

    def die(self, how: str = "the worker was killed by SIGKILL") -> None:
        """Ends as a killed process does."""
        if not self._ended:
            self._end(how)

    def _submit(self, request: peer_pb2.RunRequestRequest) -> None:
        assert self._start is not None  # noqa: S101  send() has checked it
        if self._start.stage_index != 0:
            self._fail(request.request_id, "EPOCH_CHANGED", "only the head takes requests")
            return
        if request.epoch != self._start.epoch:
            self._fail(request.request_id, "EPOCH_CHANGED", "the request was made for another plan")
            return
        context = self._start.deployment.context_tokens
        if context and len(request.prompt_token_ids) + request.max_tokens > context:
            self._fail(
                request.request_id,
                "CONTEXT_LENGTH_EXCEEDED",
                f"{len(request.prompt_token_ids)} prompt tokens and {request.max_tokens} new ones are more "
                f"than the {context} that the plan guarantees",
            )
            return
        task = asyncio.create_task(self._generate(request), name=f"fake-request-{request.request_id}")
        self._running[request.request_id] = task
        task.add_done_callback(lambda _: self._running.pop(request.request_id, None))

    async def _generate(self, request: peer_pb2.RunRequestRequest) -> None:
        prompt = list(request.prompt_token_ids)
        context = self._start.deployment.context_tokens if self._start is not None else 0
        count = request.max_tokens or max(1, context - len(prompt))
        for told, position in enumerate(self._waiting):
            waiting = lane_pb2.RequestWaiting(
                request_id=request.request_id,
                position=position,
                estimate_seconds=1.5 * position if told else None,
            )
            self._tell(lane_pb2.WorkerEvent(waiting=waiting))
        for index in range(len(request.generated_token_ids), count):
            if self._gate is not None:
                await self._gate.wait()
            await asyncio.sleep(0)
            token = fake_token(prompt, index)
            finish = inference_pb2.FINISH_REASON_UNSPECIFIED
            if token in request.stop_token_ids:
                finish = inference_pb2.FINISH_REASON_STOP
            elif index == count - 1:
                finish = inference_pb2.FINISH_REASON_LENGTH
            self._steps += 1
            response = peer_pb2.RunRequestResponse(
                index=index, token_id=token, logprob=-0.5, has_token=True, finish_reason=finish
            )
            self._progress(request.request_id, response)
            if finish != inference_pb2.FINISH_REASON_UNSPECIFIED:
                return

    def _pong(self, nonce: int) -> lane_pb2.PongWorker:
        """Memory of the weights alone, a made-up time for each step, and at the head what runs."""
        steps = self._steps
        head = self._start is not None and self._start.stage_index == 0
        counted = peer_pb2.SchedulerStats(running=len(self._running), steps=steps, generated_tokens=steps)
        return lane_pb2.PongWorker(
            nonce=nonce,
            steps=steps,
            active_memory_bytes=self._total_bytes,
            peak_memory_bytes=self._total_bytes,
            times=lane_pb2.StepTimes(
                describe=lane_pb2.PhaseTime(seconds=steps * 0.0003, count=steps),
                wait=lane_pb2.PhaseTime(seconds=steps * 0.001, count=steps),
                sample=lane_pb2.PhaseTime(seconds=steps * 0.0001, count=steps),
            ),
            scheduler=counted if head else None,
        )

    def _cancel(self, request_id: str) -> None:
        task = self._running.pop(request_id, None)
        if task is not None:
            task.cancel()
            self._progress(
                request_id,
                peer_pb2.RunRequestResponse(finish_reason=inference_pb2.FINISH_REASON_CANCELLED),
            )

    def _progress(self, request_id: str, response: peer_pb2.RunRequestResponse) -> None:
        self._tell(
            lane_pb2.WorkerEvent(progress=lane_pb2.RequestProgress(request_id=request_id, response=response))
        )

    def _fail(self, request_id: str, reason: str, message: str) -> None:
        self._tell(
            lane_pb2.WorkerEvent(
                failed=lane_pb2.RequestFailed(request_id=request_id, reason=reason, message=message)
            )
        )

    def _report(
        self,
        state: peer_pb2.WorkerState.ValueType,
        *,
        loaded_bytes: int = 0,
        control_address: str = "",
        tensor_address: str = "",
    ) -> None:
        assert self._start is not None  # noqa: S101  nothing is reported before the start
        self._tell(
            lane_pb2.WorkerEvent(
                report=peer_pb2.WorkerReport(
                    epoch=self._start.epoch,
                    stage_index=self._start.stage_index,
                    state=state,
                    loaded_bytes=loaded_bytes,
                    total_bytes=self._total_bytes,
                    control_address=control_address,
                    tensor_address=tensor_address,
                    kept_bytes=self._kept_bytes,
                )
            )
        )

    def _tell(self, event: lane_pb2.WorkerEvent) -> None:
        if self._business.passes(event):
            self._events.put_nowait(event)

    def _end_epoch(self, report: peer_pb2.WorkerReport) -> None:
        report.resting = True
        report.epoch.CopyFrom(self._business.epoch)
        self._business.passes(lane_pb2.WorkerEvent(report=report))
        self._resting = True
        self._close("")

    def _end(self, how: str) -> None:
        self._ended = True
        if not self._resting:
            self._close(how)

    def _close(self, how: str) -> None:
        for task in self._running.values():
            task.cancel()
        self._running.clear()
        for event in self._business.close(how):
            self._events.put_nowait(event)
        self._events.put_nowait(None)
