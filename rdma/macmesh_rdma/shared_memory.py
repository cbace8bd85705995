"""Shared memory without a name: made here, passed to another process by its descriptor."""

import mmap
import os
import secrets

from macmesh_rdma.errors import LocalResourceError, LocalSharedMemoryError, RemoteMismatchError

try:
    # What multiprocessing.shared_memory is made of; that one leaves names behind in killed processes.
    import _posixshmem  # type: ignore[import-not-found]  # no stub
except ImportError:  # pragma: no cover  a Python built without it
    _posixshmem = None

_TRIES = 8
_CHUNK_BYTES = 1 << 20


def create_shared_memory(size_bytes: int) -> int:
    """The descriptor of fresh, zeroed shared memory, whose name is gone already.

    Where the system can, the memory is allocated now: without that, a full /dev/shm would be a SIGBUS later.

    Raises:
        LocalSharedMemoryError: there is not enough of it, or of descriptors.
    """
    if _posixshmem is None:
        raise LocalSharedMemoryError("this Python was built without POSIX shared memory")
    descriptor = -1
    try:
        descriptor = _open_unnamed()
        os.ftruncate(descriptor, size_bytes)
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, size_bytes)
    except OSError as error:
        if descriptor >= 0:
            os.close(descriptor)
        raise LocalSharedMemoryError(
            f"cannot get {size_bytes} bytes of shared memory: {os.strerror(error.errno or 0)}; "
            "is /dev/shm full (`df /dev/shm`)?"
        ) from error
    return descriptor


def check_shared_memory(descriptor: int, size_bytes: int) -> None:
    """Lets memory pass that a peer made as it should.

    Raises:
        RemoteMismatchError: it has another size, or is not all zero.
        LocalResourceError: it cannot be looked at.
    """
    try:
        size = os.fstat(descriptor).st_size
        # macOS rounds up to whole pages.
        if not size_bytes <= size < size_bytes + mmap.PAGESIZE:
            raise RemoteMismatchError(
                f"the peer's shared memory has {size} bytes, {size_bytes} were expected"
            )
        zeros = bytes(_CHUNK_BYTES)
        with mmap.mmap(descriptor, size_bytes) as memory, memoryview(memory) as view:
            for start in range(0, size_bytes, _CHUNK_BYTES):
                with view[start : start + _CHUNK_BYTES] as chunk:
                    if chunk != zeros[: len(chunk)]:
                        raise RemoteMismatchError("the peer's shared memory is not fresh: it is not all zero")
    except (OSError, ValueError) as error:
        raise LocalResourceError(f"the peer's shared memory cannot be mapped: {error}") from error


def _open_unnamed() -> int:
    # macOS allows 31 characters.
    for attempt in range(_TRIES):
        name = f"/macmesh-{secrets.token_hex(8)}"
        try:
            descriptor: int = _posixshmem.shm_open(name, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        except FileExistsError:
            if attempt == _TRIES - 1:
                raise
            continue
        try:
            _posixshmem.shm_unlink(name)
        except OSError:
            os.close(descriptor)
            raise
        return descriptor
    raise AssertionError
