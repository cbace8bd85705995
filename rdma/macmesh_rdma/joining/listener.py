"""Where the other ranks find this one: a TCP port and, on the same machine, a Unix socket."""

import contextlib
import fcntl
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from macmesh_rdma.errors import LocalAddressError, LocalInterruptedError, LocalResourceError
from macmesh_rdma.joining.endpoint import MOST_UNIX_PATH_BYTES, Endpoint

BACKLOG = 128
"""Connections that the system holds for us while nobody connects."""

STALE_SECONDS = 30.0
"""A folder younger than this is left alone: its maker may not have marked it yet."""
_PREFIX = "macmesh-lane-"


class Listener:
    """Listens for the other ranks, before, between and while groups are made.

    It lives as long as its process takes part in groups; any number of them is made through one listener, one at
    a time. Between them the system holds what connects.

    Args:
        host: literal address to bind; the port is chosen by the system.
        host_id: names this machine; see `Endpoint`.
        unix: whether to listen on a Unix socket too. It lies in a fresh folder that only this user can enter.
        on_stranger: is told why a connection was turned away; called in the thread that connects.

    Raises:
        LocalAddressError: the host cannot be bound.
        LocalResourceError: there are no descriptors or no folder left.
    """

    def __init__(
        self,
        host: str,
        *,
        host_id: str = "",
        unix: bool = True,
        on_stranger: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.on_stranger = on_stranger
        self._connecting = threading.Lock()
        self._closed = False
        self._resources = contextlib.ExitStack()
        with contextlib.ExitStack() as undo:
            undo.callback(self._resources.close)
            self._tcp = self._listen_on_tcp(host)
            try:
                self._unix = self._listen_on_unix() if unix else None
                self._wake, self._waker = socket.socketpair()
            except OSError as error:
                raise LocalResourceError(f"cannot listen for the ranks of this machine: {error}") from error
            for end in (self._wake, self._waker):
                self._resources.callback(end.close)
                end.settimeout(0)
            port = self._tcp.getsockname()[1]
            self.endpoint = Endpoint(
                host_id=host_id,
                unix_path=self._unix.getsockname() if self._unix is not None else "",
                tcp_address=f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
            )
            """Where the other ranks find this one."""
            undo.pop_all()

    def close(self) -> None:
        """Stops listening and ends whoever connects through this now; harmless when repeated. From any thread."""
        self._closed = True
        with contextlib.suppress(OSError):
            self._waker.send(b"x")
        with self._connecting:
            self._resources.close()

    @contextlib.contextmanager
    def connecting(self) -> Iterator[tuple[list[socket.socket], socket.socket]]:
        """The listening sockets for one group at a time, and one that becomes readable at `close`.

        Raises:
            LocalInterruptedError: the listener is closed.
        """
        with self._connecting:
            self.require_open()
            yield [s for s in (self._tcp, self._unix) if s is not None], self._wake

    def require_open(self) -> None:
        """Does nothing while the listener is open.

        Raises:
            LocalInterruptedError: it is closed.
        """
        if self._closed:
            raise LocalInterruptedError("the listener was closed")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _listen_on_tcp(self, host: str) -> socket.socket:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            listening = self._resources.enter_context(socket.socket(family, socket.SOCK_STREAM))
            listening.settimeout(0)
            listening.bind((host, 0))
            listening.listen(BACKLOG)
        except OSError as error:
            raise LocalAddressError(f"cannot listen on {host}: {error}") from error
        return listening

    def _listen_on_unix(self) -> socket.socket:
        # Many temporary folders of macOS are too long for a socket's path.
        parent = tempfile.gettempdir()
        if len(os.fsencode(parent)) + len(f"/{_PREFIX}12345678/lane") > MOST_UNIX_PATH_BYTES:
            parent = "/tmp"  # noqa: S108  mkdtemp makes a private folder in it
        _sweep(Path(parent))
        folder = tempfile.mkdtemp(prefix=_PREFIX, dir=parent)
        self._resources.callback(shutil.rmtree, folder, ignore_errors=True)
        # Held as long as the process lives, so that others can tell a folder that a killed one left behind.
        mark = os.open(folder, os.O_RDONLY)
        self._resources.callback(os.close, mark)
        fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
        listening = self._resources.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        listening.settimeout(0)
        listening.bind(str(Path(folder) / "lane"))
        listening.listen(BACKLOG)
        return listening


def _sweep(parent: Path) -> None:
    """Removes the folders that killed processes of this user have left."""
    for folder in parent.glob(_PREFIX + "*"):
        with contextlib.suppress(OSError):
            status = folder.lstat()
            if status.st_uid != os.getuid() or time.time() - status.st_mtime < STALE_SECONDS:
                continue
            mark = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
            try:
                fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while its maker lives
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(mark)
