"""The few calls of CUDA's runtime that MLX does not offer, by ctypes. Imports no mlx."""

import ctypes
import functools
import importlib.util
from collections.abc import Iterator
from pathlib import Path

from macmesh_rdma.errors import LocalResourceError

_PORTABLE_AND_MAPPED = 3


def runtime_problem() -> str:
    """Why memory cannot be shared with GPUs here; empty where it can."""
    try:
        _runtime()
    except LocalResourceError as error:
        return str(error)
    return ""


def pinned_address(address: int, size_bytes: int) -> int:
    """Pins memory of this process, and says where the GPU sees it.

    Raises:
        LocalResourceError: CUDA refuses, or is not here.
    """
    runtime = _runtime()
    start, seen = ctypes.c_void_p(address), ctypes.c_void_p()
    failed = runtime.cudaHostRegister(start, ctypes.c_size_t(size_bytes), _PORTABLE_AND_MAPPED)
    if not failed:
        failed = runtime.cudaHostGetDevicePointer(ctypes.byref(seen), start, 0)
    if failed or seen.value is None:
        raise LocalResourceError(f"{size_bytes} bytes of shared memory cannot be pinned: CUDA says {failed}")
    return seen.value


def unpin(address: int) -> None:
    """Takes memory back from the GPU; no kernel uses it any more."""
    _runtime().cudaHostUnregister(ctypes.c_void_p(address))


@functools.cache
def _runtime() -> ctypes.CDLL:
    tried = ""
    # That of NVIDIA's packages, which MLX uses too; else the system's.
    for name in (*_packaged(), "libcudart.so", "libcudart.so.13", "libcudart.so.12"):
        try:
            return ctypes.CDLL(name)
        except OSError as error:
            tried = str(error)
    raise LocalResourceError(f"CUDA's runtime library is not here: {tried}")


def _packaged() -> Iterator[str]:
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        yield from (str(path) for path in sorted(Path(folder).rglob("libcudart.so*")))
