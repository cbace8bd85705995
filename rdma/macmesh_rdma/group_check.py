"""A test of a group before it is used: does what is sent arrive, unchanged, at every rank?"""

from collections.abc import Sequence

import mlx.core as mx

from macmesh_rdma.errors import RemoteMismatchError

#: Around the sizes at which transports change their way: a frame, an eager message, a pipelined one.
REDUCE_ELEMENTS = (1, 1_000, 9_000, 300_000)
MESSAGE_BYTES = (1, 6_144, 65_539, 1_048_576)


def check_sums(group: "mx.distributed.Group", sizes: Sequence[int]) -> None:
    """Runs sums over all ranks; every rank must call it. Sets no deadline.

    Args:
        group: of all ranks.
        sizes: numbers of elements.

    Raises:
        RemoteMismatchError: one was wrong at some rank; all ranks raise it.
        RuntimeError: the group broke.
    """
    _agree(group, _wrong_sums(group, sizes))


def check_group(group: "mx.distributed.Group") -> None:
    """Runs sums over all ranks, and messages from each rank to the next; every rank must call it.

    Sends and receives one after the other from one stream, never both at once: some backends cannot. Sets no
    deadline.

    Raises:
        RemoteMismatchError: something arrived wrong at some rank; all ranks raise it.
        RuntimeError: the group broke.
    """
    rank, size = group.rank(), group.size()
    # Also the barrier without which the first messages of some backends are lost or damaged.
    _barrier(group)
    wrong = _wrong_sums(group, REDUCE_ELEMENTS)
    for size_bytes in MESSAGE_BYTES:
        for source in range(size):
            target = (source + 1) % size
            # Whoever takes no part waits here and not in the middle of a later transfer.
            _barrier(group)
            if rank == source:
                mx.eval(mx.distributed.send(_pattern(source, size_bytes), target, group=group))
            elif rank == target:
                got = mx.distributed.recv((size_bytes,), mx.uint8, source, group=group)
                if not mx.array_equal(got, _pattern(source, size_bytes)).item():
                    wrong.append(f"{size_bytes} bytes from rank {source}")
    _agree(group, wrong)


def _wrong_sums(group: "mx.distributed.Group", sizes: Sequence[int]) -> list[str]:
    rank, size = group.rank(), group.size()
    wrong = []
    for count in sizes:
        base = mx.arange(count, dtype=mx.float32) % 1024
        total = mx.distributed.all_sum(base * (rank + 1), group=group)
        if not mx.array_equal(total, base * (size * (size + 1) // 2)).item():
            wrong.append(f"a sum of {count} numbers")
    return wrong


def _agree(group: "mx.distributed.Group", wrong: list[str]) -> None:
    failures = mx.distributed.all_sum(mx.array([len(wrong)], mx.int32), group=group)
    if count := int(failures.item()):  # type: ignore[arg-type]  # the stub types item() as complex too
        told = "; ".join(wrong) or "seen by other ranks"
        raise RemoteMismatchError(f"{count} transfer(s) of the group's self-test arrived wrong: {told}")


def _barrier(group: "mx.distributed.Group") -> None:
    mx.eval(mx.distributed.all_sum(mx.ones(1), group=group))


def _pattern(source: int, size_bytes: int) -> mx.array:
    return ((mx.arange(size_bytes, dtype=mx.int32) * 31 + source * 7 + size_bytes) % 251).astype(mx.uint8)
