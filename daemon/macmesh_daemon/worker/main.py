"""The program ``macmesh-worker``: one stage of a plan, started by a daemon and by nobody else."""

import argparse
import asyncio
import os
import socket
import sys
import traceback

import structlog

from macmesh.v1 import lane_pb2
from macmesh_daemon.supervisor.errors import RemoteFrameError
from macmesh_daemon.supervisor.frames import read_frame

START_DEADLINE_SECONDS = 30.0


def main() -> None:
    """Reads ``--fd N``, an inherited Unix socket to the daemon; serves until the daemon or the plan ends."""
    parser = argparse.ArgumentParser(prog="macmesh-worker", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="inherited Unix socket to the daemon")
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
        connection = socket.socket(fileno=options.fd)
    except OSError as error:
        parser.error(f"--fd {options.fd} is no socket ({error}); macmesh-worker is started by macmeshd")
    try:
        asyncio.run(_serve(connection))
    except BaseException:  # noqa: BLE001  whatever it was: the inference thread must not keep the process
        traceback.print_exc(file=sys.stderr)
    os._exit(1)


async def _serve(connection: socket.socket) -> None:
    reader, writer = await asyncio.open_connection(sock=connection)
    try:
        async with asyncio.timeout(START_DEADLINE_SECONDS):
            command = await read_frame(reader, lane_pb2.WorkerCommand)
    except (OSError, RemoteFrameError):
        command = None
    if command is None or command.WhichOneof("command") != "start":
        os._exit(2)
    # Imported only now: loads TLS and the rest while the daemon already knows that the process stands.
    from macmesh_daemon.worker.shell import WorkerShell  # noqa: PLC0415

    await WorkerShell(command.start, reader, writer).run()


if __name__ == "__main__":
    main()
