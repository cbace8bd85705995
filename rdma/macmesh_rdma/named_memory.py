"""Shared memory with a name, for a peer on this machine to which no descriptor can be passed."""

import contextlib
import mmap
import os
import re
import secrets

from macmesh_rdma.errors import LocalSharedMemoryError, RemoteMismatchError

try:
    import _posixshmem  # type: ignore[import-not-found]  # no stub
except ImportError:  # pragma: no cover  a Python built without it
    _posixshmem = None

_NAME = re.compile(r"/macmesh-[0-9a-f]{16}")


def create_named_memory(size_bytes: int) -> tuple[str, mmap.mmap]:
    """Fresh, zeroed memory that only this user can open. Remove the name as soon as the peer has it.

    Raises:
        LocalSharedMemoryError: there is not enough of it.
    """
    if _posixshmem is None:
        raise LocalSharedMemoryError("this Python was built without POSIX shared memory")
    name = f"/macmesh-{secrets.token_hex(8)}"
    descriptor = -1
    try:
        descriptor = _posixshmem.shm_open(name, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        os.ftruncate(descriptor, size_bytes)
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, size_bytes)
        return name, mmap.mmap(descriptor, size_bytes)
    except OSError as error:
        if descriptor >= 0:
            remove_name(name)
        raise LocalSharedMemoryError(
            f"cannot get {size_bytes} bytes of shared memory: {error.strerror}; "
            "is /dev/shm full (`df /dev/shm`)?"
        ) from error
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def open_named_memory(name: str, size_bytes: int) -> mmap.mmap:
    """The memory that a peer made.

    Raises:
        RemoteMismatchError: the name or the size is not as it should be.
        LocalSharedMemoryError: it cannot be opened.
    """
    if not _NAME.fullmatch(name):
        raise RemoteMismatchError(f"the peer's shared memory cannot be named {name!r}")
    if _posixshmem is None:
        raise LocalSharedMemoryError("this Python was built without POSIX shared memory")
    descriptor = -1
    try:
        descriptor = _posixshmem.shm_open(name, os.O_RDWR, 0o600)
        facts = os.fstat(descriptor)
        if not size_bytes <= facts.st_size < size_bytes + mmap.PAGESIZE or facts.st_uid != os.getuid():
            raise RemoteMismatchError(
                f"the peer's shared memory has {facts.st_size} bytes of user {facts.st_uid}, {size_bytes} of "
                f"{os.getuid()} were expected"
            )
        return mmap.mmap(descriptor, size_bytes)
    except OSError as error:
        raise LocalSharedMemoryError(
            f"the peer's shared memory cannot be opened: {error.strerror}"
        ) from error
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def remove_name(name: str) -> None:
    """Removes the name; the memory stays while somebody has it. Harmless when repeated."""
    if _posixshmem is None:
        return
    with contextlib.suppress(OSError):
        _posixshmem.shm_unlink(name)
