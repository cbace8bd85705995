"""A tensor lane over MLX's own ``ring`` backend, between processes of one machine.

What that backend is and is not, and what this module does about it:

* It speaks plain TCP to whoever connects. Only loopback addresses are taken.
* ``init`` waits for its neighbours for up to a minute, holds the interpreter's lock meanwhile and cannot be
  interrupted. `open_ring` arms a timer below Python that ends the process.
* A transfer cannot be interrupted either: `StallWatch` calls ``on_stall``.
* Its socket threads spin while a transfer is pending, hence the rule of `TensorLane.receive`.
* An operation after a failed one hangs for ever, hence the rule that an error breaks the lane.
* One ring lives in a process; it is taken down by ending the process.
"""

import contextlib
import faulthandler
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence

import mlx.core as mx

from macmesh_rdma.addresses import split_address
from macmesh_rdma.errors import LocalLaneStateError, RemotePeerLostError
from macmesh_rdma.lane import TensorLane
from macmesh_rdma.ring.reserved_port import ReservedPort, require_loopback
from macmesh_rdma.stall import StallWatch
from macmesh_rdma.stock_lane import StockLane


def open_ring(
    addresses: Sequence[str],
    stage_index: int,
    reserved: ReservedPort,
    *,
    on_stall: Callable[[str], None],
    timeout_seconds: float,
    before_join: Callable[[], None] = lambda: None,
) -> TensorLane:
    """Joins the ring of a plan's stages; every stage must call it at about the same time.

    A stage whose neighbour does not listen yet tries again only after a whole second. So stage 0 should
    begin, and each stage should make the next one begin in its ``before_join``: the last one connects first.

    Args:
        addresses: host:port of every stage's tensor lane, head first; at least two.
        stage_index: this stage.
        reserved: the port of this stage; given back once the ring has bound it.
        on_stall: called from another thread when a later wait passes its deadline; must end the process.
        timeout_seconds: the process is ended where the ring does not stand by then.
        before_join: called when everything is prepared, just before this stage listens.

    Raises:
        LocalAddressError: an address is not on this machine.
        LocalLaneStateError: this process has opened a ring before, or there are fewer than two stages.
        RemotePeerLostError: a neighbour did not listen.
    """
    global _opened  # noqa: PLW0603  MLX keeps one ring for the whole process, and so does this
    if len(addresses) < 2:  # noqa: PLR2004  two ends
        raise LocalLaneStateError("a plan with one stage needs no lane")
    for address in addresses:
        require_loopback(split_address(address)[0])
    if _opened:
        raise LocalLaneStateError("MLX keeps one ring in a process; start a new process for another")
    _opened = True
    with ring_environment(addresses, stage_index), _end_process_after(timeout_seconds):
        try:
            before_join()
            group = mx.distributed.init(strict=True, backend="ring")
        except RuntimeError as error:
            raise RemotePeerLostError(
                f"stage {stage_index} found no neighbour on {list(addresses)}: {error}"
            ) from error
        finally:
            reserved.release()
    return StockLane("ring", group, StallWatch(on_stall))


_opened = False


@contextlib.contextmanager
def ring_environment(addresses: Sequence[str], stage_index: int) -> Iterator[None]:
    """Sets what MLX reads when its ring is made: every rank's host:port and this rank."""
    # MLX reads a file by name. A pipe has one under /dev/fd, and leaves nothing behind in a killed process.
    read_fd, write_fd = os.pipe()
    with os.fdopen(read_fd, "rb"):
        with os.fdopen(write_fd, "w", encoding="utf-8") as hosts:
            json.dump([[address] for address in addresses], hosts)
        os.environ["MLX_HOSTFILE"] = f"/dev/fd/{read_fd}"
        os.environ["MLX_RANK"] = str(stage_index)
        try:
            yield
        finally:
            del os.environ["MLX_HOSTFILE"], os.environ["MLX_RANK"]


@contextlib.contextmanager
def _end_process_after(seconds: float) -> Iterator[None]:
    # The only timer that works while native code holds the interpreter's lock.
    faulthandler.dump_traceback_later(seconds, exit=True, file=sys.stderr)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
