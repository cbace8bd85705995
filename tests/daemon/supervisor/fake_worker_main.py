"""A worker process that speaks the protocol with a `FakeWorker` inside, and misbehaves on request."""

import argparse
import asyncio
import ctypes
import os
import sys

from macmesh.v1 import lane_pb2
from macmesh_daemon.supervisor.testing import FakeWorker
from macmesh_rdma.messages.local_connection import adopt_port
from macmesh_rdma.messages.progress_page import ProgressWriter


def get_stuck(how: str, progress: ProgressWriter) -> None:
    """Sleeps in native code that does not give up the interpreter's lock: no thread of this process runs any more."""
    progress.step(41)
    progress.layer(6)
    if how == "idle":
        progress.idle()
    ctypes.PyDLL(None).sleep(60)


async def serve(options: argparse.Namespace) -> None:  # noqa: C901, PLR0912  one branch for each misbehaviour
    incoming = os.dup(int(options.ring_fds.split(",")[0])) if options.scribble else -1
    port = adopt_port(options.fd, options.ring_fds)
    progress = ProgressWriter.adopt(options.progress_fd)
    worker = FakeWorker(load_error=options.fail_load, gate=asyncio.Event() if options.hold else None)
    if options.say:
        sys.stderr.write(options.say + "\n")
        sys.stderr.flush()
    if options.garbage:
        port.send(b"\xff\xff\xff\xff")

    async def events() -> None:
        while True:
            async for event in worker.events():
                port.send(event.SerializeToString())
                await port.drain()
            if not worker.resting:
                return

    async with asyncio.TaskGroup() as group:
        telling = group.create_task(events())
        while (message := await port.receive()) is not None:
            command = lane_pb2.WorkerCommand.FromString(message)
            match command.WhichOneof("command"):
                case "start" if worker.resting:
                    await worker.restart(command.start)
                case "start":
                    await worker.start(command.start)
                case "retire" if options.ignore_stop:
                    continue
                case "retire" if command.retire.epoch == worker.epoch:
                    await worker.retire(1)
                case "retire":
                    continue
                case "submit" if options.lose_peer:
                    worker.lose_peer("stage 1 is lost")
                case "ping" if options.scribble:
                    # Claims to have read what was never written.
                    os.pwrite(incoming, (1 << 40).to_bytes(8, "little"), 256)
                case "ping" if options.deaf:
                    continue
                case "submit" if options.stuck:
                    get_stuck(options.stuck, progress)
                case "stop" if options.ignore_stop:
                    continue
                case "stop":
                    if worker.resting:
                        telling.cancel()  # nothing more will be told
                    await worker.stop(1)
                    break
                case _:
                    await worker.send(command)
            if options.fail_load:
                await telling
                os._exit(1)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--ring-fds", default="")
    parser.add_argument("--progress-fd", type=int, required=True)
    parser.add_argument("--stuck", choices=["step", "idle"], default="")
    parser.add_argument("--say", default="")
    parser.add_argument("--fail-load", default="")
    for flag in ("--hold", "--lose-peer", "--garbage", "--deaf", "--ignore-stop", "--scribble"):
        parser.add_argument(flag, action="store_true")
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
