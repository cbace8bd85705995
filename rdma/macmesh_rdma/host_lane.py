"""What host transfers promise, whatever carries them."""

import abc
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import mlx.core as mx

#: The largest message of bytes.
MOST_MESSAGE_BYTES = 16 * 1024 * 1024


class HostLane(abc.ABC):
    """Carries arrays and messages between any two ranks, in the calling thread: no streams, no graph.

    * Arrays are read from and written to their own memory, so they must be evaluated and row-contiguous. Nothing is
      evaluated here.
    * What one rank sends to another arrives whole and in the order of the calls. Each call has its counterpart on the
      other side: `send` a `receive` or `receive_into`, `send_message` a `receive_message`.
    * One thread at a time for each peer and direction; another one is refused. The directions, and different peers,
      are free of each other.
    * A call returns when its arrays may be used again. That the peer has what was sent is not told; that it has gone
      may be noticed only by a later call.
    * Two ranks that send each other more than the buffers hold must receive in another thread meanwhile.
    * A wrong call (`LocalLaneStateError` for arrays or peers that cannot be) fails alone. Any other error ends the
      lane on both sides, for ever and with its reason: also a deadline that passed, so a deadline is no way to poll.

    Deadlines: ``timeout_seconds`` counts for the whole call; infinity stands for none. A wait costs no processor
    time, and ends when the lane is aborted or closed from another thread, or the peer has gone.

    Every method raises:
        LocalLaneStateError: the lane was closed or aborted here, there is no such peer, or the call is wrong.
        RemotePeerLostError: the peer has gone; RemoteAbortedError: it gave up and said why.
        RemoteTimeoutError: the deadline passed.
        RemoteMismatchError: the two sides did not do the same.
        RemoteCorruptError: what came is no frame.
    """

    @abc.abstractmethod
    def send(self, peer: int, arrays: Sequence["mx.array"], timeout_seconds: float) -> None:
        """Sends arrays together, with their shapes and dtypes; at most 4 GiB and some thousand arrays."""

    @abc.abstractmethod
    def receive_into(self, peer: int, arrays: Sequence["mx.array"], timeout_seconds: float) -> None:
        """Fills the memory of arrays that the caller has made, keeps, and shares with no other array.

        What is described on them but not evaluated computes with what has come. Whatever still reads them must have
        been evaluated before.

        Raises:
            RemoteMismatchError: other shapes, dtypes or numbers of arrays came; nothing was written.
        """

    @abc.abstractmethod
    def receive(self, peer: int, timeout_seconds: float) -> list["mx.array"]:
        """New arrays, evaluated, of whatever shapes and dtypes the sender gave."""

    @abc.abstractmethod
    def send_message(self, peer: int, data: bytes, timeout_seconds: float) -> None:
        """Sends bytes, `MOST_MESSAGE_BYTES` at most."""

    @abc.abstractmethod
    def receive_message(self, peer: int, timeout_seconds: float | None) -> bytes:
        """The next message; None waits until one comes."""

    @abc.abstractmethod
    def abort(self, reason: str) -> None:
        """Ends the lane and every wait in it, and tells the peers why. From any thread."""

    @abc.abstractmethod
    def close(self) -> None:
        """Ends the lane in order: what was sent before can still be received. Harmless when repeated."""
