"""What a token costs between a worker's inference thread and its daemon's event loop.

    python bench/daemon_ring.py --json [--paced N] [--burst N]

Two processes; the sender is a thread beside an event loop, the receiver an event loop, as in the product. Compares in
one run, round after round: the rings in shared memory, the socket that they fall back to, both written to by the
thread itself; a socket that only the sender's event loop writes to (two hops more); and a pipe with a flush per token.
"""

import argparse
import asyncio
import json
import os
import platform
import socket
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack

from macmesh_rdma.messages.local_connection import LocalConnection, adopt_port

TOKEN_BYTES = 60
PACE_SECONDS = 0.001
IDLE_SECONDS = 2.0
KINDS = ("ring", "socket", "socket_by_loop", "pipe")
Receive = Callable[[], Awaitable[bytes]]
Send = Callable[[bytes], None]


def percentile(values: list[float], share: float) -> float:
    """By nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def produce(send: Send, go: Callable[[], None], paced: int, burst: int) -> None:
    """The sender's thread: tokens with the time in them, each phase started by the receiver."""

    def token() -> bytes:
        return time.monotonic_ns().to_bytes(8, "big") + bytes(TOKEN_BYTES - 8)

    def tell_cpu() -> None:
        send(int(time.process_time() * 1e9).to_bytes(8, "big") + bytes(TOKEN_BYTES - 8))

    for count, pace in ((paced, PACE_SECONDS), (burst, 0.0)):
        go()
        tell_cpu()
        for _ in range(count):
            if pace:
                time.sleep(pace)
            send(token())
        tell_cpu()
    go()
    tell_cpu()
    go()
    tell_cpu()


async def child(kind: str, options: argparse.Namespace) -> None:
    """The sending process. A byte on its stdin lets the next phase begin."""
    loop = asyncio.get_running_loop()
    send: Send
    if kind in ("ring", "socket"):
        send = adopt_port(options.fd, options.ring_fds).send
    elif kind == "socket_by_loop":
        # The reader too: asyncio closes a stream whose reader nobody holds.
        kept = await asyncio.open_connection(sock=socket.socket(fileno=options.fd))

        def send(message: bytes) -> None:
            loop.call_soon_threadsafe(kept[1].write, message)
    else:
        pipe = os.fdopen(options.fd, "wb")

        def send(message: bytes) -> None:
            pipe.write(message)
            pipe.flush()

    def go() -> None:
        os.read(0, 1)

    await asyncio.to_thread(produce, send, go, options.paced, options.burst)
    await asyncio.to_thread(go)
    os._exit(0)


async def measure(kind: str, paced: int, burst: int) -> dict[str, float]:
    """Runs one pair of processes."""
    kept = ExitStack()
    with ExitStack() as held:
        receive, arguments, descriptors = await open_receiver(kind, held, kept)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            __file__,
            f"--child={kind}",
            f"--paced={paced}",
            f"--burst={burst}",
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            pass_fds=descriptors,
        )
    stdin = process.stdin
    assert stdin is not None  # noqa: S101  it was asked for
    latencies: list[float] = []
    found: dict[str, float] = {}
    async with asyncio.timeout(120):  # and everything ends with this process
        for name, count in (("paced", paced), ("burst", burst)):
            stdin.write(b"g")
            own, theirs = time.process_time(), number(await receive())
            began = time.monotonic()
            for _ in range(count):
                sent = number(await receive())
                if name == "paced":
                    latencies.append((time.monotonic_ns() - sent) / 1000)
            elapsed = time.monotonic() - began
            theirs = number(await receive()) - theirs
            cpu = time.process_time() - own + theirs / 1e9
            found[f"{name}_cpu_us_per_message"] = cpu / count * 1e6
        found["messages_per_second"] = burst / elapsed
        stdin.write(b"g")
        theirs = number(await receive())
        own = time.process_time()
        await asyncio.sleep(IDLE_SECONDS)
        own = time.process_time() - own
        stdin.write(b"g")
        found["idle_cpu_ms"] = (own + (number(await receive()) - theirs) / 1e9) * 1000
        stdin.write(b"g")
        await process.wait()
    kept.close()
    found["p50_us"] = statistics.median(latencies)
    found["p99_us"] = percentile(latencies, 0.99)
    return found


async def open_receiver(
    kind: str, held: ExitStack, kept: ExitStack
) -> tuple[Receive, list[str], tuple[int, ...]]:
    """The receiver's end, and what the sender is given.

    `held` closes the sender's end in this process, `kept` the receiver's.
    """
    if kind in ("ring", "socket"):
        connection = held.enter_context(LocalConnection(rings=kind == "ring"))
        port = connection.open_port()
        kept.callback(port.close)
        if port.kind != kind:
            raise SystemExit(f"no ring: {connection.why_no_ring}")

        async def receive() -> bytes:
            message = await port.receive()
            if message is None:
                raise EOFError
            return message

        return receive, connection.arguments, connection.descriptors
    if kind == "socket_by_loop":
        ours, theirs = socket.socketpair()
        held.enter_context(theirs)
        reader, writer = await asyncio.open_connection(sock=ours)
        kept.callback(writer.close)
        descriptor = theirs.fileno()
    else:
        read_end, descriptor = os.pipe()
        held.callback(os.close, descriptor)
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read_end, "rb")
        )
        kept.callback(transport.close)

    async def receive_exactly() -> bytes:
        return await reader.readexactly(TOKEN_BYTES)

    return receive_exactly, ["--fd", str(descriptor)], (descriptor,)


def number(message: bytes) -> int:
    """The number that a message begins with."""
    return int.from_bytes(message[:8], "big")


def main(arguments: list[str] | None = None) -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="what a token costs between a worker and its daemon")
    parser.add_argument("--json", action="store_true", help="JSON, not a table")
    parser.add_argument("--paced", type=int, default=1500, help="tokens sent one per millisecond")
    parser.add_argument("--burst", type=int, default=100_000, help="tokens sent at once")
    parser.add_argument("--rounds", type=int, default=3, help="the median of so many is shown")
    parser.add_argument("--child", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--fd", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--ring-fds", default="", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        asyncio.run(child(options.child, options))
    rounds = [
        {kind: asyncio.run(measure(kind, options.paced, options.burst)) for kind in KINDS}
        for _ in range(options.rounds)
    ]
    rows = [
        {
            "kind": kind,
            **{
                name: round(statistics.median(one[kind][name] for one in rounds), 2)
                for name in rounds[0][kind]
            },
        }
        for kind in KINDS
    ]
    if options.json:
        print(
            json.dumps(
                {
                    "format": "macmesh-bench-daemon-ring/1",
                    "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
                    "message_bytes": TOKEN_BYTES,
                    "paced": options.paced,
                    "burst": options.burst,
                    "rounds": options.rounds,
                    "idle_seconds": IDLE_SECONDS,
                    "results": rows,
                },
                indent=2,
            )
        )
    else:
        print(*rows[0], sep="\t")
        for row in rows:
            print(*row.values(), sep="\t")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
