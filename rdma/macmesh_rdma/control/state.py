"""What waits for one connection, and whether its other end lives. Pure: the time is an argument."""

import collections
import struct
from typing import Literal

from macmesh_rdma.errors import LocalLaneFullError

LENGTH = struct.Struct(">I")
NONCE = struct.Struct(">Q")
#: The first byte of a frame's body.
MESSAGE, PING, PONG = b"m", b"p", b"q"


def encode_frame(kind: bytes, body: bytes = b"") -> bytes:
    """A frame: 4 bytes of length, big-endian, over one byte of kind and the body."""
    return LENGTH.pack(len(kind) + len(body)) + kind + body


class Outbox:
    """Frames that wait for one connection: messages in order, signs of life ahead of them.

    Args:
        max_bytes: messages may wait up to this; one always fits.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._frames: collections.deque[tuple[bytes, float]] = collections.deque()
        self._signs: dict[bytes, bytes] = {}
        self._last_words = b""
        self._taken: tuple[int, float] | None = None
        self.waiting_bytes = 0
        """Bytes of the messages that wait, the one being written included."""

    def has_room(self, size_bytes: int) -> bool:
        """Whether a message of that size may wait too."""
        return self.waiting_bytes == 0 or self.waiting_bytes + size_bytes <= self._max_bytes

    def put(self, frame: bytes, deadline: float) -> None:
        """Queues a message that the system must have taken by `deadline`.

        Raises:
            LocalLaneFullError: there is no room for it.
        """
        if not self.has_room(len(frame)):
            raise LocalLaneFullError(
                f"{self.waiting_bytes} bytes wait already and {len(frame)} more would pass the limit of "
                f"{self._max_bytes}; the other side reads too slowly"
            )
        self.waiting_bytes += len(frame)
        self._frames.append((frame, deadline))

    def put_sign(self, kind: bytes, nonce: int) -> None:
        """Queues a ping or a pong ahead of all messages; a later one of its kind replaces it."""
        self._signs[kind] = encode_frame(kind, NONCE.pack(nonce))

    def put_last(self, frame: bytes) -> None:
        """Drops what waits for the last words."""
        self._frames.clear()
        self._signs.clear()
        self.waiting_bytes = 0
        self._last_words = frame

    def take(self) -> bytes | None:
        """The next frame to write; None where nothing waits. `written` must follow."""
        if self._signs:
            return self._signs.pop(next(iter(self._signs)))
        if self._last_words:
            frame, self._last_words = self._last_words, b""
            return frame
        if not self._frames:
            return None
        frame, deadline = self._frames.popleft()
        self._taken = (len(frame), deadline)
        return frame

    def written(self) -> None:
        """The system has taken the frame that was taken last."""
        if self._taken is not None:
            self.waiting_bytes = max(0, self.waiting_bytes - self._taken[0])
            self._taken = None

    @property
    def empty(self) -> bool:
        """Whether nothing waits and nothing is being written."""
        return not (self._frames or self._signs or self._last_words or self._taken)

    def is_overdue(self, now: float) -> bool:
        """Whether a message has waited past its deadline."""
        if self._taken is not None and self._taken[1] <= now:
            return True
        return bool(self._frames) and self._frames[0][1] <= now


class Keepalive:
    """When to ping, and when the other side is lost.

    Every ping must be answered, so that a peer that writes but does not read is noticed too.

    Args:
        ping_interval_seconds: distance of the pings.
        silence_deadline_seconds: longest wait for an answer.
        now: the time.
    """

    def __init__(self, ping_interval_seconds: float, silence_deadline_seconds: float, now: float) -> None:
        self._interval = ping_interval_seconds
        self._deadline = silence_deadline_seconds
        self._unanswered: collections.deque[tuple[int, float]] = collections.deque()
        self._next_ping = now + ping_interval_seconds
        self._last_tick = now
        self.nonce = 0
        """Number of the latest ping."""

    def tick(self, now: float) -> Literal["wait", "ping", "lost"]:
        """What to do now. To be called several times in each interval."""
        late = now - self._last_tick > self._interval
        self._last_tick = now
        if late:
            # This process did not run: its own pings are old, but answers may lie unread in the socket.
            self._unanswered = collections.deque((nonce, now) for nonce, _ in self._unanswered)
        if self._unanswered and now - self._unanswered[0][1] >= self._deadline:
            return "lost"
        if now < self._next_ping:
            return "wait"
        self._next_ping = now + self._interval
        self.nonce += 1
        self._unanswered.append((self.nonce, now))
        return "ping"

    def answered(self, nonce: int) -> bool:
        """Takes a pong, which answers all pings up to its own; False where no such ping was sent."""
        if not 0 < nonce <= self.nonce:
            return False
        while self._unanswered and self._unanswered[0][0] <= nonce:
            self._unanswered.popleft()
        return True
