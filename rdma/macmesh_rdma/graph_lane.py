"""What transfers inside MLX's graphs promise, whatever carries them."""

import abc
import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import mlx.core as mx

Facts = tuple[tuple[int, ...], "mx.Dtype"]
"""Shape and dtype of an array that comes."""


class GraphLane(abc.ABC):
    """Payloads of arrays between ranks, described as operations of a graph.

    `receive` and `send` describe; evaluating what they return does it. So a step that begins with a receive can be
    queued before the peer has sent anything. A lane may also wait, or evaluate, as soon as it is described.

    * Payloads from one rank to another arrive whole and in the order in which they were described, on both sides, no
      matter how and how many together they are evaluated. Each must be evaluated, on both sides.
    * A send and a receive that are evaluated together, and of which neither depends on the other, may be done in any
      order: evaluate first what the peer waits for. A send may wait for the receiver once a lane's buffers are full.
    * Whoever receives says shapes and dtypes; they must be those that were sent.
    * Evaluations, of whatever depends on the lane, happen inside `guarded`, which raises the lane's errors. Values are
      valid only once it was left without one.
    * All calls but `abort` come from the thread that made the lane.
    * Any error ends the lane on both sides, for ever.

    Deadlines: a receive that has begun waits for its payload no longer than the lane's deadline. It begins when those
    before it are done, so do not queue one for what the peer will not send soon.

    Errors of `guarded`, `flush` and `drain`:
        LocalLaneStateError: the lane was closed or aborted here.
        RemotePeerLostError: the peer has gone; RemoteAbortedError: it gave up.
        RemoteTimeoutError: nothing came in time.
        RemoteMismatchError: the two sides did not do the same.
    """

    name: str
    """What carries it, for people."""

    reads_apart: bool
    """Whether the host can read a payload as soon as it is here only where that was evaluated by itself, before what
    depends on it."""

    @abc.abstractmethod
    def receive(self, peer: int, facts: Sequence[Facts]) -> "list[mx.array]":
        """Describes the next payload from a peer, of one array or more.

        Raises:
            LocalLaneStateError: the lane is closed, there is no such peer, or the payload is larger than it can carry.
        """

    @abc.abstractmethod
    def send(self, peer: int, arrays: "Sequence[mx.array]") -> "mx.array":
        """Describes the sending of a payload of one array or more.

        Returns:
            What has to be evaluated; its value says nothing.

        Raises:
            LocalLaneStateError: the lane is closed, there is no such peer, or the payload is larger than it can carry.
        """

    def read(self, peer: int, number: int, size_bytes: int) -> bytes | None:  # noqa: ARG002  for lanes that can
        """Waits on the host for a payload of one array, and reads it past MLX.

        To be called inside `guarded`, after its receive was described. That has still to be evaluated.

        Args:
            peer: who sends it.
            number: of the payload; those from one peer count from 1.
            size_bytes: of the array.

        Returns:
            The array's bytes, before MLX has them; None where that cannot be: evaluate the array then.

        Raises:
            LocalLaneStateError: it was sent so long ago that another one lies in its place.
        """
        return None

    @abc.abstractmethod
    def guarded(self) -> contextlib.AbstractContextManager[None]:
        """Raises the lane's errors in place of what MLX makes of them; other errors pass."""

    @abc.abstractmethod
    def flush(self, peer: int) -> None:
        """Returns when all that was queued for a peer has left, so that another lane may use the link."""

    @abc.abstractmethod
    def drain(self, peer: int) -> None:
        """Returns when all that was queued to come from a peer is here."""

    @abc.abstractmethod
    def abort(self, reason: str) -> None:
        """Ends the lane and every wait in it, and tells the peers why. From any thread."""

    @abc.abstractmethod
    def close(self) -> None:
        """Gives the lane up, once nothing queued needs it. Harmless when repeated."""
