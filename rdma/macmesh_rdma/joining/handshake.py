"""Mutual authentication of one connection between two ranks; no sockets here.

Four messages, all integers little-endian::

    dialer   -> acceptor   HELLO    "MMHS", version, length, introduction
    acceptor -> dialer     ANSWER   "MMHS", version, length, introduction, proof of the acceptor
    dialer   -> acceptor   PROOF    proof of the dialer
    acceptor -> dialer     VERDICT  length, text (empty: welcome), seal

An introduction names group, epoch, ranks, purpose and a digest of the options, and carries 32 fresh random bytes.
The proofs are HMAC-SHA256 under the epoch's key, over all that was said before and under a label for each role, so
that none can be replayed, reflected or moved to another connection, rank, purpose or epoch. What an introduction says
is believed only once its sender has proved that it holds the key. Then the acceptor compares the introductions and
says whether they fit; the dialer compares them too.

Nothing is encrypted, here or later: the key keeps strangers out, not listeners.
"""

import hashlib
import hmac
import struct
from collections.abc import Callable

from macmesh_rdma.errors import (
    LocalOptionError,
    RemoteAuthenticationError,
    RemoteMismatchError,
    TransportError,
)
from macmesh_rdma.joining.introduction import PREFIX_BYTES, Introduction, body_bytes, decode_introduction

PROOF_BYTES = 32
LEAST_KEY_BYTES = 16
MOST_VERDICT_BYTES = 1000

_LENGTH = struct.Struct("<H")


class Handshake:
    """One end of a handshake: give it exactly the bytes it asks for, and send what it wants sent.

    Attributes:
        peer: The peer's introduction once it has proved that it holds the key; None before.
        claimed: The peer's introduction, not to be believed.
    """

    def __init__(self) -> None:
        self.peer: Introduction | None = None
        self.claimed: Introduction | None = None
        self._outgoing = bytearray()
        self._received = bytearray()
        self._missing = 0
        self._take: Callable[[bytes], None] = _done
        self._failed = False

    @property
    def missing_bytes(self) -> int:
        """How many bytes it waits for; 0: it is finished."""
        return 0 if self._failed else self._missing - len(self._received)

    @property
    def finished(self) -> bool:
        """Whether both sides are proved and agree. What is to be sent must still be sent."""
        return self.missing_bytes == 0 and not self._failed

    def take_outgoing(self) -> bytes:
        """What must be sent now; given once. Also to be sent, as far as possible, after an error."""
        outgoing = bytes(self._outgoing)
        self._outgoing.clear()
        return outgoing

    def feed(self, data: bytes) -> None:
        """Takes bytes from the peer, at most `missing_bytes`.

        Raises:
            RemoteAuthenticationError: it does not speak our protocol or does not hold our key.
            RemoteMismatchError: it does, but is of another group, epoch, rank or other options.
            LocalOptionError: more bytes than were missing, or the handshake is over.
        """
        if self._failed or not data or len(data) > self.missing_bytes:
            raise LocalOptionError(f"{len(data)} bytes were fed, {self.missing_bytes} are missing")
        self._received += data
        if len(self._received) == self._missing:
            whole = bytes(self._received)
            self._received.clear()
            self._missing = 0
            try:
                self._take(whole)
            except TransportError:
                self._failed = True
                raise

    def _want(self, count: int, take: Callable[[bytes], None]) -> None:
        self._missing = count
        self._take = take


class DialerHandshake(Handshake):
    """The end that dialled.

    Args:
        key: the epoch's key.
        own: our introduction.
    """

    def __init__(self, key: bytes, own: Introduction) -> None:
        super().__init__()
        self._key = _require_key(key)
        self._own = own
        self._said = own.encode()
        self._outgoing += self._said
        self._prefix = b""
        self._want(PREFIX_BYTES, self._take_prefix)

    def _take_prefix(self, raw: bytes) -> None:
        self._prefix = raw
        self._want(body_bytes(raw) + PROOF_BYTES, self._take_answer)

    def _take_answer(self, raw: bytes) -> None:
        body, proof = raw[:-PROOF_BYTES], raw[-PROOF_BYTES:]
        self.claimed = decode_introduction(body)
        self._said += self._prefix + body
        if not hmac.compare_digest(proof, _proof(self._key, b"acceptor", self._said)):
            raise RemoteAuthenticationError(
                f"whoever answers as rank {self._own.target} does not hold the key of epoch "
                f"{self._own.epoch_text}; it speaks of epoch {self.claimed.epoch_text}",
                peer=self._own.target,
                epoch=self._own.epoch_text,
            )
        self.peer = self.claimed
        self._said += proof
        # Proved also where the introductions differ, so that the other side can believe ours and say why.
        self._outgoing += _proof(self._key, b"dialer", self._said)
        self._want(_LENGTH.size, self._take_verdict_length)

    def _take_verdict_length(self, raw: bytes) -> None:
        (length,) = _LENGTH.unpack(raw)
        if length > MOST_VERDICT_BYTES:
            raise RemoteAuthenticationError(
                f"rank {self._own.target} sent a verdict of {length} bytes", peer=self._own.target
            )
        self._want(length + PROOF_BYTES, self._take_verdict)

    def _take_verdict(self, raw: bytes) -> None:
        text, seal = raw[:-PROOF_BYTES], raw[-PROOF_BYTES:]
        if not hmac.compare_digest(seal, _proof(self._key, b"verdict", self._said + text)):
            raise RemoteAuthenticationError(
                f"the verdict of rank {self._own.target} is not sealed with our key", peer=self._own.target
            )
        difference = self.peer.difference(self._own) if self.peer is not None else "it said nothing"
        if text or difference:
            said = text.decode(errors="replace")
            raise RemoteMismatchError(
                f"rank {self._own.target} turned us away: {said or difference}",
                peer=self._own.target,
                epoch=self._own.epoch_text,
            )


class AcceptorHandshake(Handshake):
    """The end that was dialled.

    Args:
        key: the epoch's key.
        own: makes our introduction to whoever claims to be what is given.
        judge: says why the dialer is turned away, after its proof; empty: it is welcome.
    """

    def __init__(
        self, key: bytes, own: Callable[[Introduction], Introduction], judge: Callable[[Introduction], str]
    ) -> None:
        super().__init__()
        self._key = _require_key(key)
        self._introduce = own
        self._judge = judge
        self._own: Introduction | None = None
        self._said = b""
        self._want(PREFIX_BYTES, self._take_prefix)

    def _take_prefix(self, raw: bytes) -> None:
        self._said = raw
        self._want(body_bytes(raw), self._take_hello)

    def _take_hello(self, raw: bytes) -> None:
        self.claimed = decode_introduction(raw)
        self._own = self._introduce(self.claimed)
        self._said += raw + self._own.encode()
        proof = _proof(self._key, b"acceptor", self._said)
        self._outgoing += self._own.encode() + proof
        self._said += proof
        self._want(PROOF_BYTES, self._take_proof)

    def _take_proof(self, raw: bytes) -> None:
        claimed, own = self.claimed, self._own
        if (
            claimed is None
            or own is None
            or not hmac.compare_digest(raw, _proof(self._key, b"dialer", self._said))
        ):
            raise RemoteAuthenticationError(
                "a stranger dialled: it does not hold the key"
                + (f" of epoch {own.epoch_text}" if own is not None else "")
            )
        self.peer = claimed
        text = claimed.difference(own) or self._judge(claimed)
        raw_text = text.encode()[:MOST_VERDICT_BYTES]
        seal = _proof(self._key, b"verdict", self._said + raw_text)
        self._outgoing += _LENGTH.pack(len(raw_text)) + raw_text + seal
        if text:
            raise RemoteMismatchError(
                f"rank {claimed.source} was turned away: {text}", peer=claimed.source, epoch=own.epoch_text
            )


def _done(_: bytes) -> None:
    raise LocalOptionError("the handshake is over")


def _require_key(key: bytes) -> bytes:
    if len(key) < LEAST_KEY_BYTES:
        raise LocalOptionError(f"an epoch's key has at least {LEAST_KEY_BYTES} bytes, not {len(key)}")
    return key


def _proof(key: bytes, role: bytes, said: bytes) -> bytes:
    return hmac.new(key, b"macmesh lane " + role + b"\0" + said, hashlib.sha256).digest()
