"""One epoch in a worker's event loop: its commands, its life from start to end, every deadline on the way."""

import asyncio
import contextlib
import dataclasses
import faulthandler
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import structlog

from macmesh.v1 import lane_pb2, peer_pb2, types_pb2
from macmesh_daemon.worker.checks import JACCL, VERBS, check_start, is_tensor_parallel
from macmesh_daemon.worker.control_lane import ControlLane
from macmesh_daemon.worker.errors import LocalStartError, RemoteNeighbourError, WorkerError
from macmesh_daemon.worker.inference import InferenceThread, Milestones
from macmesh_daemon.worker.loops import Outlets
from macmesh_daemon.worker.parts import Parts
from macmesh_daemon.worker.rdma_use import RdmaUse
from macmesh_daemon.worker.resident import ResidentThread
from macmesh_rdma.errors import RemotePeerLostError, TransportError
from macmesh_rdma.jaccl.exchange import RingExchange
from macmesh_rdma.joining.endpoint import Endpoint
from macmesh_rdma.joining.listener import Listener
from macmesh_rdma.messages.port import MessagePort
from macmesh_rdma.messages.progress_page import ProgressWriter
from macmesh_rdma.sync.mode import VARIABLE as SYNC_VARIABLE

if TYPE_CHECKING:
    from macmesh_daemon.worker.collectives import Collectives, StockCollectives
    from macmesh_daemon.worker.runner import Stage
    from macmesh_daemon.worker.transfers import Transfers
    from macmesh_daemon.worker.warm_up import WarmUp
    from macmesh_rdma.lane import TensorLane
    from macmesh_rdma.stock_lane import StockLane

JOIN_DEADLINE_SECONDS = 8.0
"""For the control lane, and again for the tensor lane. Both fit into the coordinator's patience with stages that
connect, so that a stage that waits in vain says for whom before the plan is made anew without a word."""
EXCHANGE_DEADLINE_SECONDS = 5.0
"""For the event loop to take one message of the set-up."""
LEAVE_DEADLINE_SECONDS = 5.0
"""For the last words. After that the process ends without them."""
FREE_DEADLINE_SECONDS = 2.0
"""For the inference thread to free RDMA devices before the process ends. After that the system takes them."""
REST_DEADLINE_SECONDS = 5.0
"""For the inference thread to leave an epoch that lost a stage. After that the process ends, as it cannot rest."""

log = structlog.get_logger(__name__)


class WorkerShell:
    """Runs one stage from its start command to the end of its epoch.

    The process ends with the epoch, but for two cases in which it rests with its weights: the daemon retires the epoch,
    or another stage was lost. Then nothing of the epoch is left: no lane, no cache, no task, no byte on its way.

    Args:
        start: the command that began the epoch.
        port: to the daemon.
        thread: for the inference.
        parts: of the engine.
        progress: where the inference thread shows what it does.
        jaccl_init: stands in for `mlx.core.distributed.init` where the plan uses jaccl.
    """

    def __init__(
        self,
        start: lane_pb2.StartStage,
        port: MessagePort,
        *,
        thread: ResidentThread,
        parts: Parts,
        progress: ProgressWriter | None = None,
        jaccl_init: Callable[..., Any] | None = None,
    ) -> None:
        self._start = start
        self._port = port
        self._loop = asyncio.get_running_loop()
        self._stages = len(start.deployment.stages)
        self._loaded = asyncio.Event()
        self._end: asyncio.Future[str] = self._loop.create_future()
        self._failed_stage = start.stage_index
        self._peer_lost = False
        self._peers: peer_pb2.SetPeersRequest | None = None
        self._loaded_bytes = (0, 0)
        self._control: ControlLane | None = None
        self._control_address = ""
        self._listener: Listener | None = None
        self._jaccl_init = jaccl_init
        self._exchange: RingExchange | None = None
        self._jaccl: StockLane | StockCollectives | None = None
        self._transport_failure = ""
        self._rdma = RdmaUse(is_used=start.deployment.transport == VERBS, tell=self._tell)
        self._links: list[peer_pb2.LinkStatus] = []
        self._transfers = "", ""
        self._phases: list[peer_pb2.StartPhase] = []
        self._kept_bytes: int | None = None
        self._retired = False
        self._stop_asked = False
        self._leaving = False
        self._neighbours_told = False
        self._left = asyncio.Event()
        self._join_task: asyncio.Task[None] | None = None
        self._group: asyncio.TaskGroup | None = None
        self._inference = InferenceThread(thread, start, self._outlets(), self._milestones(), parts, progress)

    @property
    def leaving(self) -> bool:
        """Whether the process says its last words, and closes its port."""
        return self._leaving

    async def run(self) -> None:
        """Runs until the epoch ends. Returns where the process rests then, and ends it otherwise."""
        self._report(peer_pb2.WORKER_STATE_STARTING)
        async with asyncio.TaskGroup() as group:
            self._group = group
            try:
                await self._begin(group)
            except (WorkerError, TransportError) as error:
                self._fail(str(error))
            reason = await self._end
            if not (self._may_rest and await self._come_to_rest(reason) and self._may_rest):
                await self._leave(reason)
            if self._join_task is not None:
                self._join_task.cancel()
        # All tasks of the epoch have ended: this is its last word.
        if reason:
            log.warning("stage rests", stage=self._start.stage_index, reason=reason)
            self._report(peer_pb2.WORKER_STATE_FAILED, error=self._told_reason(reason), resting=True)
        else:
            log.info("stage rests", stage=self._start.stage_index)
            self._report(peer_pb2.WORKER_STATE_STOPPED, resting=True)

    def take(self, command: lane_pb2.WorkerCommand) -> None:
        """Follows a command of the daemon."""
        match command.WhichOneof("command"):
            case "peers":
                self._take_peers(command.peers)
            case "submit":
                self._inference.put(command.submit)
            case "cancel":
                self._inference.put(command.cancel)
            case "ping":
                self._inference.ask(command.ping)
            case "retire" if command.retire.epoch == self._start.epoch:
                if not self._end.done():
                    self._retired = True
                self._finish("")
            case "retire":
                pass  # it came too late for the epoch that it names
            case "stop":
                self._stop_asked = True
                self._finish("")
            case _:
                self._fail("the daemon sent a second start command")

    async def _begin(self, group: asyncio.TaskGroup) -> None:
        start = self._start
        check_start(start)
        fast = "1" if start.sync_mode == "fast" else "0"
        if "mlx.core" in sys.modules and os.environ.get(SYNC_VARIABLE, "0") != fast:
            raise LocalStartError(
                "mlx is imported with another synchronisation; this needs a process of its own"
            )
        os.environ[SYNC_VARIABLE] = fast
        if self._stages > 1:
            self._control = ControlLane(
                start, on_message=self._on_lane_message, on_lost=self._lose_peer, on_stranger=_tell_stranger
            )
            self._control_address = await self._control.bind(group)
            if start.deployment.transport == JACCL:
                self._exchange = RingExchange(start.stage_index, self._stages, self._send_exchange)
            else:
                self._listener = Listener(start.bind_host, host_id=start.host_id, on_stranger=_tell_stranger)
        stage = start.deployment.stages[start.stage_index]
        log.info("stage starts", stage=start.stage_index, layers=f"{stage.first_layer}-{stage.end_layer - 1}")
        self._inference.start()

    def _take_peers(self, peers: peer_pb2.SetPeersRequest) -> None:
        """Joins the other stages. The same addresses may come twice: an answer may have been lost."""
        if self._end.done() or self._group is None or _numbers(peers.epoch) < _numbers(self._start.epoch):
            return  # it came too late for its epoch
        if self._peers is None:
            self._peers = peers
            log.info("the other stages are known", stage=self._start.stage_index)
            self._join_task = self._group.create_task(self._join(peers), name="join")
        elif peers != self._peers:
            self._fail("other addresses came while the stages were joining; they must start anew to meet")

    async def _join(self, peers: peer_pb2.SetPeersRequest) -> None:
        try:
            await self._loaded.wait()  # they are told of each other once all have loaded
            async with asyncio.timeout(JOIN_DEADLINE_SECONDS):
                await self._join_lanes(peers)
        except TimeoutError:
            missing = self._control.missing if self._control is not None else ""
            self._lose_peer(f"not all stages were connected within {JOIN_DEADLINE_SECONDS:g} s: {missing}")
        except RemoteNeighbourError as error:
            self._lose_peer(str(error))
        except (WorkerError, TransportError) as error:
            self._fail(str(error))

    async def _join_lanes(self, peers: peer_pb2.SetPeersRequest) -> None:
        if self._control is None:
            self._inference.open_lane(lambda _stage: None)
            return
        if peers.epoch != self._start.epoch or not peers.epoch_key:
            raise LocalStartError("the peers' addresses are of another epoch, or come without its key")
        if sorted(peer.stage_index for peer in peers.peers) != list(range(self._stages)):
            raise LocalStartError(f"addresses came for {len(peers.peers)} stages of {self._stages}")
        await self._control.join(peers)
        log.info("control lane stands", stage=self._start.stage_index)
        exchange = self._exchange
        if exchange is not None:
            self._inference.open_lane(lambda _stage: self._open_jaccl(exchange))
            return
        endpoints = [
            Endpoint.decode(peer.tensor_address) for peer in sorted(peers.peers, key=lambda p: p.stage_index)
        ]
        key = peers.epoch_key
        if is_tensor_parallel(self._start.deployment):
            self._inference.open_lane(lambda _: self._open_group(endpoints, key))
        else:
            self._inference.open_lane(lambda stage: self._open_lane(endpoints, key, stage))

    def _open_group(self, endpoints: list[Endpoint], key: bytes) -> "Collectives":
        """Runs on the inference thread."""
        from macmesh_daemon.worker.collectives import GroupCollectives  # noqa: PLC0415  imports mlx
        from macmesh_daemon.worker.tensor_group import open_tensor_group  # noqa: PLC0415  same

        if self._listener is None:
            raise LocalStartError("nothing listens for the other ranks")
        with self._setting_up():
            group, self._links = open_tensor_group(
                self._start, self._listener, endpoints, key, JOIN_DEADLINE_SECONDS
            )
        return GroupCollectives(self._rdma.follow(group))

    def _open_lane(self, endpoints: list[Endpoint], key: bytes, stage: "Stage") -> "Transfers":
        """Runs on the inference thread."""
        from macmesh_daemon.worker.tensor_lane import (  # noqa: PLC0415  imports mlx
            link_statuses,
            open_stages_group,
            stage_transfers,
        )

        if self._listener is None:
            raise LocalStartError("nothing listens for the tensor lane")
        with self._setting_up():
            group = open_stages_group(self._start, self._listener, endpoints, key, JOIN_DEADLINE_SECONDS)
        self._rdma.follow(group)
        self._links = link_statuses(group)
        transfers, choice = stage_transfers(
            self._start, group, stage, self._outlets().result, EXCHANGE_DEADLINE_SECONDS
        )
        self._transfers = choice.name, choice.reason
        log.info("transfers chosen", transfers=choice.name, reason=choice.reason)
        return transfers

    @contextlib.contextmanager
    def _setting_up(self) -> Iterator[None]:
        """Is entered while links are made. What ends that may be put down to the plan's transport."""
        try:
            with self._rdma.setting_up():
                yield
        except TransportError:
            # A stage that is lost breaks the control lane first: then nothing is known about the transport.
            if not self._end.done():
                self._transport_failure = self._rdma.failure
            raise

    def _open_jaccl(self, exchange: RingExchange) -> "Transfers | Collectives":
        """Runs on the inference thread."""
        from macmesh_daemon.worker.jaccl_lane import jaccl_statuses, open_stages_jaccl  # noqa: PLC0415  imports mlx

        on_stall = self._soon(self._fail_transport)
        way: Transfers | Collectives
        try:
            if is_tensor_parallel(self._start.deployment):
                from macmesh_daemon.worker.tensor_group import open_tensor_jaccl  # noqa: PLC0415  imports mlx

                way = self._jaccl = open_tensor_jaccl(
                    self._start, exchange, on_stall=on_stall, init=self._jaccl_init
                )
            else:
                lane = self._jaccl = open_stages_jaccl(
                    self._start, exchange, on_stall=on_stall, init=self._jaccl_init
                )
                way = self._over(lane)
                self._transfers = "host", "not in the graph: jaccl takes one message after the other"
        except TransportError as error:
            # A stage that is lost breaks the control lane first: then nothing is known about the transport.
            if not self._end.done():
                self._transport_failure = str(error)
            raise
        self._links = jaccl_statuses(self._start)
        return way

    def _over(self, lane: "TensorLane") -> "Transfers":
        from macmesh_daemon.worker.transfers import LaneTransfers  # noqa: PLC0415  imports mlx

        outlets = self._outlets()
        return LaneTransfers(
            lane,
            announced=self._inference.announced,
            announce=outlets.payload,
            result=outlets.result,
            deadline_seconds=self._start.step_deadline_seconds,
        )

    def _on_lane_message(self, stage: int, message: lane_pb2.LaneMessage) -> None:
        match message.WhichOneof("message"):
            case "step":
                # Forwarded at once, so that no stage learns of a step only when the one before has computed it.
                if self._control is not None and 0 < self._start.stage_index < self._stages - 1:
                    self._control.send_down(self._control.encode(step=message.step))
                self._inference.put(message.step)
            case "result":
                self._inference.put(message.result)
            case "payload":
                self._inference.announced.put(message.payload)
            case "exchange" if self._exchange is not None:
                self._exchange.deliver(message.exchange)
            case "failed":
                if not self._end.done():
                    self._failed_stage = message.failed.stage_index
                self._lose_peer(message.failed.message)
            case kind:
                self._fail(f"stage {stage} sent {kind} after its hello")

    def _fail(self, reason: str) -> None:
        self._finish(reason or "no reason was given")

    def _lose_peer(self, reason: str) -> None:
        """Ends as `_fail` does, and says that this stage is not to blame."""
        if not self._end.done():
            self._peer_lost = True
        self._fail(reason)

    def _fail_transport(self, reason: str) -> None:
        """Ends as `_fail` does, and says that the plan's transport is to blame: a wait in it did not end."""
        if not self._end.done():
            self._transport_failure = reason
        self._fail(reason)

    def _lose_peer_in_lane(self, reason: str) -> None:
        self._rdma.look()
        if self._rdma.failure and not self._end.done():
            self._transport_failure = self._rdma.failure
        if self._jaccl is not None and self._jaccl.broken and not self._end.done():
            self._transport_failure = reason
        self._lose_peer(reason)

    def _finish(self, reason: str) -> None:
        if not self._end.done():
            self._end.set_result(reason)
            if self._exchange is not None:
                self._exchange.fail(reason or "this stage ends")

    @property
    def _may_rest(self) -> bool:
        """Whether the process may outlive the epoch.

        MLX's own backends are set up once in a process, and a part of every layer is of no use to another plan.
        """
        deployment = self._start.deployment
        is_bound = deployment.transport == JACCL or is_tensor_parallel(deployment)
        if (is_bound and self._stages > 1) or self._stop_asked:
            return False
        return self._retired or (self._peer_lost and not self._transport_failure)

    async def _come_to_rest(self, reason: str) -> bool:
        """Ends everything of the epoch in this process; False where a wait of the inference thread does not end."""
        await self._part(reason)
        if self._listener is not None:
            await asyncio.to_thread(self._listener.close)
        if not await self._leave_lanes(reason, REST_DEADLINE_SECONDS):
            log.warning("stage cannot rest", stage=self._start.stage_index, seconds=REST_DEADLINE_SECONDS)
            return False
        return True

    async def _leave_lanes(self, reason: str, deadline_seconds: float) -> bool:
        """Lets the inference thread give up all of the epoch; False where a wait of it does not end."""
        self._inference.leave(reason or "the epoch ends")
        try:
            async with asyncio.timeout(deadline_seconds):
                await self._left.wait()
        except TimeoutError:
            return False
        await asyncio.to_thread(self._rdma.close)
        return True

    async def _part(self, reason: str) -> None:
        """Tells the neighbours why, and ends the control lane."""
        if self._control is None or self._neighbours_told:
            return
        self._neighbours_told = True
        if reason:
            failed = lane_pb2.StageFailed(stage_index=self._failed_stage, message=reason)
            await self._control.tell_failure(failed)
        await self._control.close()

    def _told_reason(self, reason: str) -> str:
        own = self._failed_stage == self._start.stage_index
        return reason if own else f"stage {self._failed_stage} failed: {reason}"

    async def _leave(self, reason: str) -> NoReturn:
        """Says the last words and ends the process; waits in native code may go on in other threads."""
        self._leaving = True
        faulthandler.dump_traceback_later(LEAVE_DEADLINE_SECONDS, exit=True, file=sys.stderr)
        if self._start.deployment.transport == VERBS:
            # Queue pairs that the system takes from a process that is gone are not given back in order.
            await self._part(reason)
            await self._leave_lanes(reason, FREE_DEADLINE_SECONDS)
        if reason:
            log.error("stage failed", stage=self._failed_stage, reason=reason)
            self._report(peer_pb2.WORKER_STATE_FAILED, error=self._told_reason(reason))
        else:
            log.info("stage stops", stage=self._start.stage_index)
            self._report(peer_pb2.WORKER_STATE_STOPPED)
        with contextlib.suppress(TransportError):
            await self._port.flush()
        await self._part(reason)
        self._port.close()
        if self._listener is not None:
            self._listener.close()  # removes its socket's folder
        os._exit(1 if reason else 0)

    def _outlets(self) -> Outlets:
        return Outlets(
            events=self._tell_all,
            step=lambda step: self._send_down_soon(step=step),
            payload=lambda payload: self._send_down_soon(payload=payload),
            result=lambda result: self._send_down_soon(result=result),
        )

    def _milestones(self) -> Milestones:
        return Milestones(
            progress=self._soon(self._on_progress),
            loaded=self._soon(self._on_loaded),
            ready=self._on_ready,
            phase=self._on_phase,
            warmed_up=self._on_warmed_up,
            failed=self._soon(self._fail),
            peer_lost=self._soon(self._lose_peer_in_lane),
            left=self._soon(self._left.set),
        )

    def _soon(self, function: Callable[..., None]) -> Callable[..., None]:
        """The function, to be called from other threads."""

        def call(*args: Any) -> None:
            self._loop.call_soon_threadsafe(function, *args)

        return call

    def _send_down_soon(self, **message: Any) -> None:
        """Runs on the inference thread. From the tail, down is to the head."""
        if self._control is not None:
            self._loop.call_soon_threadsafe(self._control.send_down, self._control.encode(**message))

    def _send_exchange(self, data: bytes) -> None:
        """Runs on the inference thread; returns when the message is on its way.

        What is called next may keep the interpreter's lock until the other stages have answered.
        """
        control, sent = self._control, threading.Event()
        if control is None:
            raise LocalStartError("there is no control lane to exchange anything over")

        def send() -> None:
            control.send_down(control.encode(exchange=data))
            sent.set()

        self._loop.call_soon_threadsafe(send)
        if not sent.wait(EXCHANGE_DEADLINE_SECONDS):
            raise LocalStartError(f"the worker's event loop sent nothing for {EXCHANGE_DEADLINE_SECONDS:g} s")

    def _on_progress(self, loaded: int, total: int) -> None:
        self._loaded_bytes = (loaded, total)
        if self._kept_bytes is None:
            self._kept_bytes = loaded  # before anything was read
        self._report(peer_pb2.WORKER_STATE_LOADING)

    def _on_loaded(self) -> None:
        log.info("weights loaded", total_bytes=self._loaded_bytes[1])
        self._report(peer_pb2.WORKER_STATE_LOADED)
        self._loaded.set()

    def _on_phase(self, name: str, seconds: float) -> None:
        """Runs on the inference thread."""
        self._phases = [*self._phases, peer_pb2.StartPhase(name=name, seconds=seconds)]

    @staticmethod
    def _on_warmed_up(facts: "WarmUp") -> None:
        """Runs on the inference thread."""
        log.info("warmed up", **dataclasses.asdict(facts))

    def _on_ready(self) -> None:
        """Runs on the inference thread, whose events must not overtake this one."""
        seconds = {f"{phase.name}_seconds": round(phase.seconds, 3) for phase in self._phases}
        log.info("stage is ready", stage=self._start.stage_index, **seconds)
        self._report(peer_pb2.WORKER_STATE_READY)

    def _report(
        self, state: peer_pb2.WorkerState.ValueType, error: str = "", *, resting: bool = False
    ) -> None:
        loaded, total = self._loaded_bytes
        report = peer_pb2.WorkerReport(
            epoch=self._start.epoch,
            stage_index=self._start.stage_index,
            state=state,
            loaded_bytes=loaded,
            total_bytes=total,
            control_address=self._control_address,
            tensor_address=self._listener.endpoint.encode() if self._listener is not None else "",
            error=error,
            peer_lost=self._peer_lost and state == peer_pb2.WORKER_STATE_FAILED,
            sync_mode=self._start.sync_mode or "safe",
            sync_reason=self._start.sync_reason,
            links=self._links,
            transfers=self._transfers[0],
            transfers_reason=self._transfers[1],
            transport_failure=self._transport_failure if state == peer_pb2.WORKER_STATE_FAILED else "",
            start_phases=self._phases,
            kept_bytes=self._kept_bytes or 0,
            resting=resting,
        )
        self._tell(lane_pb2.WorkerEvent(report=report))

    def _tell_all(self, events: Sequence[lane_pb2.WorkerEvent]) -> None:
        # A daemon that is woken by the first of them takes the others without being woken again.
        for event in events:
            self._tell(event)

    def _tell(self, event: lane_pb2.WorkerEvent) -> None:
        """From any thread: a token goes to the daemon from where it is made, without a turn of the event loop."""
        try:
            self._port.send(event.SerializeToString())
        except RemotePeerLostError:
            pass  # the daemon is gone, which ends the process where its commands are read
        except TransportError as error:
            self._loop.call_soon_threadsafe(self._fail, str(error))


def _tell_stranger(reason: str) -> None:
    log.warning("connection turned away", reason=reason)


def _numbers(epoch: types_pb2.Epoch) -> tuple[int, int, int]:
    return epoch.generation, epoch.term, epoch.seq
