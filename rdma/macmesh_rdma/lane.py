"""What a tensor lane promises, whatever carries it."""

import abc
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import mlx.core as mx


class TensorLane(abc.ABC):
    """Carries arrays down a pipeline: from the previous stage, to the next one.

    * Arrays arrive whole, unchanged and in the order in which they were sent.
    * The lane carries bytes only. The receiver must know shape and dtype from the control lane; a provider
      that can tell raises `RemoteMismatchError`, one that cannot (``ring``) delivers garbage.
    * A receiver posts `receive` only when it knows that the sender has evaluated the array and sends it now:
      some providers spin on a core while a transfer is pending.
    * After any error the lane is broken: every later call raises `LocalLaneStateError`, nothing is retried.
    * All calls come from the one thread that opened the lane.

    Deadlines: each call that waits for the neighbour takes one. An *interruptible* lane raises
    `RemoteTimeoutError` when it passes. One that is not (MLX's own backends cannot be interrupted) calls the
    ``on_stall`` that it was opened with, from another thread, and that must end the process.
    """

    name: str
    """Name of the provider, as in a plan: such as "ring"."""

    interruptible: bool
    """Whether a wait ends by an exception when its deadline passes."""

    @abc.abstractmethod
    def send(self, array: "mx.array", timeout_seconds: float) -> None:
        """Sends an evaluated array to the next stage.

        Returns when the array is on its way, at the latest when the one before it has been delivered to the
        transport; at most two are on their way at once. The lane holds the array until it is gone.

        Raises:
            LocalLaneStateError: the lane is closed or broken, or there is no next stage.
            RemotePeerLostError: the next stage has gone; may be noticed only by a later call.
            RemoteTimeoutError: an earlier array was not taken in time.
        """

    @abc.abstractmethod
    def flush(self, timeout_seconds: float) -> None:
        """Returns when everything sent has left this process.

        Raises:
            LocalLaneStateError: the lane is closed or broken.
            RemotePeerLostError: the next stage has gone.
            RemoteTimeoutError: it was not taken in time.
        """

    @abc.abstractmethod
    def receive(self, shape: Sequence[int], dtype: "mx.Dtype", timeout_seconds: float) -> "mx.array":
        """The next array from the previous stage, evaluated.

        Raises:
            LocalLaneStateError: the lane is closed or broken, or there is no previous stage.
            RemotePeerLostError: the previous stage has gone.
            RemoteMismatchError: it sent another shape or dtype (where the provider can tell).
            RemoteTimeoutError: nothing whole came in time.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Gives up what the lane holds; harmless when repeated. Nothing is flushed."""
