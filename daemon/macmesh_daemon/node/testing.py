"""A network in memory, for running real drivers in virtual time. Held to the contract of `Transport`."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from macmesh_daemon.node.codec import from_proto, to_proto
from macmesh_daemon.node.errors import RemoteCallFailed
from macmesh_daemon.node.transport import Transport

if TYPE_CHECKING:
    import random
    from collections.abc import Coroutine

    from macmesh_daemon.cluster import messages as msg


@dataclass(frozen=True, slots=True)
class Weather:
    """How the network fares.

    Attributes:
        latency_seconds: Least and most time of one message on its way, drawn evenly.
        loss: Probability that a message is lost; its call then waits for its deadline.
        duplicates: Probability that a request arrives twice.
    """

    latency_seconds: tuple[float, float] = (0.0002, 0.002)
    loss: float = 0.0
    duplicates: float = 0.0


class MemoryNetwork:
    """Joins `MemoryTransport`s of one event loop. All chance comes from the given generator.

    Messages take their protobuf form on the way, as on a wire. A node that is not up refuses at once, as a host
    whose port is closed does, and one that goes down loses its connections; one that is cut off says nothing.
    """

    def __init__(self, rng: random.Random, weather: Weather = Weather()) -> None:
        self.weather = weather
        self._rng = rng
        self._transports: dict[str, MemoryTransport] = {}
        self._cuts: set[tuple[str, str]] = set()
        self._late: set[asyncio.Task[None]] = set()
        #: Who has a connection to whom.
        self._connections: set[tuple[str, str]] = set()
        #: Requests that were handed to a node.
        self.delivered = 0

    def join(self, node_id: str) -> MemoryTransport:
        """Bring a node up: a new transport, in place of one that it had."""
        transport = self._transports[node_id] = MemoryTransport(self, node_id)
        return transport

    def leave(self, node_id: str) -> None:
        """Take a node down: its machine ends the connections that others had to it, and the calls on them."""
        transport = self._transports.pop(node_id, None)
        if transport is None:
            return
        transport.is_down.set()
        ended = {pair for pair in self._connections if node_id in pair}
        self._connections -= ended
        for caller, callee in sorted(ended):
            if callee == node_id:
                self._in_background(self._break_off(callee, caller), "connection lost")

    def cut(self, sender: str, receiver: str) -> None:
        """Lose whatever goes from one node to another, this way only."""
        self._cuts.add((sender, receiver))

    def partition(self, *sides: tuple[str, ...]) -> None:
        """Cut every way between nodes of different sides, and no other."""
        self._cuts = {
            (a, b) for one in sides for other in sides if one is not other for a in one for b in other
        }

    def heal(self) -> None:
        """Take back every cut."""
        self._cuts.clear()

    def is_joined(self, sender: str, receiver: str) -> bool:
        """Whether a message would arrive but for chance."""
        return receiver in self._transports and (sender, receiver) not in self._cuts

    async def close(self) -> None:
        """End what is on its way."""
        late, self._late = self._late, set()
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    async def carry(self, sender: str, receiver: str, message: msg.Request) -> msg.Response:
        """Carry a request there and its answer back; for ever where either is lost.

        Raises:
            RemoteCallFailed: The receiver is not up, or could not answer.
        """
        content = to_proto(message)
        if not await self._arrives(sender, receiver):
            await asyncio.Event().wait()
        target = self._transports.get(receiver)
        if target is None:
            if not await self._arrives(receiver, sender):
                await asyncio.Event().wait()
            raise RemoteCallFailed("UNAVAILABLE: connection refused", "refused")
        self._connections.add((sender, receiver))
        if self._rng.random() < self.weather.duplicates:
            self._in_background(self._repeat(sender, receiver, message), "duplicate")
        self.delivered += 1
        request = from_proto(type(content).FromString(content.SerializeToString()))
        try:
            answer = to_proto(await _unless_down(target, target.handle(sender, request)))
        except TimeoutError:
            raise RemoteCallFailed("INTERNAL: the node did not answer in time") from None
        except _WentDownError:
            if not await self._arrives(receiver, sender):
                await asyncio.Event().wait()
            raise RemoteCallFailed("UNAVAILABLE: socket closed", "lost") from None
        if not await self._arrives(receiver, sender):
            await asyncio.Event().wait()
        response: msg.Response = from_proto(type(answer).FromString(answer.SerializeToString()))
        return response

    def _in_background(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._late.add(task)
        task.add_done_callback(self._late.discard)

    async def _break_off(self, lost: str, caller: str) -> None:
        arrives = await self._arrives(lost, caller)
        transport = self._transports.get(caller)
        if arrives and transport is not None:
            transport.connection_lost(lost)

    async def _repeat(self, sender: str, receiver: str, message: msg.Request) -> None:
        arrives = await self._arrives(sender, receiver)
        target = self._transports.get(receiver)
        if arrives and target is not None:
            self.delivered += 1
            try:
                await target.handle(sender, message)
            except (RemoteCallFailed, TimeoutError):
                return  # nobody waits for this answer

    async def _arrives(self, sender: str, receiver: str) -> bool:
        """Return once the message is there, or when it would have been."""
        lost = self._rng.random() < self.weather.loss
        await asyncio.sleep(self._rng.uniform(*self.weather.latency_seconds))
        return not lost and (sender, receiver) not in self._cuts


class MemoryTransport(Transport):
    """One node's end of a `MemoryNetwork`; made by `MemoryNetwork.join`."""

    def __init__(self, network: MemoryNetwork, node_id: str) -> None:
        super().__init__()
        self._network = network
        self._node_id = node_id
        #: Set when the node is taken down.
        self.is_down = asyncio.Event()

    async def call(self, peer: str, message: msg.Request, deadline_seconds: float) -> msg.Response:
        """See `Transport.call`."""
        try:
            async with asyncio.timeout(deadline_seconds):
                return await self._network.carry(self._node_id, peer, message)
        except TimeoutError:
            raise RemoteCallFailed("DEADLINE_EXCEEDED: no answer came", "deadline") from None


class _WentDownError(Exception):
    """The node was taken down before it answered."""


async def _unless_down(target: MemoryTransport, work: Coroutine[Any, Any, msg.Response]) -> msg.Response:
    """Wait for a node's answer, or raise as soon as the node is taken down.

    Raises:
        _WentDownError: It was.
    """
    answering = asyncio.create_task(work, name="answer")
    going = asyncio.create_task(target.is_down.wait(), name="goes down")
    try:
        await asyncio.wait({answering, going}, return_when=asyncio.FIRST_COMPLETED)
        if answering.done():
            return answering.result()
        raise _WentDownError
    finally:
        answering.cancel()
        going.cancel()
