"""Ranks as processes: joins some by links, runs functions in all of them at once, and kills them.

Every rank runs `rank_main.py`, which makes its group from descriptors that it is sent and then serves calls: the
parent names a function of `cases.py`, all ranks run it with the same arguments, and their results (or errors) come
back. A process that is whole after a test makes another group in the next: starting one takes most of a second.
"""

from __future__ import annotations

import dataclasses
import os
import pickle
import socket
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

if TYPE_CHECKING:
    from types import TracebackType

type_of_link = Literal["tcp", "unix", "shm"]
HERE = Path(__file__).parent
DEADLINE_SECONDS = 60.0
"""Of every operation, where a test names no other."""


@dataclasses.dataclass(frozen=True)
class RankError:
    """What a call raised in a rank."""

    kind: str
    text: str
    seconds: float
    at: float  # time.monotonic(), which all processes of a machine share


@dataclasses.dataclass(frozen=True)
class LinkDescriptors:
    """What one end of a link is made from: one socket, or two memories and two doorbells."""

    provider: str
    descriptors: tuple[int, ...]


@dataclasses.dataclass
class RankSetup:
    """What a rank makes its group from."""

    rank: int
    size: int
    epoch: tuple[int, int, int]
    timeout_seconds: float
    point_to_point: dict[int, list[LinkDescriptors]]
    collective: dict[int, list[LinkDescriptors]]
    side: dict[int, int]
    spin_us: float = 20.0

    def descriptors(self) -> list[int]:
        """All that it is made from, each once."""
        lanes = (self.point_to_point, self.collective)
        in_links = [
            fd for lane in lanes for links in lane.values() for link in links for fd in link.descriptors
        ]
        return [*self.side.values(), *in_links]

    def with_descriptors(self, numbers: list[int]) -> RankSetup:
        """The same with other numbers for what `descriptors` gives, as they are in another process."""
        known = dict(zip(self.descriptors(), numbers, strict=True))

        def links(lane: dict[int, list[LinkDescriptors]]) -> dict[int, list[LinkDescriptors]]:
            return {
                peer: [
                    dataclasses.replace(link, descriptors=tuple(known[fd] for fd in link.descriptors))
                    for link in given
                ]
                for peer, given in lane.items()
            }

        return dataclasses.replace(
            self,
            point_to_point=links(self.point_to_point),
            collective=links(self.collective),
            side={peer: known[fd] for peer, fd in self.side.items()},
        )


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection over loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        left = socket.create_connection(server.getsockname(), timeout=5)
        right, _ = server.accept()
    left.setblocking(True)  # noqa: FBT003  a socket's own signature
    return left, right


def link_pair(provider: type_of_link, shm_bytes: int) -> tuple[LinkDescriptors, LinkDescriptors]:
    """Descriptors of the two ends of one link; the caller closes them once the ranks have them."""
    if provider != "shm":
        left, right = tcp_pair() if provider == "tcp" else socket.socketpair()
        return LinkDescriptors(provider, (left.detach(),)), LinkDescriptors(provider, (right.detach(),))
    memories = []
    for _ in range(2):
        with tempfile.TemporaryFile(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as file:  # noqa: S108
            file.truncate(shm_bytes)
            memories.append(os.dup(file.fileno()))
    (a_left, a_right), (b_left, b_right) = socket.socketpair(), socket.socketpair()
    left_end = (memories[0], memories[1], a_left.detach(), b_left.detach())
    right_end = (os.dup(memories[1]), os.dup(memories[0]), b_right.detach(), a_right.detach())
    return LinkDescriptors("shm", left_end), LinkDescriptors("shm", right_end)


class RankProcess:
    """A process that can be a rank of one group after another."""

    def __init__(self) -> None:
        self.socket, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE / "rank_main.py"), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
            )
        # Descriptors are passed over the socket, everything else over the connection.
        self.connection = Connection(os.dup(self.socket.fileno()))

    def open(self, setup: RankSetup) -> None:
        """Lets it make its group, and closes the descriptors here."""
        descriptors = setup.descriptors()
        self.connection.send_bytes(pickle.dumps(setup))
        socket.send_fds(self.socket, [b"F"], descriptors)
        for descriptor in descriptors:
            os.close(descriptor)

    def close_group(self) -> bool:
        """Ends its group; whether it is whole and can make another."""
        if self.process.poll() is not None:
            return False
        try:
            self.connection.send_bytes(pickle.dumps(("close", ())))
            return self.connection.poll(5) and bool(pickle.loads(self.connection.recv_bytes()))  # noqa: S301  ours
        except (EOFError, OSError):
            return False

    def end(self, seconds: float = 5) -> None:
        """Ends the process."""
        self.connection.close()
        self.socket.close()
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()  # also where it is stopped
            self.process.wait(60)


class Pool:
    """Processes that wait to be ranks."""

    def __init__(self) -> None:
        self._idle: list[RankProcess] = []

    def take(self) -> RankProcess:
        """One that waits, or a new one."""
        return self._idle.pop() if self._idle else RankProcess()

    def put(self, process: RankProcess) -> None:
        """Takes one back that is whole."""
        self._idle.append(process)

    def close(self) -> None:
        """Ends all that wait."""
        while self._idle:
            self._idle.pop().end()


class Ranks:
    """Some joined ranks, each a process. A context manager: leaving it ends them."""

    def __init__(
        self,
        pool: Pool,
        size: int,
        provider: type_of_link = "unix",
        *,
        timeout_seconds: float = DEADLINE_SECONDS,
        epochs: list[tuple[int, int, int]] | None = None,
        links_per_lane: int = 1,
        shm_bytes: int = 0,
    ) -> None:
        """Starts the ranks.

        Args:
            pool: Where their processes come from and go to.
            size: How many.
            provider: What joins each two of them.
            timeout_seconds: Of every operation.
            epochs: One for each rank, where they shall differ.
            links_per_lane: More than one to carry large messages in parts.
            shm_bytes: Size of the shared memory of one direction of a `shm` link.
        """
        setups = [
            RankSetup(r, size, epochs[r] if epochs else (1, 2, 3), timeout_seconds, {}, {}, {})
            for r in range(size)
        ]
        for left in range(size):
            for right in range(left + 1, size):
                for lane in ("point_to_point", "collective"):
                    pairs = [link_pair(provider, shm_bytes) for _ in range(links_per_lane)]
                    getattr(setups[left], lane)[right] = [pair[0] for pair in pairs]
                    getattr(setups[right], lane)[left] = [pair[1] for pair in pairs]
                a, b = socket.socketpair()
                setups[left].side[right], setups[right].side[left] = a.detach(), b.detach()
        self._pool = pool
        self._taken = [pool.take() for _ in setups]
        self.processes = [taken.process for taken in self._taken]
        self.connections = [taken.connection for taken in self._taken]
        for taken, setup in zip(self._taken, setups, strict=True):
            taken.open(setup)

    def begin(self, rank: int, function: str, *arguments: Any) -> None:
        """Starts a function of `cases.py` in one rank."""
        self.connections[rank].send_bytes(pickle.dumps((function, arguments)))

    def finish(self, rank: int, timeout_seconds: float = 2 * DEADLINE_SECONDS) -> Any:
        """What the function that was begun returned, or a `RankError`."""
        if not self.connections[rank].poll(timeout_seconds):
            raise TimeoutError(f"rank {rank} did not answer within {timeout_seconds} s")
        return pickle.loads(self.connections[rank].recv_bytes())  # noqa: S301  from our own process

    def call(self, function: str, *arguments: Any) -> list[Any]:
        """Runs a function in all ranks that live; results in the order of ranks (None for the dead)."""
        alive = [r for r, process in enumerate(self.processes) if process.poll() is None]
        for rank in alive:
            self.begin(rank, function, *arguments)
        return [self.finish(r) if r in alive else None for r in range(len(self.processes))]

    def signal(self, rank: int, number: int) -> float:
        """Sends a signal; returns the time (monotonic, comparable between processes of one machine)."""
        now = time.monotonic()
        self.processes[rank].send_signal(number)
        return now

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for taken in self._taken:
            if kind is None and taken.close_group():
                self._pool.put(taken)
            else:
                taken.end(0.001 if kind else 5)
