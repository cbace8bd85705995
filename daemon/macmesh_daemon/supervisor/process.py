"""A worker that runs as a process of its own."""

import asyncio
import collections
import contextlib
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

from macmesh.v1 import lane_pb2, peer_pb2
from macmesh_daemon.supervisor.closing import OpenBusiness
from macmesh_daemon.supervisor.errors import (
    LocalWorkerStartError,
    LocalWorkerStateError,
    RemoteFrameError,
    RemoteWorkerEndedError,
    RemoteWorkerError,
)
from macmesh_daemon.supervisor.frames import encode_frame, read_frame
from macmesh_daemon.supervisor.interface import Worker, require_start

WORKER_COMMAND = (sys.executable, "-m", "macmesh_daemon.worker.main")
SEND_DEADLINE_SECONDS = 5.0
"""The worker's socket loop only reads and writes: a command that is not taken by then never will be."""
KILL_DEADLINE_SECONDS = 10.0
STDERR_TAIL_LINES = 20


class WorkerProcess(Worker):
    """Starts the worker by exec, in a session of its own, joined to this process by a socket pair.

    The worker ends when the socket closes, so it cannot outlive the daemon. The last lines that it writes to
    stderr are kept and become part of the final report where it gave no reason itself.

    Args:
        command: program and arguments; ``--fd N`` is added.
        environment: environment of the worker; None inherits this process's.
        ping_interval_seconds: distance of the pings that watch a READY worker. Their answers are events too.
        hang_deadline_seconds: a READY worker that answers no ping for that long is killed. Must be longer
            than the longest step.
        on_log_line: is given every line that the worker writes to stderr.
    """

    def __init__(
        self,
        *,
        command: Sequence[str] = WORKER_COMMAND,
        environment: Mapping[str, str] | None = None,
        ping_interval_seconds: float = 2.0,
        hang_deadline_seconds: float = 30.0,
        on_log_line: Callable[[str], None] | None = None,
    ) -> None:
        self._command = tuple(command)
        self._environment = dict(environment) if environment is not None else None
        self._ping_interval_seconds = ping_interval_seconds
        self._hang_deadline_seconds = hang_deadline_seconds
        self._on_log_line = on_log_line
        self._business = OpenBusiness()
        self._events: asyncio.Queue[lane_pb2.WorkerEvent | None] = asyncio.Queue()
        self._stderr: collections.deque[str] = collections.deque(maxlen=STDERR_TAIL_LINES)
        self._started = False
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._runner: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self._pong = asyncio.Event()
        self._done = asyncio.Event()
        self._reason = ""
        self._hung = False

    @property
    def pid(self) -> int | None:
        """See `Worker.pid`."""
        return None if self._process is None or self._done.is_set() else self._process.pid

    async def start(self, start: lane_pb2.StartStage) -> None:
        """See `Worker.start`."""
        if self._started or self._done.is_set():
            raise LocalWorkerStateError("a worker is started once; make a new one")
        self._started = True
        self._business.note_start(start)
        ours, theirs = socket.socketpair()
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                "--fd",
                str(theirs.fileno()),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                env=self._environment,
            )
        except OSError as error:
            ours.close()
            self._finish(f"the worker could not be started: {error}")
            raise LocalWorkerStartError(f"cannot start {self._command[0]}: {error}") from error
        finally:
            theirs.close()
        reader, self._writer = await asyncio.open_connection(sock=ours)
        self._runner = asyncio.create_task(
            self._run(self._process, reader), name=f"worker-{self._process.pid}"
        )
        await self._write(lane_pb2.WorkerCommand(start=start))

    async def send(self, command: lane_pb2.WorkerCommand) -> None:
        """See `Worker.send`."""
        require_start(command)
        if self._done.is_set():
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

    async def _write(self, command: lane_pb2.WorkerCommand) -> None:
        if self._writer is None:
            raise LocalWorkerStateError("the worker is not started; call start() first")
        try:
            self._writer.write(encode_frame(command))
            async with asyncio.timeout(SEND_DEADLINE_SECONDS):
                await self._writer.drain()
        except OSError as error:
            if isinstance(error, TimeoutError):
                raise RemoteWorkerError(
                    f"the worker has read no command for {SEND_DEADLINE_SECONDS:g} s; stop it"
                ) from error
            raise RemoteWorkerEndedError("the worker has ended; start a new one") from error

    async def _run(self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader) -> None:
        async with asyncio.TaskGroup() as group:
            name = f"worker-{process.pid}"
            group.create_task(self._read_events(reader), name=f"{name}-events")
            group.create_task(self._read_stderr(process), name=f"{name}-stderr")
            watch = group.create_task(self._watch(), name=f"{name}-watch")
            await process.wait()
            watch.cancel()
        if self._writer is not None:
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()
        self._finish(self._describe_end(process))

    async def _read_events(self, reader: asyncio.StreamReader) -> None:
        try:
            while (event := await read_frame(reader, lane_pb2.WorkerEvent)) is not None:
                kind = event.WhichOneof("event")
                if kind == "pong":
                    self._pong.set()
                elif kind == "report" and event.report.state == peer_pb2.WORKER_STATE_READY:
                    self._ready.set()
                if self._business.passes(event):
                    self._events.put_nowait(event)
        except RemoteFrameError as error:
            self._kill(f"it sent something that is no event: {error}")
        except OSError:
            pass  # the process died with something unread: its exit says the rest
        else:
            # The worker closes its end by ending. One that lives on without it is beyond reach.
            self._give_last_seconds()

    def _give_last_seconds(self) -> None:
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
        await self._ready.wait()
        nonce = 0
        while True:
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
        for event in self._business.close(how, hung=self._hung):
            self._events.put_nowait(event)
        self._events.put_nowait(None)
        self._done.set()


async def _read_line(stream: asyncio.StreamReader) -> bytes:
    """A line, or what there is of one that is too long; empty at the end."""
    try:
        return await stream.readline()
    except ValueError:
        return b"(a line too long to keep)"
