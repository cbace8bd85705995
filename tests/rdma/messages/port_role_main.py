"""The other side of a message port as a process; plays a role and ends."""

import argparse
import asyncio
import os
import signal
import sys

from macmesh_rdma.errors import RemotePeerLostError
from macmesh_rdma.messages.local_connection import adopt_port
from macmesh_rdma.messages.port import MessagePort


async def echo(port: MessagePort) -> None:
    """Sends everything back until the other side closes."""
    while (message := await port.receive()) is not None:
        port.send(message)
        await port.drain()


async def count(port: MessagePort) -> None:
    """Sends and receives as many numbers as it is told, both at once; says whether they came in order."""
    told = await port.receive()
    assert told is not None
    total = int(told)

    async def send() -> None:
        for number in range(total):
            port.send(number.to_bytes(4, "big"))
            if number % 512 == 0:
                await port.drain()

    async with asyncio.TaskGroup() as group:
        group.create_task(send())
        for number in range(total):
            if await port.receive() != number.to_bytes(4, "big"):
                port.send(b"out of order")
                return
    port.send(b"in order")
    await port.flush()


async def die(port: MessagePort) -> None:
    """Sends three messages, and dies in the middle of a fourth."""
    for message in (b"one", b"", b"three", bytes(8 * 1024 * 1024)):
        port.send(message)
    assert port.pending_bytes
    os.kill(os.getpid(), signal.SIGKILL)


async def leave(port: MessagePort) -> None:
    """Sends a few messages and closes in order."""
    for message in (b"one", b"", bytes(100_000)):
        port.send(message)
    await port.flush()


async def outlive(port: MessagePort) -> None:
    """Waits for the other side's death with a thread that hangs; tells by the exit code how it noticed."""
    hanging = asyncio.create_task(asyncio.to_thread(os.read, os.pipe()[0], 1))
    port.send(b"hanging")
    try:
        await port.receive()
    except RemotePeerLostError:
        sys.stdout.write("lost\n")
        sys.stdout.flush()
        os._exit(7)
    hanging.cancel()


ROLES = {function.__name__: function for function in (echo, count, die, leave, outlive)}


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("role")
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--ring-fds", default="")
    options = parser.parse_args()
    port = adopt_port(options.fd, options.ring_fds)
    await ROLES[options.role](port)
    port.close()


if __name__ == "__main__":
    asyncio.run(main())
