"""What the daemon may ask of a worker, whatever runs behind it."""

import abc
from collections.abc import AsyncIterator, Callable

from macmesh.v1 import lane_pb2, peer_pb2
from macmesh_daemon.supervisor.errors import LocalWorkerStateError

FINAL_STATES = frozenset({peer_pb2.WORKER_STATE_FAILED, peer_pb2.WORKER_STATE_STOPPED})


class Worker(abc.ABC):
    """One worker process: started once, ended once, and between the two it may serve several epochs in turn.

    The life of one epoch as seen in `events`::

        STARTING -> LOADING ... -> LOADED -> (set_peers) -> READY -> STOPPED or FAILED

    * Reports of LOADING repeat while the weights load. LOADED carries the addresses of both lanes.
    * A request handed in by `submit` ends in exactly one of: a progress with a finish reason, or a failure.
      If the epoch ends first, the failure has the reason ``WORKER_FAILED``.
    * The last event is always a report of STOPPED (`stop` or `retire` was called) or FAILED (all else, also SIGKILL).
      It comes after the process has ended and nothing of the worker is left; or, with ``resting`` set, once nothing of
      the epoch is left in a process that lives on. Nothing of an epoch comes after it.
    * A worker that rests holds its weights and does nothing. `restart` gives it a stage, of which `events` then tells.
    """

    @property
    @abc.abstractmethod
    def pid(self) -> int | None:
        """Process id while the process lives, else None."""

    @abc.abstractmethod
    async def start(self, start: lane_pb2.StartStage) -> None:
        """Starts the process and hands it its stage; returns before anything is loaded.

        Raises:
            LocalWorkerStateError: the worker was started before.
            LocalWorkerStartError: the process could not be started. `events` then ends with FAILED too.
        """

    @property
    @abc.abstractmethod
    def resting(self) -> bool:
        """Whether its epoch has ended, while the process lives on with its weights."""

    @abc.abstractmethod
    async def retire(self, deadline_seconds: float) -> None:
        """Ends the epoch and keeps the process; kills it where the epoch has not ended after `deadline_seconds`.

        Returns once the worker rests or the process is gone: some cannot rest, and end. Does nothing where the epoch
        has ended already.
        """

    @abc.abstractmethod
    async def restart(self, start: lane_pb2.StartStage) -> None:
        """Hands its next stage to a worker that rests; returns before anything is loaded.

        Raises:
            LocalWorkerStateError: it does not rest.
            RemoteWorkerEndedError: it has ended while it rested.
        """

    @abc.abstractmethod
    async def send(self, command: lane_pb2.WorkerCommand) -> None:
        """Hands over one command; returns once it is on its way.

        Raises:
            LocalWorkerStateError: the worker was not started.
            RemoteWorkerEndedError: the worker has ended.
        """

    @abc.abstractmethod
    def events(self) -> AsyncIterator[lane_pb2.WorkerEvent]:
        """Everything the worker tells of its epoch, in order; for one reader. Ends after the final report."""

    @abc.abstractmethod
    async def stop(self, deadline_seconds: float) -> None:
        """Asks the worker to end, and kills it where it has not ended after `deadline_seconds`.

        Returns once the process is gone. May be called in any state and more than once.
        """

    @abc.abstractmethod
    def kill(self, reason: str) -> None:
        """Kills the process at once, as a fault would: `events` ends with FAILED. Nothing where none lives."""

    async def set_peers(self, peers: peer_pb2.SetPeersRequest) -> None:
        """Says where the other stages listen."""
        await self.send(lane_pb2.WorkerCommand(peers=peers))

    async def submit(self, request: peer_pb2.RunRequestRequest) -> None:
        """Hands a request to a head."""
        await self.send(lane_pb2.WorkerCommand(submit=lane_pb2.SubmitRequest(request=request)))

    async def cancel(self, request_id: str) -> None:
        """Ends a request; unknown ids are ignored, as the request may just have ended."""
        await self.send(lane_pb2.WorkerCommand(cancel=lane_pb2.CancelRequest(request_id=request_id)))

    async def ping(self, nonce: int) -> None:
        """Asks for a sign of life of the inference loop."""
        await self.send(lane_pb2.WorkerCommand(ping=lane_pb2.PingWorker(nonce=nonce)))


WorkerFactory = Callable[[], Worker]
"""Makes workers that are not started yet."""


def require_start(command: lane_pb2.WorkerCommand) -> None:
    """Refuses a start command given to `Worker.send`.

    Raises:
        LocalWorkerStateError: it is one.
    """
    if command.WhichOneof("command") == "start":
        raise LocalWorkerStateError(
            "a worker is started by start(), once, and given another stage by restart()"
        )
