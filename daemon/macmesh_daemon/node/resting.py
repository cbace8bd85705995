"""The worker process that outlived its epoch, until a plan takes it up or it is let go."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from macmesh_daemon.cluster.keeping import why_not_kept
from macmesh_daemon.logs import get_logger

if TYPE_CHECKING:
    from macmesh_daemon.cluster.messages import Deployment, Epoch
    from macmesh_daemon.node.recorder import Recorder
    from macmesh_daemon.supervisor.interface import Worker

_log = get_logger(part="stage host")

#: A resting worker does nothing that could keep it from ending at once.
END_DEADLINE_SECONDS = 2.0


@dataclass(frozen=True)
class Process:
    """How a stage came by its process.

    Attributes:
        kind: "new" (there was none), "kept" (that of the epoch before), or "replaced" (that could not be kept).
        reason: Why it was replaced, for people.
    """

    kind: str = "new"
    reason: str = ""


@dataclass(frozen=True)
class Resting:
    """A worker at rest, and what it ran last.

    Attributes:
        worker: It.
        epoch: Its last one.
        deployment: Of that epoch.
        sync_mode: "safe" or "fast", as its process was made with.
    """

    worker: Worker
    epoch: Epoch
    deployment: Deployment
    sync_mode: str


class RestingPlace:
    """Holds at most one resting worker, for a bounded time.

    Args:
        rest_seconds: Longest rest.
        recorder: Is told of its end.
        tasks: Runs the clock.
    """

    def __init__(self, *, rest_seconds: float, recorder: Recorder, tasks: asyncio.TaskGroup) -> None:
        self._rest_seconds = rest_seconds
        self._recorder = recorder
        self._tasks = tasks
        self._resting: Resting | None = None
        self._clock: asyncio.Task[None] | None = None
        self._dismissing = asyncio.Lock()
        self._before: Deployment | None = None
        self._why_gone = ""

    @property
    def is_empty(self) -> bool:
        """Whether no worker rests."""
        return self._resting is None

    def choose(self, deployment: Deployment) -> tuple[Resting | None, Process]:
        """Give out what rests, and say how a stage of ``deployment`` comes by its process.

        It takes the process over where that is "kept"; else the caller has what rested dismissed first.
        """
        resting, before = self.take(), self._before
        self._before = deployment
        if resting is not None:
            reason = why_replaced(resting, deployment)
            return resting, Process("replaced", reason) if reason else Process("kept")
        reason, self._why_gone = self._why_gone, ""
        if before is not None:
            reason = why_not_kept(before, deployment) or reason
        return None, Process("replaced", reason) if reason else Process()

    def expect(self, deadline_seconds: float) -> None:
        """A worker was asked to rest."""
        self._why_gone = f"it did not come to rest within {deadline_seconds:g} s"

    async def settled(self) -> None:
        """Wait until the end of a worker that is being dismissed; bounded by that worker's own deadlines."""
        async with self._dismissing:
            pass

    def lay(self, resting: Resting) -> None:
        """Take a worker that rests. The place must be empty."""
        self._resting, self._why_gone = resting, ""
        self._recorder.worker_rests(resting.epoch, resting.worker.pid)
        _log.info("worker rests", epoch=str(resting.epoch), pid=resting.worker.pid)
        self._clock = self._tasks.create_task(self._limit(resting), name="resting worker")

    def take(self) -> Resting | None:
        """Give the worker out; the caller sees to its end."""
        if self._clock is not None:
            self._clock.cancel()
        resting, self._resting, self._clock = self._resting, None, None
        return resting

    async def end(self, reason: str) -> None:
        """End the worker that rests, if there is one."""
        resting = self.take()
        if resting is not None:
            await self.dismiss(resting, reason)

    async def dismiss(self, resting: Resting, reason: str) -> None:
        """End a worker that was given out and that nobody can use."""
        pid = resting.worker.pid
        _log.info("resting worker ends", epoch=str(resting.epoch), pid=pid, reason=reason)
        async with self._dismissing:
            with contextlib.suppress(Exception):
                await resting.worker.stop(END_DEADLINE_SECONDS)
            self._recorder.worker_dismissed(resting.epoch, pid, reason)

    async def _limit(self, resting: Resting) -> None:
        await asyncio.sleep(self._rest_seconds)
        if self._resting is resting:
            self._resting = self._clock = None
            await self.dismiss(resting, f"no plan took it up within {self._rest_seconds:g} s")


def why_replaced(resting: Resting, after: Deployment, sync_mode: str = "") -> str:
    """Why a resting worker cannot take up a stage of ``after``; "" where it can.

    Args:
        resting: The worker.
        after: What is to run.
        sync_mode: "safe" or "fast", as it is to run; "" where that is not known yet.
    """
    if not resting.worker.resting:
        return "its process had ended while it rested"
    reason = why_not_kept(resting.deployment, after)
    if not reason and sync_mode and sync_mode != resting.sync_mode:
        return f"synchronisation {sync_mode} is in force in place of {resting.sync_mode}"
    return reason
