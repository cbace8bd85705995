"""Feeds the cluster core with events and carries out its effects, strictly in order."""

from __future__ import annotations

import asyncio
import itertools
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from macmesh_daemon.cluster import effects as fx
from macmesh_daemon.cluster import events as ev
from macmesh_daemon.logs import get_logger
from macmesh_daemon.node.bulletin import Bulletin
from macmesh_daemon.node.errors import RemoteCallFailed

if TYPE_CHECKING:
    from collections.abc import Callable

    from macmesh_daemon.clock import Clock
    from macmesh_daemon.cluster.machine import ClusterMachine
    from macmesh_daemon.cluster.view import ClusterView
    from macmesh_daemon.eventlog.writer import EventLog
    from macmesh_daemon.node.bulletin import BulletinBoard
    from macmesh_daemon.node.recorder import Recorder
    from macmesh_daemon.node.stage_host import StageHost
    from macmesh_daemon.node.storage import StateStore
    from macmesh_daemon.node.transport import Transport

_log = get_logger(part="cluster")

#: The core answers at once, except a COMMIT that waits for the old worker to end.
ANSWER_DEADLINE_SECONDS = 10.0


class Planner(Protocol):
    """What the driver needs of `Planning`: both tell the core how it went."""

    async def compute(self, effect: fx.ComputePlan) -> None:
        """Compute a plan; ends in `PlanComputed` or `PlanRefused`."""
        ...

    async def check_prepare(self, effect: fx.CheckPrepare) -> None:
        """Check this node's part of a plan; ends in `PrepareChecked`."""
        ...


class ChangeResolver(Protocol):
    """What the driver needs of `ChangeDesk`."""

    def resolve(self, effect: fx.ChangeAccepted | fx.ChangeDone | fx.ChangeRejected) -> None:
        """Take the core's decision on a change."""
        ...


class CoreDriver:
    """The only caller of the core; events of all sources queue here and are taken one at a time."""

    def __init__(
        self,
        *,
        machine: ClusterMachine,
        store: StateStore,
        clock: Clock,
        transport: Transport,
        recorder: Recorder,
        event_log: EventLog,
        board: BulletinBoard,
        tasks: asyncio.TaskGroup,
        wall_seconds: Callable[[], float] = time.time,
    ) -> None:
        self._machine = machine
        self._store = store
        self._clock = clock
        self._transport = transport
        self._recorder = recorder
        self._event_log = event_log
        self._board = board
        self._tasks = tasks
        self._wall_seconds = wall_seconds
        self._queue: asyncio.Queue[ev.Event] = asyncio.Queue()
        self._requests = itertools.count(1)
        self._waiting: dict[int, tuple[str, asyncio.Future[Any]]] = {}
        self._changed = asyncio.Event()
        #: Set once the goodbye of a `LeaveWanted` has been said.
        self.left = asyncio.Event()
        self.view: ClusterView = machine.view
        #: Is told every view, on the event loop.
        self.on_view: Callable[[ClusterView], None] = lambda _view: None
        # Set by the runtime before run(): these need the driver, and the driver needs them.
        self.stage_host: StageHost
        self.planning: Planner
        self.changes: ChangeResolver
        transport.serve(self.answer)
        transport.tell_losses(lambda peer: self.notify(ev.ConnectionLost(peer)))

    def notify(self, event: ev.Event) -> None:
        """Queue an event for the core."""
        self._queue.put_nowait(event)

    async def answer(self, sender: str, message: Any) -> Any:
        """Give the core a peer's request and wait for its reply.

        Raises:
            TimeoutError: The core was silent for `ANSWER_DEADLINE_SECONDS`.
        """
        request_id = next(self._requests)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[request_id] = (sender, future)
        try:
            self.notify(ev.RequestReceived(request_id=request_id, sender=sender, message=message))
            async with asyncio.timeout(ANSWER_DEADLINE_SECONDS):
                return await future
        finally:
            self._waiting.pop(request_id, None)

    async def wait_until(
        self, condition: Callable[[ClusterView], bool], deadline_seconds: float
    ) -> ClusterView:
        """The first view that satisfies the condition.

        Raises:
            TimeoutError: none did within the deadline.
        """
        async with asyncio.timeout(deadline_seconds):
            while not condition(self.view):
                changed = self._changed
                await changed.wait()
        return self.view

    async def run(self) -> None:
        """Drive the core until cancelled."""
        while True:
            event = await self._next_event()
            effects = self._machine.step(event, self._clock.now())
            view = self._machine.view
            self._recorder.elected(view)
            for effect in effects:
                await self._carry_out(effect)
            self.view = self._with_wait(view)
            self._recorder.settled(view)
            self.on_view(view)
            changed, self._changed = self._changed, asyncio.Event()
            changed.set()

    def _with_wait(self, view: ClusterView) -> ClusterView:
        """The view with the time since when what is wanted is not served: those who wait need it."""
        since = self.view.unserved_since if self.view.unserved_since is not None else self._clock.now()
        return replace(view, unserved_since=since) if view.is_unserved else view

    async def _next_event(self) -> ev.Event:
        deadline = self._machine.next_deadline()
        if deadline is None:
            return await self._queue.get()
        try:
            async with asyncio.timeout(max(0.0, deadline - self._clock.now())):
                return await self._queue.get()
        except TimeoutError:
            return ev.Tick()

    async def _carry_out(self, effect: fx.Effect) -> None:  # noqa: C901, PLR0912  one case per effect
        match effect:
            case fx.Persist():
                await asyncio.to_thread(self._store.save, effect.state)
                self._recorder.persisted(effect.state)
                # No later effect starts before the log has it: what others learn of it is in evidence here.
                await asyncio.to_thread(self._event_log.flush)
            case fx.Send():
                self._tasks.create_task(self._send(effect), name=f"send to {effect.peer[:8]}")
            case fx.Reply():
                sender, future = self._waiting.get(effect.request_id, ("", None))
                if future is not None and not future.done():
                    self._recorder.answered(effect.message, sender)
                    future.set_result(effect.message)
            case fx.ComputePlan():
                self._tasks.create_task(self.planning.compute(effect), name="compute plan")
            case fx.CheckPrepare():
                self._tasks.create_task(self.planning.check_prepare(effect), name="check prepare")
            case fx.StartWorker():
                self.stage_host.start(effect.epoch, effect.deployment, effect.stage_index)
            case fx.StopWorker():
                self.stage_host.stop(effect.epoch, effect.deadline_seconds, keep=effect.keep)
            case fx.ReleaseWorker():
                self.stage_host.release()
            case fx.GivePeers():
                self.stage_host.give_peers(effect.request)
            case fx.ChangeAccepted() | fx.ChangeDone() | fx.ChangeRejected():
                self.changes.resolve(effect)
            case fx.LeaveFinished():
                self.left.set()
            case fx.Announce():
                self._announce(effect)
            case _:
                raise TypeError(f"the core asked for an effect that the driver does not know: {effect!r}")

    def _announce(self, effect: fx.Announce) -> None:
        facts = dict(effect.facts)
        _log.info(effect.event, **{"term": self._machine.view.term, **facts})
        self._recorder.announced(effect.event, facts)
        self._board.post(Bulletin(self._wall_seconds(), effect.event, facts))  # for people only

    async def _send(self, effect: fx.Send) -> None:
        sent = self._clock.now()
        try:
            response = await self._transport.call(effect.peer, effect.message, effect.deadline_seconds)
        except RemoteCallFailed as error:
            self.notify(ev.RequestFailed(effect.peer, effect.message, error.kind, str(error)))
            return
        self.notify(
            ev.ResponseReceived(
                peer=effect.peer, message=response, round_trip_ms=(self._clock.now() - sent) * 1000
            )
        )
