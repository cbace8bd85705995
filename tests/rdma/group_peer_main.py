"""Rank 1 of a group of two as a process: joins, then does what stdin says, one word per line."""

import sys
import time

import mlx.core as mx  # noqa: F401  before the native module

from bringing_up import KEY, SMALL
from macmesh_rdma.group import open_group
from macmesh_rdma.joining.endpoint import Endpoint
from macmesh_rdma.joining.listener import Listener


def say(words: str) -> None:
    sys.stdout.write(words + "\n")
    sys.stdout.flush()


def main() -> None:
    provider = "shm" if sys.argv[1] == "shm" else "tcp"
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
            timeout_seconds=60,
            connect_seconds=60,
        )
        say("open")
        for line in sys.stdin:
            match line.strip():
                case "send":
                    group.native.send_bytes(0, b"x" * 100_000)
                case "abort":
                    group.abort("the operator said so")
                case "close":
                    group.close()
                case "receive":
                    try:
                        group.native.receive_bytes(0, bytearray(50_000_000))
                    except RuntimeError as error:
                        say(str(error))
        time.sleep(0)


if __name__ == "__main__":
    main()
