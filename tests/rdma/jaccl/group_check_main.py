"""One rank of MLX's stock ring as a process: runs the group's self-test, with a fault where one is asked for."""

import os
import sys

import mlx.core as mx

from macmesh_rdma import group_check
from macmesh_rdma.errors import RemoteMismatchError


def main() -> None:
    fault = sys.argv[1]
    group = mx.distributed.init(strict=True, backend="ring")
    if fault == "wrong" and group.rank() == 1:
        right = group_check._pattern
        group_check._pattern = lambda source, size_bytes: right(source, size_bytes) + (size_bytes == 6_144)
    try:
        group_check.check_group(group)
    except RemoteMismatchError as error:
        told = f"mismatch: {error}"
    else:
        told = "passed"
    sys.stdout.write(told + "\n")
    sys.stdout.flush()
    os._exit(0)


main()
