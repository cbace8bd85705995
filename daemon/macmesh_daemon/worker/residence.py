"""A worker's process: takes the daemon's commands, and runs the epochs that they begin one after the other."""

import asyncio
import os
from collections.abc import Callable
from typing import Any, NoReturn

import structlog
from google.protobuf.message import DecodeError

from macmesh.v1 import lane_pb2
from macmesh_daemon.worker.parts import Parts
from macmesh_daemon.worker.resident import ResidentThread
from macmesh_daemon.worker.shell import WorkerShell
from macmesh_rdma.errors import TransportError
from macmesh_rdma.messages.port import MessagePort
from macmesh_rdma.messages.progress_page import ProgressWriter

log = structlog.get_logger(__name__)


class Residence:
    """Lives from the first start command until the daemon, or an epoch that cannot be outlived, ends it.

    Between two epochs it holds the weights of the last one and does nothing; what is said to an epoch that has ended
    is dropped.

    Args:
        port: to the daemon.
        parts: of the engine.
        progress: where the inference thread shows what it does.
        jaccl_init: see `WorkerShell`.
    """

    def __init__(
        self,
        port: MessagePort,
        *,
        parts: Parts,
        progress: ProgressWriter | None = None,
        jaccl_init: Callable[..., Any] | None = None,
    ) -> None:
        self._port = port
        self._parts = parts
        self._progress = progress
        self._jaccl_init = jaccl_init
        self._thread = ResidentThread()
        self._shell: WorkerShell | None = None
        self._starts: asyncio.Queue[lane_pb2.StartStage] = asyncio.Queue()

    async def run(self, first: lane_pb2.StartStage) -> NoReturn:
        """Runs until the process ends."""
        start = first
        async with asyncio.TaskGroup() as group:
            group.create_task(self._read_commands(), name="commands")
            while True:
                shell = self._shell = WorkerShell(
                    start,
                    self._port,
                    thread=self._thread,
                    parts=self._parts,
                    progress=self._progress,
                    jaccl_init=self._jaccl_init,
                )
                await shell.run()
                self._shell = None
                del shell  # holds what the epoch was made of
                start = await self._starts.get()
        raise AssertionError("the process ends first")

    async def _read_commands(self) -> None:
        while True:
            command = await self._next_command()
            shell = self._shell
            if command is None:
                if shell is not None and shell.leaving:
                    return  # it has closed the port itself
                # The daemon is gone: nobody to tell, nothing to save.
                os._exit(2)
            if shell is not None:
                shell.take(command)
                continue
            match command.WhichOneof("command"):
                case "start":
                    self._starts.put_nowait(command.start)
                case "stop":
                    log.info("worker ends at rest")
                    os._exit(0)
                case _:
                    pass

    async def _next_command(self) -> lane_pb2.WorkerCommand | None:
        try:
            message = await self._port.receive()
            return None if message is None else lane_pb2.WorkerCommand.FromString(message)
        except (TransportError, DecodeError):
            return None
