"""Host transfers between two processes, and one of them killed."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import mlx.core as mx
import pytest

from bringing_up import EPOCH, KEY, SMALL
from macmesh_rdma.errors import RemotePeerLostError
from macmesh_rdma.group import open_group
from macmesh_rdma.group_host_lane import GroupHostLane
from macmesh_rdma.joining.endpoint import Endpoint
from macmesh_rdma.joining.listener import Listener

PEER_MAIN = Path(__file__).parent / "host_peer_main.py"
SECONDS = 60.0

pytestmark = pytest.mark.process


@contextlib.contextmanager
def peer(provider: Literal["shm", "tcp"]) -> Iterator[tuple[GroupHostLane, "subprocess.Popen[str]"]]:
    """Our rank 0, and rank 1 as a process."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen(
        [sys.executable, str(PEER_MAIN), provider],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdin
    assert process.stdout
    try:
        with Listener("127.0.0.1", host_id="here") as listener:
            theirs = Endpoint.decode(process.stdout.readline().strip())
            process.stdin.write(listener.endpoint.encode() + "\n")
            process.stdin.flush()
            with open_group(
                listener,
                0,
                [listener.endpoint, theirs],
                key=KEY,
                epoch=EPOCH,
                options=SMALL,
                provider=provider,
                lanes=(0,),
                connect_seconds=60,
                measure=False,
            ) as group:
                assert process.stdout.readline().strip() == "open"
                yield GroupHostLane(group), process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("provider", ["shm", "tcp"])
def test_arrays_go_there_and_back_and_a_killed_process_is_an_error_at_once(
    provider: Literal["shm", "tcp"],
) -> None:
    with peer(provider) as (lane, process):
        for shape in ((1, 1, 3072), (1, 400, 3072), (0, 3)):
            given, into = mx.random.randint(0, 100, shape).astype(mx.bfloat16), mx.zeros(shape, mx.bfloat16)
            mx.eval(given, into)
            lane.send_message(1, b"double", SECONDS)
            lane.send(1, [given], SECONDS)
            lane.receive_into(1, [into], SECONDS)
            assert mx.array_equal(into, given * 2).item()
        killed: list[float] = []

        def kill() -> None:
            killed.append(time.monotonic())
            process.send_signal(signal.SIGKILL)

        timer = threading.Timer(0.1, kill)
        timer.start()
        with pytest.raises(RemotePeerLostError, match="rank 1 has gone") as raised:
            lane.receive_message(1, None)
        noticed = time.monotonic() - killed[0]
        assert raised.value.peer == 1
        assert noticed < 30, "50 ms on a quiet machine"
        with pytest.raises(RemotePeerLostError):
            lane.send_message(1, b"x", SECONDS)


def test_a_process_that_ends_in_order_is_told_apart_from_a_lost_one() -> None:
    with peer("shm") as (lane, process):
        lane.send_message(1, b"end", SECONDS)
        assert process.wait(60) == 0
        with pytest.raises(RemotePeerLostError, match="rank 1 has closed the group"):
            lane.receive(1, SECONDS)
