"""Durable files: written whole or not at all, and folders that one process owns.

Errors::

    FilesError
    ├── LocalFolderInUseError       another process of ours holds the folder
    └── LocalFolderNotPrivateError  others could write to a folder that must be ours alone
"""

import contextlib
import fcntl
import os
import secrets
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Self

LOCK_FILE_NAME = "macmeshd.lock"


class FilesError(Exception):
    """Base of the errors of this module."""


class LocalFolderInUseError(FilesError):
    """Another process holds the folder's lock."""


class LocalFolderNotPrivateError(FilesError):
    """Others could write to a folder that must be ours alone."""


def make_guarded_folder(path: Path) -> None:
    """Make ``path`` a folder of this user that nobody else may write to (mode 0700), or check that it is one.

    For folders at a place that others can write to, such as ``/tmp``: somebody may have made it first. One
    that is there already may be readable by others.

    Raises:
        LocalFolderNotPrivateError: It is a link or a file, belongs to somebody else, or others may write to it.
        OSError: It cannot be made.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise LocalFolderNotPrivateError(
            f"{path} is not a folder of this user that nobody else may write to: mend its owner and mode, "
            "or configure another place"
        )


def _sync(descriptor: int) -> None:
    if sys.platform == "darwin":
        # fsync(2) on macOS does not flush the drive's own cache; F_FULLFSYNC does, where the volume
        # supports it.
        with contextlib.suppress(OSError):
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            return
    os.fsync(descriptor)


def write_durably(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replace ``path`` by ``data`` so that a crash leaves either the old content or the new.

    Returns once the bytes and the folder entry are on the drive. Blocks: call it through a thread from
    asyncio.

    Raises:
        OSError: The folder is missing, full or not writable. ``path`` then still has its old content.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            _sync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    make_durable(path.parent)


def make_durable(path: Path) -> None:
    """Wait until what is to be read at ``path``, a file or a folder's entries, is on the drive.

    Raises:
        OSError: It is not there, or cannot be synchronised.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _sync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file ``path`` (made where missing), waiting for its holder.

    Blocks: call it through a thread from asyncio. The lock ends with the process that holds it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


class FolderLock:
    """Makes this process the only daemon on a data folder, for as long as it lives.

    The kernel drops the lock with the process, so a killed daemon leaves nothing to clean up.
    """

    def __init__(self, folder: Path, descriptor: int) -> None:
        self._folder = folder
        self._descriptor: int | None = descriptor

    @classmethod
    def acquire(cls, folder: Path) -> Self:
        """Take the lock of ``folder``, which is made where missing.

        Raises:
            LocalFolderInUseError: Another daemon runs on the folder; the message has its process id.
            OSError: The folder cannot be made or written.
        """
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = folder / LOCK_FILE_NAME
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(descriptor)
            raise LocalFolderInUseError(
                f"a daemon (process {holder}) already runs on {folder}: "
                "stop it, or give this one another data_dir"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode("ascii"), 0)
        return cls(folder, descriptor)

    def release(self) -> None:
        """Give the folder back; safe to call twice."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
