"""A worker that runs as a process of its own."""

import asyncio
import collections
import contextlib
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

from google.protobuf.message import DecodeError

from macmesh.v1 import lane_pb2, peer_pb2
from macmesh_daemon.supervisor.closing import OpenBusiness
from macmesh_daemon.supervisor.errors import (
    LocalWorkerStartError,
    LocalWorkerStateError,
    RemoteWorkerEndedError,
    RemoteWorkerError,
)
from macmesh_daemon.supervisor.interface import Worker, require_start
from macmesh_daemon.supervisor.watchdog import Watchdog, WatchLimits
from macmesh_rdma.errors import (
    LocalPortError,
    LocalSharedMemoryError,
    LocalTransportError,
    RemoteMismatchError,
    RemotePeerLostError,
)
from macmesh_rdma.messages.local_connection import LocalConnection
from macmesh_rdma.messages.port import MessagePort
from macmesh_rdma.messages.progress_page import ProgressReader

WORKER_COMMAND = (sys.executable, "-m", "macmesh_daemon.worker.main")
SEND_DEADLINE_SECONDS = 5.0
"""The worker's event loop only reads and writes: a command that is not taken by then never will be."""
KILL_DEADLINE_SECONDS = 10.0
MOST_LOOK_INTERVAL_SECONDS = 0.5
"""The progress page is looked at as often, or four times within the shortest limit."""
LOOK_GAP = 4.0
"""A look that comes so many times later than it should tells of this process, not of the worker."""
STDERR_TAIL_LINES = 20


class WorkerProcess(Worker):
    """Starts the worker by exec, in a session of its own, joined to this process by a message port.

    The port is a pair of rings in shared memory, or a socket where there is none to be had. The worker ends when
    its end of the port tells that the daemon has gone, so it cannot outlive the daemon. The last lines that it writes
    to stderr are kept and become part of the final report where it gave no reason itself.

    Two things tell that it hangs. Its inference thread shows in a page of shared memory where it is, which is looked
    at from here without its help (`watchdog`); and it is pinged.

    Args:
        command: program and arguments; those of `LocalConnection` are added, and the descriptor of the page.
        environment: environment of the worker; None inherits this process's.
        ping_interval_seconds: distance of the pings that watch a READY worker. Their answers are events too.
        hang_deadline_seconds: a READY worker that answers no ping for that long is killed. Must be longer
            than the longest step. Where the start command names no deadline of a step, it is that too.
        on_log_line: is given every line that the worker writes to stderr, and why there is no ring.
        rings: False uses the socket even where there is shared memory.
    """

    def __init__(
        self,
        *,
        command: Sequence[str] = WORKER_COMMAND,
        environment: Mapping[str, str] | None = None,
        ping_interval_seconds: float = 2.0,
        hang_deadline_seconds: float = 30.0,
        on_log_line: Callable[[str], None] | None = None,
        rings: bool = True,
    ) -> None:
        self._command = tuple(command)
        self._environment = dict(environment) if environment is not None else None
        self._ping_interval_seconds = ping_interval_seconds
        self._hang_deadline_seconds = hang_deadline_seconds
        self._on_log_line = on_log_line
        self._rings = rings
        self._business = OpenBusiness()
        self._events: asyncio.Queue[lane_pb2.WorkerEvent | None] = asyncio.Queue()
        self._stderr: collections.deque[str] = collections.deque(maxlen=STDERR_TAIL_LINES)
        self._started = False
        self._process: asyncio.subprocess.Process | None = None
        self._port: MessagePort | None = None
        self._page: ProgressReader | None = None
        self._step_deadline_seconds = hang_deadline_seconds
        self._runner: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self._pong = asyncio.Event()
        self._done = asyncio.Event()
        self._resting = False
        self._epoch_ended = asyncio.Event()
        self._reason = ""
        self._hung = False

    @property
    def pid(self) -> int | None:
        """See `Worker.pid`."""
        return None if self._process is None or self._done.is_set() else self._process.pid

    @property
    def port_kind(self) -> str:
        """What carries the messages, "ring" or "socket"; empty before the start."""
        return "" if self._port is None else self._port.kind

    async def start(self, start: lane_pb2.StartStage) -> None:
        """See `Worker.start`."""
        if self._started or self._done.is_set():
            raise LocalWorkerStateError("a worker is started once; make a new one")
        self._started = True
        self._business.note_start(start)
        self._step_deadline_seconds = start.step_deadline_seconds or self._hang_deadline_seconds
        page = self._open_page()
        try:
            with LocalConnection(rings=self._rings) as connection:
                self._port = connection.open_port()
                self._process = await asyncio.create_subprocess_exec(
                    *self._command,
                    *connection.arguments,
                    *(() if page is None else ("--progress-fd", str(page.descriptor))),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.DEVNULL,
                    stderr=asyncio.subprocess.PIPE,
                    pass_fds=(*connection.descriptors, *(() if page is None else (page.descriptor,))),
                    start_new_session=True,
                    env=self._environment,
                )
        except (OSError, LocalTransportError) as error:
            if self._port is not None:
                self._port.close()
            self._close_page()
            self._finish(f"the worker could not be started: {error}")
            raise LocalWorkerStartError(f"cannot start {self._command[0]}: {error}") from error
        if page is not None:
            page.give_up_descriptor()
        if connection.why_no_ring and self._on_log_line is not None:
            self._on_log_line(f"talks to the daemon over a socket, not a ring: {connection.why_no_ring}")
        self._runner = asyncio.create_task(
            self._run(self._process, self._port), name=f"worker-{self._process.pid}"
        )
        await self._write(lane_pb2.WorkerCommand(start=start))

    @property
    def resting(self) -> bool:
        """See `Worker.resting`."""
        return self._resting and not self._done.is_set()

    async def restart(self, start: lane_pb2.StartStage) -> None:
        """See `Worker.restart`."""
        if self._done.is_set():
            raise RemoteWorkerEndedError("the worker has ended while it rested; start a new one")
        if not self._resting:
            raise LocalWorkerStateError("the worker does not rest; retire() it first")
        self._business = OpenBusiness()
        self._business.note_start(start)
        self._step_deadline_seconds = start.step_deadline_seconds or self._hang_deadline_seconds
        self._resting = False
        self._epoch_ended = asyncio.Event()
        await self._write(lane_pb2.WorkerCommand(start=start))

    async def retire(self, deadline_seconds: float) -> None:
        """See `Worker.retire`."""
        if self._process is None:
            await self.stop(deadline_seconds)
        if self._done.is_set() or self._resting:
            return
        self._business.note_stop()
        ended = self._epoch_ended
        try:
            async with asyncio.timeout(deadline_seconds):
                with contextlib.suppress(RemoteWorkerError):
                    retire = lane_pb2.RetireEpoch(epoch=self._business.epoch)
                    await self._write(lane_pb2.WorkerCommand(retire=retire))
                await ended.wait()
        except TimeoutError:
            self._kill(f"it did not end its epoch within {deadline_seconds:g} s")
            async with asyncio.timeout(KILL_DEADLINE_SECONDS):
                await self._done.wait()

    async def send(self, command: lane_pb2.WorkerCommand) -> None:
        """See `Worker.send`."""
        require_start(command)
        if self._done.is_set() or self._resting:
            raise RemoteWorkerEndedError("the worker has ended; start a new one")
        self._business.note_command(command)
        await self._write(command)

    async def events(self) -> AsyncIterator[lane_pb2.WorkerEvent]:
        """See `Worker.events`."""
        while (event := await self._events.get()) is not None:
            yield event

    async def stop(self, deadline_seconds: float) -> None:
        """See `Worker.stop`."""
        if self._done.is_set():
            return
        self._business.note_stop()
        if self._process is None:
            self._finish("")
            return
        try:
            async with asyncio.timeout(deadline_seconds):
                with contextlib.suppress(RemoteWorkerError):
                    await self._write(lane_pb2.WorkerCommand(stop=lane_pb2.StopStage()))
                await self._done.wait()
        except TimeoutError:
            self._kill(f"it did not stop within {deadline_seconds:g} s")
            async with asyncio.timeout(KILL_DEADLINE_SECONDS):
                await self._done.wait()

    def kill(self, reason: str) -> None:
        """See `Worker.kill`."""
        self._kill(reason)

    async def _write(self, command: lane_pb2.WorkerCommand) -> None:
        if self._port is None:
            raise LocalWorkerStateError("the worker is not started; call start() first")
        try:
            self._port.send(command.SerializeToString())
            async with asyncio.timeout(SEND_DEADLINE_SECONDS):
                await self._port.drain()
        except TimeoutError as error:
            raise RemoteWorkerError(
                f"the worker has read no command for {SEND_DEADLINE_SECONDS:g} s; stop it"
            ) from error
        except RemotePeerLostError as error:
            raise RemoteWorkerEndedError("the worker has ended; start a new one") from error
        except RemoteMismatchError as error:
            self._kill(f"it broke the connection: {error}")
            raise RemoteWorkerEndedError(f"the worker is ended: {error}") from error
        except LocalPortError as error:
            if self._process is None or self._process.returncode is not None:
                raise RemoteWorkerEndedError("the worker has ended; start a new one") from error
            raise LocalWorkerStateError(f"the command cannot be sent: {error}") from error

    async def _run(self, process: asyncio.subprocess.Process, port: MessagePort) -> None:
        async with asyncio.TaskGroup() as group:
            name = f"worker-{process.pid}"
            group.create_task(self._read_events(port), name=f"{name}-events")
            group.create_task(self._read_stderr(process), name=f"{name}-stderr")
            watches = [group.create_task(self._watch(), name=f"{name}-watch")]
            if self._page is not None:
                watches.append(group.create_task(self._watch_page(self._page), name=f"{name}-progress"))
            await process.wait()
            for watch in watches:
                watch.cancel()
        port.close()
        self._close_page()
        self._finish(self._describe_end(process))

    async def _read_events(self, port: MessagePort) -> None:
        try:
            while (message := await port.receive()) is not None:
                self._take(lane_pb2.WorkerEvent.FromString(message))
            self._give_last_seconds()
        except (RemoteMismatchError, DecodeError) as error:
            self._kill(f"it sent something that is no event: {error}")
        except RemotePeerLostError:
            self._give_last_seconds()

    def _take(self, event: lane_pb2.WorkerEvent) -> None:
        if self._resting:
            return  # of an epoch that has ended
        kind = event.WhichOneof("event")
        if kind == "pong":
            self._pong.set()
        passes = self._business.passes(event)
        if passes:
            if kind == "report" and event.report.state == peer_pb2.WORKER_STATE_READY:
                self._ready.set()
            self._events.put_nowait(event)
        elif self._business.rests:
            self._rest()

    def _rest(self) -> None:
        """The epoch has ended, and the process lives on."""
        self._resting = True
        self._ready.clear()
        self._pong.set()  # whoever waits for a sign of life has one
        self._tell_end("")

    def _give_last_seconds(self) -> None:
        """The worker closes its port by ending. One that lives on without it is beyond reach."""
        loop = asyncio.get_running_loop()
        handle = loop.call_later(
            KILL_DEADLINE_SECONDS, self._kill, "it closed its connection to the daemon but did not end"
        )
        if self._runner is not None:
            self._runner.add_done_callback(lambda _: handle.cancel())

    async def _read_stderr(self, process: asyncio.subprocess.Process) -> None:
        if process.stderr is None:
            return
        while line := await _read_line(process.stderr):
            text = line.decode(errors="replace").rstrip()
            self._stderr.append(text)
            if self._on_log_line is not None:
                self._on_log_line(text)

    async def _watch(self) -> None:
        nonce = 0
        while True:
            await self._ready.wait()
            nonce += 1
            self._pong.clear()
            try:
                await self._write(lane_pb2.WorkerCommand(ping=lane_pb2.PingWorker(nonce=nonce)))
                async with asyncio.timeout(self._hang_deadline_seconds):
                    await self._pong.wait()
            except RemoteWorkerEndedError:
                return
            except (TimeoutError, RemoteWorkerError):
                self._hung = True
                self._kill(f"its inference loop did not turn for {self._hang_deadline_seconds:g} s")
                return
            await asyncio.sleep(self._ping_interval_seconds)

    async def _watch_page(self, page: ProgressReader) -> None:
        loop = asyncio.get_running_loop()
        watched: OpenBusiness | None = None
        while True:
            if watched is not self._business:  # another epoch, with another deadline
                watched = self._business
                limits = WatchLimits.of_step_deadline(self._step_deadline_seconds)
                interval_seconds = min(MOST_LOOK_INTERVAL_SECONDS, limits.shortest_seconds / 4)
                watchdog = Watchdog(limits, most_gap_seconds=LOOK_GAP * interval_seconds)
            why = watchdog.look(page.read(), loop.time())
            if why is not None:
                self._hung = True
                self._kill(why)
                return
            await asyncio.sleep(interval_seconds)

    def _open_page(self) -> ProgressReader | None:
        try:
            self._page = ProgressReader()
        except LocalSharedMemoryError as error:
            if self._on_log_line is not None:
                self._on_log_line(f"is watched by pings alone: {error}")
        return self._page

    def _close_page(self) -> None:
        if self._page is not None:
            self._page.close()
            self._page = None

    def _kill(self, reason: str) -> None:
        if self._process is not None and self._process.returncode is None:
            self._reason = self._reason or reason
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    def _describe_end(self, process: asyncio.subprocess.Process) -> str:
        code = process.returncode
        if code is not None and code < 0:
            end = f"was killed by {signal.Signals(-code).name}"
        else:
            end = f"ended with exit code {code}"
        text = f"the worker of stage {self._business.stage_index} (pid {process.pid}) {end}"
        if self._reason:
            text += f" because {self._reason}"
        if self._stderr:
            text += "; it last wrote: " + " | ".join(list(self._stderr)[-5:])
        return text

    def _finish(self, how: str) -> None:
        """The process is gone, or never was."""
        self._done.set()
        if not self._resting:
            self._tell_end(how)

    def _tell_end(self, how: str) -> None:
        for event in self._business.close(how, hung=self._hung):
            self._events.put_nowait(event)
        self._events.put_nowait(None)
        self._epoch_ended.set()


async def _read_line(stream: asyncio.StreamReader) -> bytes:
    """A line, or what there is of one that is too long; empty at the end."""
    try:
        return await stream.readline()
    except ValueError:
        return b"(a line too long to keep)"
