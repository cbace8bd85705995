"""Changes of the cluster that someone asked for, until the core has decided them."""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import TYPE_CHECKING

import grpc

from macmesh.reasons import Reason
from macmesh.v1 import peer_pb2
from macmesh_daemon.cluster import effects as fx
from macmesh_daemon.cluster import events as ev
from macmesh_daemon.node.call_errors import CallError, from_rpc_error, known_reason
from macmesh_daemon.node.codec import from_proto, to_proto

if TYPE_CHECKING:
    from macmesh_daemon.cluster.messages import Epoch, WantedModel
    from macmesh_daemon.node.driver import CoreDriver
    from macmesh_daemon.node.peers import PeerPool

#: Profiling a large model, planning and the prepare round, with room; loading comes after it.
DECISION_DEADLINE_SECONDS = 120.0
#: The core's own words for why a change came to nothing, as clients know them.
_REASONS = {
    "COORDINATOR_CHANGED": Reason.NO_COORDINATOR,
    "SUPERSEDED": Reason.EPOCH_CHANGED,
    "PLANNER_TIMEOUT": Reason.INTERNAL,
    "NO_PLAN": Reason.INTERNAL,
    "INVALID_PLAN": Reason.INTERNAL,
    "UNKNOWN_NODE": Reason.NOT_FOUND,
    "NO_ELIGIBLE_NODE": Reason.DOES_NOT_FIT,
    "LAST_VOTER": Reason.NO_QUORUM,
    "HAS_QUORUM": Reason.INVALID_ARGUMENT,
    "NO_DOCUMENT": Reason.NOT_A_MEMBER,
    "EVICTED": Reason.EVICTED,
}

#: What of a refusal travels as metadata; the whole is in the status.
_REFUSAL_FACTS = ("context_tokens", "position_limit", "largest_context_tokens", "bytes_to_add", "binding")


class ChangeDesk:
    """Hands changes to the core here, or to the coordinator elsewhere, and waits for the decision."""

    def __init__(self, *, driver: CoreDriver, peers: PeerPool, node_id: str) -> None:
        self._driver = driver
        self._peers = peers
        self._node_id = node_id
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Epoch]] = {}

    def resolve(self, effect: fx.ChangeAccepted | fx.ChangeDone | fx.ChangeRejected) -> None:
        """The core's decision on a change."""
        future = self._waiting.get(effect.change_id)
        if future is None or future.done() or isinstance(effect, fx.ChangeAccepted):
            return
        if isinstance(effect, fx.ChangeDone):
            future.set_result(effect.epoch)
            return
        future.set_exception(
            CallError(
                _REASONS.get(effect.reason) or known_reason(effect.reason),
                *_explain(effect.message, effect.refusal_json),
            )
        )

    async def load(self, wanted: WantedModel) -> Epoch:
        """Serve the model; returns the epoch of the plan once it is committed.

        Raises:
            CallError: no coordinator, no quorum, or the planner's refusal.
        """
        return await self._propose(peer_pb2.ProposeChangeRequest(load=to_proto(wanted)))

    async def unload(self) -> Epoch:
        """Serve nothing; returns the epoch of the empty plan.

        Raises:
            CallError: no coordinator or no quorum.
        """
        return await self._propose(peer_pb2.ProposeChangeRequest(unload=peer_pb2.UnloadChange()))

    async def evict(self, shut_out_id: str) -> int:
        """Shut a node or a client out for good; returns the seq of the document that says so.

        Raises:
            CallError: no coordinator, no quorum, or nobody could take over from the last voter.
        """
        change = peer_pb2.ProposeChangeRequest(evict=peer_pb2.EvictChange(node_id=shut_out_id))
        return (await self._decided(change)).document_seq

    async def drain(self, change: peer_pb2.DrainChange) -> int:
        """Have a member serve no stage, or let it again; returns the seq of the document that says so.

        Raises:
            CallError: no coordinator, no quorum, no such member, or the planner's refusal of a plan without it.
        """
        return (await self._decided(peer_pb2.ProposeChangeRequest(drain=change))).document_seq

    async def take(self, request: peer_pb2.ProposeChangeRequest) -> peer_pb2.ProposeChangeResponse:
        """Decide a change here, where this node is the coordinator.

        Raises:
            CallError: this node is not the coordinator, or the change is refused.
        """
        change_id = next(self._ids)
        event: ev.Event
        match request.WhichOneof("change"):
            case "load":
                event = ev.LoadWanted(change_id=change_id, wanted=from_proto(request.load))
            case "unload":
                event = ev.UnloadWanted(change_id=change_id)
            case "evict":
                event = ev.EvictWanted(change_id=change_id, node_id=request.evict.node_id)
            case "drain" if request.drain.undo:
                event = ev.UndrainWanted(change_id=change_id, node_id=request.drain.node_id)
            case "drain":
                event = ev.DrainWanted(
                    change_id=change_id,
                    node_id=request.drain.node_id,
                    force=request.drain.force,
                    leave=request.drain.leave,
                )
            case _:
                raise CallError(Reason.INVALID_ARGUMENT, "the change names nothing to do")
        epoch = await self._decide_here(event, change_id)
        document = self._driver.view.document
        return peer_pb2.ProposeChangeResponse(
            document_seq=document.seq if document else 0, epoch=to_proto(epoch)
        )

    async def recover(self) -> int:
        """Go on as the only voter of a new generation, which is returned. Decided here and nowhere else.

        Raises:
            CallError: a coordinator leads with a quorum, or this node has never been a member or was evicted.
        """
        change_id = next(self._ids)
        await self._decide_here(ev.RecoverWanted(change_id=change_id), change_id)
        return self._driver.view.generation

    async def _decide_here(self, event: ev.Event, change_id: int) -> Epoch:
        future: asyncio.Future[Epoch] = asyncio.get_running_loop().create_future()
        self._waiting[change_id] = future
        try:
            self._driver.notify(event)
            async with asyncio.timeout(DECISION_DEADLINE_SECONDS):
                return await future
        except TimeoutError:
            raise CallError(
                Reason.INTERNAL,
                f"the cluster did not decide within {DECISION_DEADLINE_SECONDS:.0f} s; see `daemonctl status`",
            ) from None
        finally:
            self._waiting.pop(change_id, None)

    async def _propose(self, request: peer_pb2.ProposeChangeRequest) -> Epoch:
        return _epoch(await self._decided(request))

    async def _decided(self, request: peer_pb2.ProposeChangeRequest) -> peer_pb2.ProposeChangeResponse:
        coordinator = self._driver.view.coordinator_node_id
        if not coordinator:
            raise CallError(
                Reason.NO_COORDINATOR,
                "this node knows no coordinator; wait for the election or see `daemonctl status`",
            )
        if coordinator == self._node_id:
            return await self.take(request)
        stub = self._peers.stub(coordinator)
        if stub is None:
            raise CallError(
                Reason.PEER_UNREACHABLE,
                f"no address is known for the coordinator {coordinator}",
            )
        try:
            return await stub.ProposeChange(request, timeout=DECISION_DEADLINE_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error


def _explain(message: str, refusal_json: str) -> tuple[str, dict[str, object]]:
    """The planner's own words and figures where it refused, the core's otherwise."""
    if not refusal_json:
        return message, {}
    refusal = json.loads(refusal_json)
    facts = {name: refusal[name] for name in _REFUSAL_FACTS if refusal.get(name) is not None}
    return str(refusal.get("message") or message), facts


def _epoch(response: peer_pb2.ProposeChangeResponse) -> Epoch:
    epoch: Epoch = from_proto(response.epoch)
    return epoch
