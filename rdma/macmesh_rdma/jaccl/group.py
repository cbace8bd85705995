"""A group over MLX's own ``jaccl`` backend: RDMA over Thunderbolt between Macs.

What that backend lacks, and what this module does about it:

* It takes its set-up from the environment and a file, and its ranks find each other over a TCP port without
  any authentication. Here they find each other through an `Exchange` over the authenticated control lane.
* It makes a group of one rank where something is wrong. The size is checked.
* The first data after its set-up may arrive corrupted without a barrier. There is one, and then a self-test.
* It cannot be interrupted, and a dead peer is never noticed: a wait that passes its deadline ends the process.
  Later waits are to be watched by a `StallWatch` in the same way.
* It numbers no message. Callers must send and receive in the same order at both ends, from one stream.
* One group lives in a process; it is taken down by ending the process.
"""

import contextlib
import faulthandler
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx

from macmesh_rdma.errors import (
    LocalLaneStateError,
    LocalProviderError,
    RemoteMismatchError,
    RemotePeerLostError,
    RemoteTransportError,
)
from macmesh_rdma.group_check import check_group
from macmesh_rdma.jaccl.device_matrix import DeviceMatrix
from macmesh_rdma.jaccl.exchange import Exchange
from macmesh_rdma.stall import StallWatch

#: All that the backend reads. The names without MLX win over those with it, so they must be absent.
VARIABLES = tuple(
    prefix + name
    for name, prefixes in (
        ("RANK", ("MLX_", "JACCL_")),
        ("IBV_DEVICES", ("MLX_", "JACCL_")),
        ("COORDINATOR", ("MLX_JACCL_", "JACCL_")),
        ("RING", ("MLX_JACCL_", "JACCL_")),
    )
    for prefix in prefixes
)

GRACE_SECONDS = 1.0
"""An exchange that fails at its deadline can still say so before the process is ended."""

Init = Callable[..., Any]
"""`mlx.core.distributed.init`, or a stand-in for it."""


def is_built() -> bool:
    """Whether this build of MLX has the backend at all."""
    return bool(mx.distributed.is_available("jaccl"))


def open_jaccl(
    rank: int,
    size: int,
    matrix: DeviceMatrix,
    exchange: Exchange,
    *,
    timeout_seconds: float,
    on_stall: Callable[[str], None],
    init: Init | None = None,
) -> "mx.distributed.Group":
    """Joins the group and tests it; every rank must call it at about the same time.

    Args:
        rank: this rank.
        size: number of ranks.
        matrix: devices of all ranks; the same everywhere.
        exchange: to the other ranks; used from this thread, during the call only.
        timeout_seconds: for all of the exchange, and again for the test. Where the set-up hangs without exchanging
            anything, the process is ended `GRACE_SECONDS` later.
        on_stall: called from another thread when the test passes its deadline; must end the process.
        init: instead of MLX's own.

    Raises:
        LocalProviderError: MLX has no jaccl here, or made no group of this size.
        LocalLaneStateError: this process has opened such a group before, or the matrix is for another size.
        RemoteTransportError: the others could not be met.
        RemoteMismatchError: the group delivers wrong data.
    """
    global _opened  # noqa: PLW0603  MLX keeps one such group for the whole process, and so does this
    if len(matrix.devices) != size or not 0 <= rank < size:
        raise LocalLaneStateError(
            f"a matrix for {len(matrix.devices)} ranks is none for rank {rank} of {size}"
        )
    if init is None and not is_built():
        raise LocalProviderError(
            f"this build of MLX for {sys.platform} has no jaccl, which needs macOS 26.2 or later"
        )
    if _opened and init is None:
        raise LocalLaneStateError("MLX keeps one jaccl group in a process; start a new process for another")
    _opened = _opened or init is None
    gather = GatherFactory(rank, size, exchange, timeout_seconds)
    with jaccl_environment(rank, matrix), _end_process_after(timeout_seconds + GRACE_SECONDS):
        try:
            group = (init or mx.distributed.init)(strict=True, backend="jaccl", all_gather_factory=gather)
        except Exception as error:
            if gather.failure is not None:
                raise gather.failure from error
            if isinstance(error, RuntimeError):
                raise LocalProviderError(f"jaccl could not be set up: {error}") from error
            raise
    if gather.failure is not None:
        raise gather.failure
    if group.size() != size or group.rank() != rank:
        raise LocalProviderError(
            f"jaccl made a group of {group.size()} rank(s) with us as rank {group.rank()}, "
            f"not of {size} with us as rank {rank}"
        )
    watch = StallWatch(on_stall)
    try:
        with watch.limit(timeout_seconds, "the self-test of the jaccl group"):
            check_group(group)
    except RuntimeError as error:
        raise RemotePeerLostError(f"the jaccl group broke in its self-test: {error}") from error
    finally:
        watch.close()
    checked: mx.distributed.Group = group
    return checked


_opened = False


class GatherFactory:
    """What ``all_gather_factory`` takes: called once with rank and size, returns the all-gather.

    Called from native code with the interpreter's lock, which the exchange gives up while it waits. What goes
    wrong is kept in `failure` too, because native code may turn it into something else.
    """

    def __init__(self, rank: int, size: int, exchange: Exchange, timeout_seconds: float) -> None:
        self._rank = rank
        self._size = size
        self._exchange = exchange
        self._deadline = time.monotonic() + timeout_seconds
        self.failure: RemoteTransportError | LocalLaneStateError | None = None

    def __call__(self, rank: int, size: int) -> Callable[[bytes, int], bytes]:
        """The all-gather of this rank.

        Raises:
            LocalLaneStateError: MLX believes to be another rank, or that there are more or fewer.
        """
        if (rank, size) != (self._rank, self._size):
            self.failure = LocalLaneStateError(
                f"jaccl believes to be rank {rank} of {size}, not rank {self._rank} of {self._size}"
            )
            raise self.failure
        return self.gather

    def gather(self, source: bytes, size_bytes: int) -> bytes:
        """What all ranks gave, one after the other; each gives `size_bytes` bytes.

        Raises:
            RemoteTransportError: a rank gave another amount, nothing in time, or is lost.
        """
        try:
            left_seconds = max(0.0, self._deadline - time.monotonic())
            parts = self._exchange.all_gather(bytes(source), left_seconds)
            for rank, part in enumerate(parts):
                if len(part) != size_bytes:
                    raise RemoteMismatchError(
                        f"rank {rank} gave {len(part)} bytes in the set-up of jaccl, not {size_bytes}; "
                        f"do all run the same mlx?"
                    )
        except RemoteTransportError as error:
            self.failure = self.failure or error
            raise
        return b"".join(parts)


@contextlib.contextmanager
def jaccl_environment(rank: int, matrix: DeviceMatrix) -> Iterator[None]:
    """Sets what the backend reads, and nothing else of that kind; restores what was there."""
    before = {name: os.environ.pop(name) for name in VARIABLES if name in os.environ}
    # mkstemp makes a file that only this user can read, under a name that nobody can have taken.
    descriptor, name = tempfile.mkstemp(prefix="macmesh-jaccl-", suffix=".json")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(matrix.to_json())
        os.environ["MLX_RANK"] = str(rank)
        os.environ["MLX_IBV_DEVICES"] = name
        if matrix.ring:
            os.environ["MLX_JACCL_RING"] = "1"
        yield
    finally:
        Path(name).unlink(missing_ok=True)
        for variable in VARIABLES:
            os.environ.pop(variable, None)
        os.environ.update(before)


@contextlib.contextmanager
def _end_process_after(seconds: float) -> Iterator[None]:
    # The only timer that works while native code holds the interpreter's lock.
    faulthandler.dump_traceback_later(seconds, exit=True, file=2)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
