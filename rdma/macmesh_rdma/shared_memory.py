"""Memory that two processes share, known by its descriptor alone.

The memory is made by POSIX ``shm_open`` and its name removed at once, so nothing stays behind whatever happens to
the processes. The descriptor goes to the other process by inheritance or over a Unix socket.
"""

import contextlib
import os
import secrets

from macmesh_rdma.errors import LocalSharedMemoryError

try:
    # The standard library's own binding, without the resource tracker of `multiprocessing.shared_memory`.
    import _posixshmem  # type: ignore[import-not-found]
except ImportError:  # pragma: no cover  a Python built without it
    _posixshmem = None


def create(size_bytes: int) -> int:
    """Memory of that many bytes, all zero; returns its descriptor, which the caller closes.

    The memory is really there: where the system can tell (Linux) a full ``/dev/shm`` is an error here, and not
    a SIGBUS at the first write.

    Raises:
        LocalSharedMemoryError: there is no such memory to be had.
    """
    if _posixshmem is None:
        raise LocalSharedMemoryError("this Python was built without POSIX shared memory")
    # macOS allows 31 characters.
    name = f"/macmesh-{secrets.token_hex(8)}"
    try:
        descriptor: int = _posixshmem.shm_open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode=0o600)
    except OSError as error:
        raise LocalSharedMemoryError(f"cannot make shared memory: {error}") from error
    try:
        _posixshmem.shm_unlink(name)
        os.ftruncate(descriptor, size_bytes)
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, size_bytes)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.close(descriptor)
        raise LocalSharedMemoryError(
            f"cannot get {size_bytes} bytes of shared memory: {error}; is /dev/shm full?"
        ) from error
    return descriptor
