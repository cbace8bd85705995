"""The kernels of `graph_kernels` compiled as C++ and run on the CPU, as soon as they are described. Imports mlx."""

import ctypes
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx

from macmesh_rdma.graph_kernels import HOST_PREAMBLE

_TYPES = {"place": "uint64_t", "ends": "uint64_t", "number": "int64_t", "after": "int64_t", "done": "int64_t"}


class HostKernels:
    """See `macmesh_rdma.cuda_graph_lane.Kernels`. Several ranks may be threads of one process.

    Args:
        compiler: a C++ compiler.
    """

    def __init__(self, compiler: str = "c++") -> None:
        self._compiler = compiler
        self._folder = tempfile.TemporaryDirectory(prefix="macmesh-kernels-")
        self._made: dict[str, ctypes.CDLL] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        """Removes what was compiled. Harmless when repeated."""
        self._folder.cleanup()

    def pin(self, address: int, size_bytes: int) -> int:  # noqa: ARG002  all of it can be reached
        """See `Kernels.pin`."""
        return address

    def unpin(self, address: int) -> None:
        """See `Kernels.unpin`."""

    def run(
        self,
        name: str,
        source: str,
        inputs: Sequence[tuple[str, mx.array]],
        outputs: Sequence[tuple[str, tuple[int, ...], mx.Dtype]],
    ) -> list[mx.array]:
        """See `Kernels.run`."""
        given = [mx.contiguous(array) for _, array in inputs]
        made = [mx.zeros(shape, dtype) for _, shape, dtype in outputs]
        mx.eval(given, made)
        parameters = [f"const {_type_of(name)}* {name}" for name, _ in inputs]
        parameters += [f"{_type_of(name)}* {name}" for name, *_ in outputs]
        with self._lock:
            if source not in self._made:
                self._made[source] = self._compiled(name, source, parameters)
        self._made[source].run(*(_address(array) for array in (*given, *made)))
        return made

    def _compiled(self, name: str, source: str, parameters: Sequence[str]) -> ctypes.CDLL:
        folder = Path(self._folder.name)
        text, library = folder / f"{name}.cpp", folder / f"{name}.so"
        text.write_text(f'{HOST_PREAMBLE}\nextern "C" void run({", ".join(parameters)}) {{\n{source}\n}}\n')
        subprocess.run(  # noqa: S603  the compiler that the test names
            [self._compiler, "-std=c++17", "-Wall", "-shared", "-fPIC", "-o", str(library), str(text)],
            check=True,
            timeout=60,
        )
        return ctypes.CDLL(str(library))


def _type_of(name: str) -> str:
    return _TYPES.get(name, "unsigned char")


def _address(array: mx.array) -> ctypes.c_void_p:
    buffer = (ctypes.c_char * array.nbytes).from_buffer(array)  # type: ignore[arg-type]  # the stub omits the buffer
    return ctypes.c_void_p(ctypes.addressof(buffer))
