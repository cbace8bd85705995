"""Faults that a node makes in itself, so that a cluster can rehearse them: `daemonctl drill`.

A node ends no process but its own worker, and only where its configuration has ``drills = true``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import grpc

from macmesh.reasons import Reason
from macmesh.v1 import peer_pb2
from macmesh_daemon.cluster.events import HandOverWanted
from macmesh_daemon.logs import get_logger
from macmesh_daemon.node.call_errors import CallError, from_rpc_error

if TYPE_CHECKING:
    from macmesh_daemon.node.driver import CoreDriver
    from macmesh_daemon.node.peers import PeerPool
    from macmesh_daemon.node.stage_host import StageHost

_log = get_logger(part="drills")

KILL_WORKER: Final = "kill-worker"
RESTART_COORDINATOR: Final = "restart-coordinator"
KINDS: Final = (KILL_WORKER, RESTART_COORDINATOR)

#: An office changes hands within two round trips and a write to the disk.
HAND_OVER_DEADLINE_SECONDS = 5.0
FAULT_DEADLINE_SECONDS = 10.0


class Drills:
    """Makes faults here, or has them made by the node that they are meant for."""

    def __init__(
        self,
        *,
        allowed: bool,
        node_id: str,
        driver: CoreDriver,
        stage_host: StageHost,
        peers: PeerPool,
    ) -> None:
        self._allowed = allowed
        self._node_id = node_id
        self._driver = driver
        self._stage_host = stage_host
        self._peers = peers

    async def make(self, kind: str, node_id: str) -> str:
        """Have a node make a fault; returns what it did.

        Raises:
            CallError: the node allows no drills, cannot be reached, or is in no state for that fault.
        """
        if node_id == self._node_id:
            return await self.make_here(kind)
        document = self._driver.view.document
        if document is None or document.member(node_id) is None:
            raise CallError(Reason.NOT_FOUND, f"{node_id!r} is no member of this cluster", {"id": node_id})
        stub = self._peers.stub(node_id)
        if stub is None:
            raise CallError(Reason.PEER_UNREACHABLE, f"no address is known for {node_id}", {"node": node_id})
        try:
            answer = await stub.MakeDrillFault(
                peer_pb2.MakeDrillFaultRequest(kind=kind), timeout=FAULT_DEADLINE_SECONDS
            )
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        return answer.done

    async def make_here(self, kind: str) -> str:
        """Make a fault in this node; returns what was done.

        Raises:
            CallError: as for `make`.
        """
        if not self._allowed:
            raise CallError(
                Reason.FORBIDDEN,
                f"node {self._node_id[:8]} allows no drills: set `drills = true` in its configuration",
            )
        if kind not in KINDS:
            raise CallError(
                Reason.INVALID_ARGUMENT,
                f"a drill's fault is one of {', '.join(KINDS)}, not {kind!r}",
                {"field": "kind"},
            )
        _log.warning("drill", kind=kind)
        if kind == KILL_WORKER:
            return f"killed the worker, process {self._kill_worker()}"
        successor = await self._hand_over()
        pid = self._stage_host.kill_worker()
        killed = f" and killed the worker, process {pid}" if pid is not None else "; no worker runs here"
        return f"handed the office over to {successor[:8]}{killed}"

    def _kill_worker(self) -> int:
        pid = self._stage_host.kill_worker()
        if pid is None:
            raise CallError(Reason.NOT_READY, f"node {self._node_id[:8]} runs no worker", {})
        return pid

    async def _hand_over(self) -> str:
        if self._driver.view.coordinator_node_id != self._node_id:
            raise CallError(
                Reason.NOT_COORDINATOR,
                f"node {self._node_id[:8]} is not the coordinator",
                {"coordinator": self._driver.view.coordinator_node_id},
            )
        self._driver.notify(HandOverWanted())
        try:
            view = await self._driver.wait_until(
                lambda view: view.coordinator_node_id not in {"", self._node_id}, HAND_OVER_DEADLINE_SECONDS
            )
        except TimeoutError:
            raise CallError(
                Reason.NO_QUORUM,
                f"nobody took the office over within {HAND_OVER_DEADLINE_SECONDS:.0f} s: no other voter is there",
            ) from None
        return view.coordinator_node_id
