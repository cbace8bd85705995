"""The program ``macmesh-worker``: one stage at a time, started by a daemon and by nobody else."""

import argparse
import asyncio
import os
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import structlog
from google.protobuf.message import DecodeError

from macmesh.v1 import lane_pb2
from macmesh_rdma.errors import TransportError
from macmesh_rdma.messages.local_connection import adopt_port
from macmesh_rdma.messages.port import MessagePort
from macmesh_rdma.messages.progress_page import ProgressWriter

if TYPE_CHECKING:
    from macmesh_daemon.worker.parts import Parts

START_DEADLINE_SECONDS = 30.0


def main(jaccl_init: Callable[..., Any] | None = None, parts: "Callable[[], Parts] | None" = None) -> None:
    """Takes over what it inherited from the daemon; serves until the daemon or the plan ends.

    Args:
        jaccl_init: stands in for `mlx.core.distributed.init` where a plan uses jaccl.
        parts: makes other parts of the engine than this project's own.
    """
    parser = argparse.ArgumentParser(prog="macmesh-worker", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="inherited Unix socket to the daemon")
    parser.add_argument("--ring-fds", default="", metavar="IN,OUT", help="inherited rings in shared memory")
    parser.add_argument("--progress-fd", type=int, help="inherited page to show the progress in")
    options = parser.parse_args()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    try:
        asyncio.run(_serve(options, jaccl_init, parts))
    except BaseException:  # noqa: BLE001  whatever it was: the inference thread must not keep the process
        traceback.print_exc(file=sys.stderr)
    os._exit(1)


async def _serve(
    options: argparse.Namespace,
    jaccl_init: Callable[..., Any] | None,
    parts: "Callable[[], Parts] | None",
) -> None:
    try:
        port = adopt_port(options.fd, options.ring_fds)
        progress = None if options.progress_fd is None else ProgressWriter.adopt(options.progress_fd)
    except TransportError as error:
        sys.stderr.write(f"macmesh-worker is started by macmeshd, and by nobody else: {error}\n")
        sys.stderr.flush()
        os._exit(2)
    command = await _first_command(port)
    if command is None or command.WhichOneof("command") != "start":
        os._exit(2)
    # Imported only now: loads TLS and the rest while the daemon already knows that the process stands.
    from macmesh_daemon.worker.residence import Residence  # noqa: PLC0415

    if parts is None:
        from macmesh_daemon.worker.engine_parts import engine_parts  # noqa: PLC0415  same

        parts = engine_parts
    residence = Residence(port, parts=parts(), progress=progress, jaccl_init=jaccl_init)
    await residence.run(command.start)


async def _first_command(port: MessagePort) -> lane_pb2.WorkerCommand | None:
    try:
        async with asyncio.timeout(START_DEADLINE_SECONDS):
            message = await port.receive()
        return None if message is None else lane_pb2.WorkerCommand.FromString(message)
    except (TimeoutError, TransportError, DecodeError):
        return None


if __name__ == "__main__":
    main()
