"""One stage of a ring as a process: reserves a port, learns the others' from stdin, plays a role."""

import json
import os
import sys
import threading

from lane_contract import ROLES
from macmesh_rdma.ports import ReservedPort
from macmesh_rdma.ring import open_ring


def main() -> None:
    index, role, stall_seconds = int(sys.argv[1]), sys.argv[2], float(sys.argv[3])
    reserved = ReservedPort("127.0.0.1")
    sys.stdout.write(reserved.address + "\n")
    sys.stdout.flush()
    addresses = json.loads(sys.stdin.readline())

    def stalled(what: str) -> None:
        sys.stdout.write(json.dumps(["stalled", what]) + "\n")
        sys.stdout.flush()
        os._exit(7)

    lane = open_ring(addresses, index, reserved, on_stall=stalled, timeout_seconds=stall_seconds)
    if role == "hang":
        sys.stdin.read()
    elif role == "wait":
        import mlx.core as mx  # noqa: PLC0415  only this role needs it

        lane.receive((1,), mx.float32, stall_seconds)
    else:
        told = ROLES[role](lane)
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()
        if role not in ("leave", "be_left"):
            sys.stdin.read()  # keep the sockets until everybody is done
    # MLX's threads may wait for ever for a neighbour that has gone.
    threading.Timer(5, os._exit, (9,)).start()
    os._exit(0)


if __name__ == "__main__":
    main()
