"""The node's durable state in one file.

Layout of the state file: the 8 bytes ``macmesh1``, the CRC-32 of the payload and its length as big-endian
unsigned 32-bit integers, then the payload: a serialized ``macmesh.v1.PersistentState``.
"""

import struct
import zlib
from pathlib import Path
from typing import cast

from google.protobuf.message import DecodeError

from macmesh.v1 import state_pb2
from macmesh_daemon.cluster.state import PersistentState
from macmesh_daemon.files import make_durable, write_durably

from .codec import from_proto, to_proto
from .errors import LocalStateCorrupt, LocalStateNotWritable

_MAGIC = b"macmesh1"
_HEADER = struct.Struct(">8sII")


class StateStore:
    """The file of a node's `PersistentState`.

    A crash at any point leaves the state before or the state after, never a mixture. Not safe for two
    processes: hold the folder's `FolderLock`. Both methods block; call them off the event loop.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "cluster-state"

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    def load(self) -> PersistentState:
        """Read the state; a node that never stored any has `PersistentState()`.

        What it gives survives a power loss: a daemon that was killed right after it had renamed the file left
        the new state to be read, but perhaps not yet on the drive, and the next one acts on what it reads.

        Raises:
            LocalStateCorrupt: The file is torn, damaged or not ours.
        """
        try:
            content = self._path.read_bytes()
            make_durable(self._path.parent)
        except FileNotFoundError:
            return PersistentState()
        except OSError as error:
            raise LocalStateCorrupt(self._path, f"it cannot be read ({error})") from error
        if len(content) < _HEADER.size:
            raise LocalStateCorrupt(self._path, f"only {len(content)} bytes are there")
        magic, checksum, length = _HEADER.unpack_from(content)
        payload = content[_HEADER.size :]
        if magic != _MAGIC:
            raise LocalStateCorrupt(self._path, "it does not begin as a state file does")
        if length != len(payload):
            raise LocalStateCorrupt(self._path, f"it should hold {length} bytes, {len(payload)} are there")
        if checksum != zlib.crc32(payload):
            raise LocalStateCorrupt(self._path, "its checksum is wrong")
        message = state_pb2.PersistentState()
        try:
            message.ParseFromString(payload)
        except DecodeError as error:
            raise LocalStateCorrupt(self._path, f"it cannot be decoded ({error})") from error
        return cast("PersistentState", from_proto(message))

    def save(self, state: PersistentState) -> None:
        """Replace the state. When this returns, the new state survives a power loss.

        Raises:
            LocalStateNotWritable: It may not; the old or the new state is there.
        """
        payload = to_proto(state).SerializeToString(deterministic=True)
        content = _HEADER.pack(_MAGIC, zlib.crc32(payload), len(payload)) + payload
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_durably(self._path, content)
        except OSError as error:
            raise LocalStateNotWritable(self._path, error) from error
