"""Stops the main thread of a process until standard input ends: ``python -m faults.hang PID``. Linux.

A signal stops all threads; a tracer can stop one. The others (gRPC's, which answer pings and accept connections)
go on as in a daemon whose event loop is blocked. A tracer that dies lets its thread go on.
"""

from __future__ import annotations

import ctypes
import os
import sys

_SEIZE, _INTERRUPT, _DETACH = 0x4206, 0x4207, 17
_ALL_THREADS = 0x40000000  # __WALL


def main() -> None:
    """Stop, say so, wait, let go."""
    pid = int(sys.argv[1])
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    libc.ptrace.restype = ctypes.c_long

    def ptrace(request: int) -> None:
        if libc.ptrace(request, pid, None, None) == -1:
            raise OSError(ctypes.get_errno(), f"ptrace {request:#x} of {pid}")

    ptrace(_SEIZE)
    ptrace(_INTERRUPT)
    os.waitpid(pid, _ALL_THREADS)
    sys.stdout.write("stopped\n")
    sys.stdout.flush()
    sys.stdin.read()
    ptrace(_DETACH)


if __name__ == "__main__":
    main()
