"""Who speaks on a connection between two ranks, and what for, as it travels."""

import dataclasses
import enum
import struct

from macmesh_rdma.errors import LocalOptionError, RemoteAuthenticationError

MAGIC = b"MMHS"
VERSION = 1
NONCE_BYTES = 32
DIGEST_BYTES = 16
MOST_NAME_BYTES = 255

_PREFIX = struct.Struct("<4sBH")
_FIELDS = struct.Struct(f"<QQQHHHBBB{DIGEST_BYTES}s{NONCE_BYTES}s")
PREFIX_BYTES = _PREFIX.size
"""Bytes before the body of an introduction."""

EpochNumbers = tuple[int, int, int]
"""Generation, term and sequence of a plan."""


class Purpose(enum.IntEnum):
    """What a connection is for."""

    SIDE = 1
    """Says how the links are made, then carries only the end."""
    TCP = 2
    """A socket of a ``tcp`` link."""
    SHM = 3
    """Passes the descriptors of a ``shm`` link, then is closed."""
    VERBS = 4
    """The control socket of a ``verbs`` link, or a socket to measure beside it."""


@dataclasses.dataclass(frozen=True)
class Introduction:
    """Who speaks on a connection, to whom, and what for.

    Raises:
        LocalOptionError: the name is too long, or a number out of its range.
    """

    name: str
    epoch: EpochNumbers
    source: int
    target: int
    size: int
    purpose: Purpose
    lane: int
    stripe: int
    digest: bytes
    nonce: bytes

    def __post_init__(self) -> None:
        if len(self.digest) != DIGEST_BYTES or len(self.nonce) != NONCE_BYTES:
            raise LocalOptionError("a digest has 16 bytes and a nonce 32")
        if len(self.name.encode()) > MOST_NAME_BYTES:
            raise LocalOptionError(f"a group's name has at most {MOST_NAME_BYTES} bytes")
        self.encode()

    def encode(self) -> bytes:
        """The introduction with its prefix."""
        try:
            fields = _FIELDS.pack(
                *self.epoch,
                self.source,
                self.target,
                self.size,
                self.purpose,
                self.lane,
                self.stripe,
                self.digest,
                self.nonce,
            )
        except struct.error as error:
            raise LocalOptionError(f"epoch, ranks, lane or stripe is out of range: {error}") from error
        body = fields + self.name.encode()
        return _PREFIX.pack(MAGIC, VERSION, len(body)) + body

    @property
    def epoch_text(self) -> str:
        """Such as "1.4.2"."""
        return ".".join(map(str, self.epoch))

    def difference(self, own: "Introduction") -> str:
        """How the peer's introduction differs from what ours makes expect; empty where it fits."""
        if self.name != own.name or self.epoch != own.epoch:
            return (
                f"the peer is in group {self.name!r} of epoch {self.epoch_text}, "
                f"we are in {own.name!r} of epoch {own.epoch_text}"
            )
        if self.size != own.size:
            return f"the peer's group has {self.size} ranks, ours {own.size}"
        if (self.source, self.target) != (own.target, own.source):
            return (
                f"the peer is rank {self.source} and looks for rank {self.target}, "
                f"we are rank {own.source} and look for rank {own.target}"
            )
        if self.digest != own.digest:
            return "the peer has other link options or another provider than we do"
        return ""


def body_bytes(prefix: bytes) -> int:
    """How many bytes follow an introduction's prefix.

    Raises:
        RemoteAuthenticationError: it is none of ours, or of another version.
    """
    magic, version, length = _PREFIX.unpack(prefix)
    if magic != MAGIC:
        raise RemoteAuthenticationError("whoever is connected does not speak the protocol of the lanes")
    if version != VERSION:
        raise RemoteAuthenticationError(
            f"the peer speaks version {version} of the lanes' protocol, we speak {VERSION}"
        )
    if not _FIELDS.size <= length <= _FIELDS.size + MOST_NAME_BYTES:
        raise RemoteAuthenticationError(f"an introduction of {length} bytes came")
    return int(length)


def decode_introduction(body: bytes) -> Introduction:
    """An introduction without its prefix, not to be believed yet.

    Raises:
        RemoteAuthenticationError: it is none.
    """
    generation, term, seq, source, target, size, purpose, lane, stripe, digest, nonce = _FIELDS.unpack_from(
        body
    )
    try:
        return Introduction(
            name=body[_FIELDS.size :].decode(),
            epoch=(generation, term, seq),
            source=source,
            target=target,
            size=size,
            purpose=Purpose(purpose),
            lane=lane,
            stripe=stripe,
            digest=digest,
            nonce=nonce,
        )
    except ValueError as error:
        raise RemoteAuthenticationError(f"an introduction came that is none: {error}") from error
