"""What the ranks of `ranks.Ranks` are asked to do. Every function gets the rank's context first."""

from __future__ import annotations

import socket
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np
from mlx.nn.layers.activations import relu
from mlx.nn.layers.distributed import shard_linear
from mlx.nn.layers.linear import Linear

from macmesh_daemon.engine.lean_imports import import_without_tokenizers
from macmesh_rdma import _group
from support.group.arrays import MLX_DTYPES, Spec, bits, input_of

if TYPE_CHECKING:
    from support.group.ranks import LinkDescriptors, RankSetup

OPTIONS = _group.LinkOptions(
    num_buffers=8, frame_bytes=65536, buffer_sizes=6, max_outstanding=256, spin_us=20.0
)
mx.set_default_device(mx.cpu)  # float64 is for CPUs only


def make_link(given: LinkDescriptors) -> _group.Link:
    """One end of a link."""
    if given.provider == "shm":
        send_memory, receive_memory, send_doorbell, receive_doorbell = given.descriptors
        return _group.shm_link(send_memory, receive_memory, send_doorbell, receive_doorbell, OPTIONS)
    return _group.tcp_link(given.descriptors[0], OPTIONS)


class Context:
    """A rank's group, made from what the parent gave."""

    def __init__(self, setup: RankSetup) -> None:
        self.rank = setup.rank
        self.size = setup.size
        self.listener: socket.socket | None = None
        self.folder = Path()
        self.group = _group.MeshGroup(
            rank=setup.rank,
            size=setup.size,
            peers={
                peer: (
                    [make_link(link) for link in setup.point_to_point[peer]],
                    [make_link(link) for link in setup.collective[peer]],
                    side,
                )
                for peer, side in setup.side.items()
            },
            epoch=setup.epoch,
            name="test",
            timeout_seconds=setup.timeout_seconds,
            spin_us=setup.spin_us,
            split=self.connect_split,
        )
        self.mlx = self.group.mlx
        self.new_groups: list[_group.MeshGroup] = []

    def connect_split(self, color: int, ranks: list[int]) -> _group.MeshGroup:
        """Makes the group of some ranks over Unix sockets: of each two the later one connects."""
        assert self.listener is not None
        mine = ranks.index(self.rank)
        sockets: dict[int, list[int]] = {}
        for place, peer in enumerate(ranks[:mine]):
            sockets[place] = []
            for _ in range(3):
                connection = socket.socket(socket.AF_UNIX)
                connection.connect(str(self.folder / f"{peer}.sock"))
                connection.sendall(bytes([mine]))
                sockets[place].append(connection.detach())
        for _ in range(3 * (len(ranks) - mine - 1)):
            connection, _ = self.listener.accept()
            place = connection.recv(1)[0]
            sockets.setdefault(place, []).append(connection.detach())
        # All three are alike, and arrive in the order in which they were made.
        group = _group.MeshGroup(
            rank=mine,
            size=len(ranks),
            peers={
                place: (_group.tcp_link(fds[0], OPTIONS), _group.tcp_link(fds[1], OPTIONS), fds[2])
                for place, fds in sockets.items()
            },
            epoch=(1, 2, 4 + color),
            name=f"test part {color}",
            timeout_seconds=60,
            spin_us=20,
        )
        self.new_groups.append(group)
        return group


def collective(context: Context, operation: str, spec: Spec) -> tuple[str, tuple[int, ...], bytes]:
    """Runs one collective; the result's dtype, shape and bits."""
    result = getattr(mx.distributed, operation)(input_of(spec, context.rank), group=context.mlx)
    mx.eval(result)
    return bits(result)


def everyone_to_everyone(context: Context, spec: Spec) -> dict[int, tuple[str, tuple[int, ...], bytes]]:
    """Sends each other rank an array of its own, and receives one from each."""
    sends = mx.new_stream(mx.cpu)
    done = []
    received = {}
    for peer in range(context.size):
        if peer == context.rank:
            continue
        x = input_of(spec, context.rank * 10 + peer)
        done.append(mx.distributed.send(x, peer, group=context.mlx, stream=sends))
        received[peer] = mx.distributed.recv_like(x, peer, group=context.mlx)
    mx.async_eval(done)  # type: ignore[no-untyped-call]
    mx.eval(received)
    mx.eval(done)
    return {peer: bits(array) for peer, array in received.items()}


def mismatched(context: Context, mine: list[Any], theirs: list[Any]) -> None:
    """Rank 0 sends one kind of array and waits; rank 1 expects another."""
    if context.rank == 0:
        mx.eval(mx.distributed.send(mx.zeros(mine[0], MLX_DTYPES[mine[1]]), 1, group=context.mlx))
        mx.eval(mx.distributed.recv((1,), mx.float32, 1, group=context.mlx))
    else:
        mx.eval(mx.distributed.recv(theirs[0], MLX_DTYPES[theirs[1]], 0, group=context.mlx))


def failure(context: Context) -> tuple[str, str, int] | None:
    """What ended the group."""
    return context.group.failure


def wait_for(context: Context, peer: int) -> None:
    """Receives from a rank."""
    mx.eval(mx.distributed.recv((3,), mx.float32, peer, group=context.mlx))


def sum_of_ranks(context: Context) -> Any:
    """A small collective."""
    return mx.distributed.all_sum(mx.array(context.rank), group=context.mlx).item()


def nothing(context: Context) -> int:
    """Answers."""
    return context.rank


def late(context: Context, seconds: float) -> float:
    """CPU seconds that rank 0 needs to wait for a late rank 1."""
    if context.rank == 1:
        threading.Event().wait(seconds)  # the lateness that is tested
    before = time.process_time()
    sum_of_ranks(context)
    return time.process_time() - before


def split(context: Context, folder: str, color: int, key: int) -> dict[str, Any]:
    """Splits; says what the new group is and what it computes, and that the old one still works."""
    context.folder = Path(folder)
    context.listener = socket.socket(socket.AF_UNIX)
    context.listener.bind(str(context.folder / f"{context.rank}.sock"))
    context.listener.listen()
    part = context.mlx.split(color, key)
    order = mx.distributed.all_gather(mx.array([context.rank]), group=part)
    total = mx.distributed.all_sum(mx.ones(100_000), group=part)
    mx.eval(order, total)
    result = {
        "rank": part.rank(),
        "size": part.size(),
        "order": order.tolist(),
        "total": total[0].item(),
        "old": sum_of_ranks(context),
    }
    context.listener.close()
    for group in context.new_groups:
        group.close()
    return result


def lives_on(context: Context) -> Any:
    """MLX's group works without the Python one, which is let go."""
    context.new_groups.clear()
    group = context.mlx
    del context.group
    x = mx.distributed.all_sum(mx.ones(3), group=group)
    mx.async_eval(x)  # type: ignore[no-untyped-call]
    del context.mlx, group
    values = x.tolist()
    context.group = _group.MeshGroup(
        rank=0, size=1, peers={}, epoch=(0, 0, 0), name="alone", timeout_seconds=1, spin_us=0
    )
    return values


def close_under_way(context: Context) -> str:
    """Closes the group while a thread waits in an operation; that one's error."""
    caught: list[str] = []
    ready = threading.Event()

    def wait() -> None:
        ready.set()
        try:
            context.group.receive_bytes(1, bytearray(4))
        except RuntimeError as error:
            caught.append(str(error))

    thread = threading.Thread(target=wait)
    thread.start()
    ready.wait()
    context.group.close()
    thread.join()
    context.group.close()
    return caught[0]


def leave(context: Context, busy: bool) -> None:
    """Ends the interpreter without closing the group."""
    if busy:
        ready = threading.Event()

        def wait() -> None:
            ready.set()
            context.group.receive_bytes(1 - context.rank, bytearray(4))

        threading.Thread(target=wait, daemon=True).start()
        ready.wait()
    sys.exit(0)


def exchange_bytes(context: Context, payload: bytes) -> bytes:
    """Bytes there and back."""
    into = bytearray(len(payload))
    if context.rank == 0:
        context.group.send_bytes(1, payload)
        context.group.receive_bytes(1, into)
    else:
        context.group.receive_bytes(0, into)
        context.group.send_bytes(0, bytes(reversed(into)))
    return bytes(into)


def tokens(context: Context, folder: str, prompt: list[int], count: int, how: str) -> list[int]:
    """Greedy tokens of a model; in tensor parallel over the group if so asked."""
    # Imported here: one case needs it. What it imports for tokenizers takes seconds, and no case needs that.
    import_without_tokenizers()
    from mlx_lm.generate import generate_step  # noqa: PLC0415
    from mlx_lm.utils import load_model  # noqa: PLC0415

    model, _ = load_model(Path(folder))
    if how == "parallel":
        model.shard(context.mlx)
    mx.eval(model.parameters())
    steps = generate_step(mx.array(prompt), model, max_tokens=count, prefill_step_size=4)
    return [int(token) for token, _ in steps]


def sharded_layers(context: Context) -> list[Any]:
    """A layer whose output is sharded, then one whose input is: together the plain ones."""
    mx.random.seed(3)
    first, second = Linear(16, 32), Linear(32, 8)
    x = mx.random.normal((5, 16))
    plain = second(relu(first(x)))
    up = shard_linear(first, "all-to-sharded", group=context.mlx)
    down = shard_linear(second, "sharded-to-all", group=context.mlx)
    sharded = down(relu(up(x)))
    return [np.array(plain).tolist(), np.array(sharded).tolist()]


def ping(context: Context, bytes_: int, count: int) -> list[float]:
    """Half a round trip of arrays through MLX, in seconds."""
    x = mx.zeros((bytes_ // 2,), mx.bfloat16)
    mx.eval(x)
    times = []
    for _ in range(count):
        start = time.perf_counter()
        if context.rank == 0:
            mx.eval(mx.distributed.send(x, 1, group=context.mlx))
            mx.eval(mx.distributed.recv_like(x, 1, group=context.mlx))
        else:
            got = mx.distributed.recv_like(x, 0, group=context.mlx)
            mx.eval(mx.distributed.send(got, 0, group=context.mlx))
        times.append((time.perf_counter() - start) / 2)
    return times
