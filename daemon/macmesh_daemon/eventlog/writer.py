"""Appends records to a node's event log without ever holding up the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from typing import IO, TYPE_CHECKING, Any, Final

from macmesh_daemon.eventlog.reader import FILE_NAME
from macmesh_daemon.eventlog.records import OWN_KEYS, Kind, Record
from macmesh_daemon.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from macmesh_daemon.clock import Clock

_log = get_logger(part="event log")

#: A file that has reached this is put aside as ``events.jsonl.1``, that one as ``.2``, and so on.
FILE_BYTES: Final = 8 * 2**20
#: Files kept, the current one included: the log takes at most this times `FILE_BYTES`, and one record more each.
FILES: Final = 4
#: Records that may wait to be written; beyond, new ones are counted as lost.
PENDING: Final = 20_000


class EventLog:
    """The log of one incarnation of a node.

    `record` is for the event loop's thread and never blocks. `flush` may be called from any thread and returns
    once everything recorded before is in the operating system's hands, so that it survives a SIGKILL of the
    daemon (not a power loss: what must, is in the state file). A log that cannot be written costs the node
    nothing but the log.
    """

    def __init__(
        self,
        folder: Path,
        *,
        node_id: str,
        incarnation: int,
        clock: Clock,
        wall_seconds: Callable[[], float] = time.time,
        file_bytes: int = FILE_BYTES,
        files: int = FILES,
        pending: int = PENDING,
    ) -> None:
        self._folder = folder
        self._node_id = node_id
        self._incarnation = incarnation
        self._clock = clock
        self._wall_seconds = wall_seconds
        self._file_bytes = file_bytes
        self._files = files
        self._limit = pending
        self._seq = 0
        self._lost = 0
        self._pending: deque[Record] = deque()
        self._writing: list[Record] = []
        self._wake = asyncio.Event()
        self._lock = threading.Lock()
        self._file: IO[bytes] | None = None
        self._complained = False

    @property
    def path(self) -> Path:
        """The file that is written now."""
        return self._folder / FILE_NAME

    @property
    def waiting(self) -> int:
        """Records that are not written yet."""
        return len(self._pending) + len(self._writing)

    def record(self, kind: Kind, **facts: Any) -> None:
        """Take a record; its facts must be what JSON can hold, and must not change any more.

        Raises:
            ValueError: A fact has a name that every record uses for itself.
        """
        if not OWN_KEYS.isdisjoint(facts):
            raise ValueError(
                f"facts of {kind.value!r} take names of the record: {sorted(OWN_KEYS & facts.keys())}"
            )
        if self.waiting >= self._limit:
            self._lost += 1
            return
        if self._lost:
            lost, self._lost = self._lost, 0
            self._append(Kind.LOST, {"count": lost})
        self._append(kind, facts)
        self._wake.set()

    def _append(self, kind: Kind, facts: dict[str, Any]) -> None:
        self._seq += 1
        self._pending.append(
            Record(
                node=self._node_id,
                incarnation=self._incarnation,
                seq=self._seq,
                wall=self._wall_seconds(),
                mono=self._clock.now(),
                kind=kind,
                facts=facts,
            )
        )

    async def run(self) -> None:
        """Write what is recorded, in a thread of its own, until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            await asyncio.to_thread(self.flush)

    def flush(self) -> None:
        """Write all that waits. Blocks. Never raises: trouble with the disk is logged, once."""
        with self._lock:
            while self._pending:  # the loop may append meanwhile: each step is atomic
                self._writing.append(self._pending.popleft())
            if not self._writing:
                return
            try:
                # Records stay until they are written: a full disk loses the newest, and says so.
                self._write([record.to_line().encode() + b"\n" for record in self._writing])
            except OSError as error:
                if not self._complained:
                    self._complained = True
                    _log.error("event log cannot be written", path=str(self.path), error=str(error))
                return
            self._complained = False
            self._writing.clear()

    def _write(self, lines: list[bytes]) -> None:
        block: list[bytes] = []
        file = self._opened()
        size = file.tell()
        for line in lines:
            if size >= self._file_bytes:
                _append_whole(file, b"".join(block))
                block = []
                file = self._rotated()
                size = 0
            block.append(line)
            size += len(line)
        _append_whole(file, b"".join(block))

    def _opened(self) -> IO[bytes]:
        if self._file is None:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file = self.path.open("ab", buffering=0)
            self.path.chmod(0o600)
            if self._file.tell() and not _ends_with_newline(self.path):
                self._file.write(b"\n")  # the last incarnation was killed in the middle of a line
        return self._file

    def _rotated(self) -> IO[bytes]:
        if self._file is not None:
            self._file.close()
            self._file = None
        oldest = self.path.with_name(f"{FILE_NAME}.{self._files - 1}")
        oldest.unlink(missing_ok=True)
        for number in range(self._files - 2, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                self.path.with_name(f"{FILE_NAME}.{number}").rename(
                    self.path.with_name(f"{FILE_NAME}.{number + 1}")
                )
        if self._files > 1:
            self.path.rename(self.path.with_name(f"{FILE_NAME}.1"))
        else:
            self.path.unlink()
        return self._opened()

    def close(self) -> None:
        """Write all that waits and close the file. Blocks."""
        self.flush()
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None


def _append_whole(file: IO[bytes], block: bytes) -> None:
    """Append the block, or put the file back to what it was.

    Raises:
        OSError: The disk is full or gone; the file ends as it did before, as far as it can be told.
    """
    start = file.tell()
    view = memoryview(block)
    try:
        while view:
            view = view[file.write(view) :]
    except OSError:
        with contextlib.suppress(OSError):
            file.truncate(start)
            file.seek(start)
        raise


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) == b"\n"
