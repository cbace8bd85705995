"""Rank 1 of a group of two as a process: joins, then sends back what it receives, as its arguments say."""

import sys

import mlx.core as mx

from bringing_up import KEY, SMALL
from macmesh_rdma.group import open_group
from macmesh_rdma.group_host_lane import GroupHostLane
from macmesh_rdma.joining.endpoint import Endpoint
from macmesh_rdma.joining.listener import Listener

SECONDS = 60.0


def say(words: str) -> None:
    sys.stdout.write(words + "\n")
    sys.stdout.flush()


def main() -> None:
    provider = sys.argv[1]
    with Listener("127.0.0.1", host_id="here") as listener:
        say(listener.endpoint.encode())
        endpoints = [Endpoint.decode(sys.stdin.readline()), listener.endpoint]
        group = open_group(
            listener,
            1,
            endpoints,
            key=KEY,
            epoch=(1, 4, 2),
            provider="shm" if provider == "shm" else "tcp",
            options=SMALL,
            lanes=(0,),
            connect_seconds=60,
            measure=False,
        )
        lane = GroupHostLane(group)
        say("open")
        while (order := lane.receive_message(0, None)) != b"end":
            if order == b"double":
                doubled = [array * 2 for array in lane.receive(0, SECONDS)]
                mx.eval(doubled)
                lane.send(0, doubled, SECONDS)
        lane.close()


if __name__ == "__main__":
    main()
