"""The node's durable state in one file, and the lock of its data folder.

Layout of the state file: the 8 bytes ``macmesh1``, the CRC-32 of the payload and its length as big-endian
unsigned 32-bit integers, then the payload: a serialized ``macmesh.v1.PersistentState``.
"""

import fcntl
import os
import struct
import sys
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Self, cast

from google.protobuf.message import DecodeError

from macmesh.v1 import state_pb2
from macmesh_daemon.cluster.state import PersistentState

from .codec import from_proto, to_proto
from .errors import LocalDataFolderBusy, LocalStateCorrupt, LocalStateNotWritable

if TYPE_CHECKING:
    from types import TracebackType

_MAGIC = b"macmesh1"
_HEADER = struct.Struct(">8sII")


def _flush_to_disk(descriptor: int) -> None:
    """Flush a file to the medium. On macOS fsync stops at the drive's cache; F_FULLFSYNC does not."""
    if sys.platform == "darwin":
        try:
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
        except OSError:
            os.fsync(descriptor)  # file systems without F_FULLFSYNC, such as network mounts
    else:
        os.fsync(descriptor)


class StateStore:
    """The file of a node's `PersistentState`.

    A crash at any point leaves the state before or the state after, never a mixture. Not safe for two
    processes: hold a `DataFolderLock`. Both methods block; call them off the event loop.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "cluster-state"
        self._temporary = folder / "cluster-state.new"

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    def load(self) -> PersistentState:
        """Read the state; a node that never stored any has `PersistentState()`.

        Raises:
            LocalStateCorrupt: The file is torn, damaged or not ours.
        """
        try:
            content = self._path.read_bytes()
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
            descriptor = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            try:
                view = memoryview(content)
                while view:
                    view = view[os.write(descriptor, view) :]
                _flush_to_disk(descriptor)
            finally:
                os.close(descriptor)
            self._temporary.replace(self._path)
            folder = os.open(self._path.parent, os.O_RDONLY)
            try:
                _flush_to_disk(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise LocalStateNotWritable(self._path, error) from error


class DataFolderLock:
    """Keeps a second daemon off the same data folder, as a context manager.

    The lock is the kernel's: it goes with the process, however that ends.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / "daemon.lock"
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock at once.

        Raises:
            LocalDataFolderBusy: Another process holds it.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            text = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
            os.close(descriptor)
            raise LocalDataFolderBusy(self._folder, int(text) if text.isdigit() else None) from error
        except BaseException:
            os.close(descriptor)
            raise
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode("ascii"), 0)
        self._descriptor = descriptor

    def release(self) -> None:
        """Give the lock back; harmless where it is not held."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Self:
        """Take the lock, as `acquire` does."""
        self.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: "TracebackType | None",
    ) -> None:
        """Give the lock back."""
        self.release()
