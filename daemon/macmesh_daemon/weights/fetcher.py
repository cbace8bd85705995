"""Carries out what `fetching` decides: asks sources, checks what they send, writes it down. A thin shell."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

from macmesh_daemon.weights import fetching as f
from macmesh_daemon.weights.errors import (
    RemoteContentDiffersError,
    RemoteNoSourceError,
    RemoteWeightsError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence

    from macmesh_daemon.clock import Clock
    from macmesh_daemon.weights.library import Manifest
    from macmesh_daemon.weights.partial import PartialModel
    from macmesh_daemon.weights.pieces import Piece


#: What came is made durable, and told, once it is so much ...
COMMIT_BYTES: Final = 16 << 20
#: ... or when so long has passed.
COMMIT_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class PeerHoldings:
    """What a node said: which of the asked pieces it has, whether it serves requests, how far away it is."""

    pieces: frozenset[Piece]
    is_busy: bool
    distance: float


class PeerWeights(Protocol):
    """The other nodes, by node id. Every call has a deadline, within each stream for every chunk.

    All raise `RemoteSourceFailedError` or `RemoteSourceBusyError` where the node cannot or will not.
    """

    async def manifest(self, peer: str, digest: str) -> Manifest | None:
        """The files of a model; None where the node lacks it."""
        ...

    async def holdings(self, peer: str, digest: str, wanted: Sequence[Piece]) -> PeerHoldings:
        """What it has; nothing where it lacks the model."""
        ...

    async def hashes(self, peer: str, digest: str, pieces: Sequence[Piece]) -> Mapping[Piece, str]:
        """SHA-256, hex, of pieces."""
        ...

    def fetch(
        self, peer: str, digest: str, pieces: Sequence[Piece]
    ) -> AsyncGenerator[tuple[Piece, bytes], None]:
        """The content of pieces, in order."""
        ...


class HubWeights(Protocol):
    """A hub."""

    def fetch(self, pieces: Sequence[Piece]) -> AsyncGenerator[tuple[Piece, bytes], None]:
        """The content of pieces, in any order.

        Raises:
            RemoteWeightsError: it cannot be had.
        """
        ...


@dataclass(slots=True)
class Progress:
    """Bytes of weights of a stage, by where they come from.

    Attributes:
        total_bytes: All that the stage needs.
        disk_bytes: What was here before.
        peer_bytes: What came from other nodes.
        hub_bytes: What came from a hub.
        sources: Node ids that sent something.
    """

    total_bytes: int = 0
    disk_bytes: int = 0
    peer_bytes: int = 0
    hub_bytes: int = 0
    sources: list[str] = field(default_factory=list)

    @property
    def here_bytes(self) -> int:
        """What is here now."""
        return self.disk_bytes + self.peer_bytes + self.hub_bytes


async def fetch_pieces(
    model: PartialModel,
    machine: f.Fetching,
    *,
    peers: PeerWeights,
    hub: HubWeights | None,
    clock: Clock,
    progress: Progress,
    told: Callable[[Progress], None],
    quarantine: Callable[[str, str], None],
) -> None:
    """Bring all that the machine wants, or as much as can be had.

    Args:
        model: Where it goes.
        machine: Decides; new.
        peers: The other nodes.
        hub: The hub; None where none is asked.
        clock: Time.
        progress: Counts what comes.
        told: Called with it whenever something came.
        quarantine: Called with a node and the reason when that node is given up.

    Raises:
        RemoteContentDiffersError: the nodes disagree.
        RemoteNoSourceError: not all can be had; the message says who has what.
        LocalWeightsError: it cannot be written.
    """
    shell = _Shell(model, machine, peers, hub, clock, progress, told, quarantine)
    try:
        async with asyncio.TaskGroup() as tasks:
            shell.tasks = tasks
            await shell.run()
    except BaseExceptionGroup as group:
        if len(group.exceptions) == 1:
            raise group.exceptions[0] from group
        raise


class _Shell:
    tasks: asyncio.TaskGroup

    def __init__(
        self,
        model: PartialModel,
        machine: f.Fetching,
        peers: PeerWeights,
        hub: HubWeights | None,
        clock: Clock,
        progress: Progress,
        told: Callable[[Progress], None],
        quarantine: Callable[[str, str], None],
    ) -> None:
        self._model = model
        self._machine = machine
        self._peers = peers
        self._hub = hub
        self._clock = clock
        self._progress = progress
        self._told = told
        self._quarantine = quarantine
        self._events: asyncio.Queue[f.Event] = asyncio.Queue()
        self._running: dict[int, set[asyncio.Task[None]]] = {}
        self._asking: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Turn until the machine says that it is over."""
        event: f.Event = f.Tick()
        while True:
            for effect in self._machine.step(event, self._clock.now()):
                if isinstance(effect, f.Finished | f.Failed):
                    self._cancel_all()
                    if isinstance(effect, f.Failed):
                        kind = RemoteContentDiffersError if effect.is_content else RemoteNoSourceError
                        raise kind(effect.reason)
                    return
                self._carry_out(effect)
            event = await self._next()

    async def _next(self) -> f.Event:
        deadline = self._machine.next_deadline()
        wait = None if deadline is None else max(0.0, deadline - self._clock.now())
        try:
            async with asyncio.timeout(wait):
                return await self._events.get()
        except TimeoutError:
            return f.Tick()

    def _carry_out(self, effect: f.Effect) -> None:
        match effect:
            case f.AskHoldings():
                task = self.tasks.create_task(self._ask_holdings(effect.peer), name="ask holdings")
                self._asking.add(task)
                task.add_done_callback(self._asking.discard)
            case f.AskHashes():
                self._start(effect.batch, self.tasks.create_task(self._ask_hashes(effect), name="ask hashes"))
            case f.Fetch():
                self._start(effect.batch, self.tasks.create_task(self._fetch(effect), name="fetch weights"))
            case f.Abandon():
                for task in self._running.pop(effect.batch, ()):
                    task.cancel()
            case f.Quarantine():
                self._quarantine(effect.peer, effect.reason)

    def _start(self, batch: int, task: asyncio.Task[None]) -> None:
        self._running.setdefault(batch, set()).add(task)
        task.add_done_callback(lambda done: self._running.get(batch, set()).discard(done))

    def _cancel_all(self) -> None:
        for task in [*self._asking, *(task for tasks in self._running.values() for task in tasks)]:
            task.cancel()

    async def _ask_holdings(self, peer: str) -> None:
        try:
            told = await self._peers.holdings(peer, self._model.about.digest, self._machine.missing)
        except RemoteWeightsError as error:
            self._events.put_nowait(f.HoldingsFailed(peer, str(error)))
            return
        self._events.put_nowait(f.HoldingsTold(peer, told.pieces, told.is_busy, told.distance))

    async def _ask_hashes(self, effect: f.AskHashes) -> None:
        hashes: Mapping[Piece, str] = {}
        reason = ""
        try:
            hashes = await self._peers.hashes(effect.peer, self._model.about.digest, effect.pieces)
        except RemoteWeightsError as error:
            reason = str(error)
        self._events.put_nowait(f.HashesTold(effect.batch, effect.peer, hashes, reason))

    async def _fetch(self, effect: f.Fetch) -> None:
        reason = ""
        written: dict[Piece, str] = {}
        due = self._clock.now() + COMMIT_SECONDS
        try:
            if effect.source == f.HUB:
                assert self._hub is not None  # noqa: S101  the machine was told that there is one
                contents = self._hub.fetch(tuple(effect.expected))
            else:
                contents = self._peers.fetch(effect.source, self._model.about.digest, tuple(effect.expected))
            async with aclosing(contents) as arriving:
                async for piece, content in arriving:
                    sha256 = await asyncio.to_thread(_sha256, content)
                    if effect.expected[piece] not in ("", sha256):
                        self._events.put_nowait(f.PieceCorrupt(effect.source, piece))
                        break
                    await asyncio.to_thread(self._model.write, piece, content)
                    written[piece] = sha256
                    if sum(done.size_bytes for done in written) >= COMMIT_BYTES or self._clock.now() > due:
                        await self._commit(effect.source, written)
                        written = {}
                        due = self._clock.now() + COMMIT_SECONDS
        except RemoteWeightsError as error:
            reason = str(error)
        finally:
            # What came before a connection broke, or the stage was taken away, need not be fetched again.
            if written:
                await _to_its_end(self._commit(effect.source, written))
        self._events.put_nowait(f.BatchEnded(effect.batch, reason))

    async def _commit(self, source: str, written: dict[Piece, str]) -> None:
        await asyncio.to_thread(self._model.commit, written)
        size = sum(piece.size_bytes for piece in written)
        if source == f.HUB:
            self._progress.hub_bytes += size
        else:
            self._progress.peer_bytes += size
            if source not in self._progress.sources:
                self._progress.sources.append(source)
        self._told(self._progress)
        self._events.put_nowait(f.PiecesArrived(source, tuple(written)))


async def _to_its_end(work: Coroutine[Any, Any, None]) -> None:
    """Wait for work that is not broken off; a cancellation counts afterwards."""
    # In no group: a group would break it off with its siblings.
    task = asyncio.create_task(work, name="note weights")
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
