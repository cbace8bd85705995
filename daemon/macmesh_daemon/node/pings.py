"""Asks one worker for its figures, and keeps the newest that it gave."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Final

from macmesh.reasons import Reason
from macmesh.v1 import lane_pb2, peer_pb2
from macmesh_daemon.node.call_errors import CallError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

#: The supervisor's own pings count up from 1; these never meet them.
_FIRST_NONCE: Final = 1 << 32


class Pings:
    """The pings of one worker that wait for their answer. Belongs to the running event loop."""

    def __init__(self) -> None:
        self._nonces = itertools.count(_FIRST_NONCE)
        self._waiting: dict[int, asyncio.Future[lane_pb2.PongWorker]] = {}
        self._newest: tuple[lane_pb2.PongWorker, float] | None = None
        self._ended = False

    async def ask(
        self, ping: Callable[[int], Awaitable[None]], deadline_seconds: float
    ) -> peer_pb2.StageStats:
        """What the worker says now.

        A worker answers between two steps. Where the step that it is in lasts longer than the deadline, the newest
        figures that it gave before are the answer, with their age.

        Args:
            ping: Sends it a ping with this nonce.
            deadline_seconds: Longest wait for the answer.

        Raises:
            CallError: The worker ended, or has never given figures and did not do so in time.
        """
        if self._ended:
            raise _ended()
        loop = asyncio.get_running_loop()
        nonce = next(self._nonces)
        answer = self._waiting[nonce] = loop.create_future()
        try:
            async with asyncio.timeout(deadline_seconds):
                await ping(nonce)
                return stats_of(await answer)
        except TimeoutError:
            if self._newest is None:
                raise CallError(
                    Reason.NOT_READY,
                    f"the worker gave no figures within {deadline_seconds:g} s and none before; it is still "
                    "loading or in a long step: try again",
                ) from None
            pong, told_at = self._newest
            return stats_of(pong, age_seconds=max(loop.time() - told_at, deadline_seconds))
        finally:
            del self._waiting[nonce]

    def newest(self) -> peer_pb2.StageStats:
        """The newest figures that the worker gave, to whomever, with their age; it is not asked.

        Raises:
            CallError: The worker ended, or has never given figures.
        """
        if self._ended:
            raise _ended()
        if self._newest is None:
            raise CallError(Reason.NOT_READY, "the worker has given no figures yet; try again shortly")
        pong, told_at = self._newest
        return stats_of(pong, age_seconds=asyncio.get_running_loop().time() - told_at)

    def take(self, pong: lane_pb2.PongWorker) -> None:
        """An answer of the worker, to whomever."""
        self._newest = (pong, asyncio.get_running_loop().time())
        answer = self._waiting.get(pong.nonce)
        if answer is not None and not answer.done():
            answer.set_result(pong)

    def end(self) -> None:
        """The worker has ended: nothing is answered any more."""
        self._ended = True
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(_ended())


def _ended() -> CallError:
    return CallError(Reason.WORKER_FAILED, "the worker has ended; see `daemonctl status` for the reason")


def stats_of(pong: lane_pb2.PongWorker, *, age_seconds: float = 0.0) -> peer_pb2.StageStats:
    """A worker's answer as nodes and clients are told it: every phase and count of its times by name."""
    stats = peer_pb2.StageStats(
        steps=pong.steps,
        active_memory_bytes=pong.active_memory_bytes,
        peak_memory_bytes=pong.peak_memory_bytes,
        age_seconds=age_seconds,
        scheduler=pong.scheduler if pong.HasField("scheduler") else None,
    )
    if not pong.HasField("times"):
        return stats
    for field in lane_pb2.StepTimes.DESCRIPTOR.fields:
        value = getattr(pong.times, field.name)
        if isinstance(value, lane_pb2.PhaseTime):
            stats.phases.append(
                peer_pb2.StagePhase(name=field.name, seconds=value.seconds, count=value.count)
            )
        else:
            stats.counters.append(peer_pb2.StageCounter(name=field.name, value=value))
    return stats
