"""The control lane as the stages of a plan use it: protobuf messages of one epoch over `macmesh_rdma.control`.

Every stage connects to the next one, and the tail to the head, so a plan of two stages has two connections.
Both ends of a connection prove with the first message that they are the stage they should be, in this epoch.
From then on a lost connection, a message of another epoch and anything that cannot be read mean that the plan
has failed.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from google.protobuf.message import DecodeError

from macmesh.v1 import lane_pb2, peer_pb2
from macmesh_daemon.worker.errors import LocalStartError, RemoteNeighbourError
from macmesh_daemon.worker.identity import require_node, require_proof, stage_proof, tls_contexts
from macmesh_rdma.control.lane import ControlEvents, ControlOptions, Handshake
from macmesh_rdma.control.socket_lane import SocketControlLane
from macmesh_rdma.errors import (
    LocalAddressError,
    LocalLaneFullError,
    LocalLaneStateError,
    RemoteAuthenticationError,
    RemoteTransportError,
)

CLOSE_DEADLINE_SECONDS = 1.0


class ControlLane:
    """One stage's connections to the stages beside it.

    Args:
        start: epoch, plan, stage and identity of this worker.
        on_message: is given every message after the hellos, with the stage that sent it.
        on_lost: is told once when a neighbour is lost or breaks the protocol.
        on_stranger: is told why a connection was turned away; strangers do no harm.
        options: bounds of the lane.

    Raises:
        LocalStartError: the certificate, key or CA cannot be used.
    """

    def __init__(
        self,
        start: lane_pb2.StartStage,
        *,
        on_message: Callable[[int, lane_pb2.LaneMessage], None],
        on_lost: Callable[[str], None],
        on_stranger: Callable[[str], None],
        options: ControlOptions | None = None,
    ) -> None:
        self._epoch = start.epoch
        self._stage = start.stage_index
        self._nodes = [stage.node_id for stage in start.deployment.stages]
        self._bind_host = start.bind_host
        self._on_message = on_message
        self._on_lost = on_lost
        self._key: asyncio.Future[bytes] | None = None
        self._told = False
        self.missing = "it has not begun to join"
        """What `join` waits for, for people; empty once it has all."""
        last = len(self._nodes) - 1
        self._next = self._stage + 1 if self._stage < last else 0
        self._previous = self._stage - 1 if self._stage > 0 else last
        server_tls, client_tls = tls_contexts(start)
        self._lane = SocketControlLane(
            server_tls=server_tls,
            client_tls=client_tls,
            handshake=Handshake(self._hello, self._check_certificate, self._check_hello),
            events=ControlEvents(
                message=self._take,
                lost=lambda stage, reason: self._lose(f"the control lane to stage {stage} broke: {reason}"),
                stranger=on_stranger,
            ),
            options=options,
        )

    async def bind(self, group: asyncio.TaskGroup) -> str:
        """Listens on a free port of the bind host; returns host:port.

        Args:
            group: runs the connections; they end with `close`.

        Raises:
            LocalStartError: the host cannot be bound.
        """
        self._key = asyncio.get_running_loop().create_future()
        try:
            return await self._lane.bind(self._bind_host, group)
        except LocalAddressError as error:
            raise LocalStartError(str(error)) from error

    async def join(self, peers: peer_pb2.SetPeersRequest) -> None:
        """Connects to the next stage and waits for the one before. Set a deadline around it.

        Raises:
            RemoteNeighbourError: the next stage is not who it should be, or cannot be reached.
        """
        if self._key is None:
            raise LocalStartError("the control lane must be bound before it can join")
        if not self._key.done():
            self._key.set_result(peers.epoch_key)
        address = {peer.stage_index: peer.control_address for peer in peers.peers}[self._next]
        try:
            self.missing = f"stage {self._next} at {address} has not said hello"
            await self._lane.connect(self._next, address)
            self.missing = f"stage {self._previous} has not connected to us"
            await self._lane.wait_for(self._previous)
            self.missing = ""
        except (RemoteTransportError, LocalLaneStateError) as error:
            raise RemoteNeighbourError(f"stage {self._next}: {error}") from error

    def send_down(self, message: bytes) -> None:
        """Sends an encoded message to the next stage; from the tail to the head.

        What cannot be sent ends the plan; after its end, of which ``on_lost`` has told, nothing is sent any more.
        """
        try:
            self._lane.send_now(self._next, message)
        except (LocalLaneFullError, LocalLaneStateError) as error:
            self._lose(f"nothing can be sent to stage {self._next}: {error}")

    async def tell_failure(self, failure: lane_pb2.StageFailed) -> None:
        """Tells all neighbours that the plan has failed, as far as they can still be reached; ends the lane."""
        self._told = True
        await self._lane.say_last(self.encode(failed=failure), CLOSE_DEADLINE_SECONDS)

    async def close(self) -> None:
        """Ends all connections and stops listening."""
        self._told = True
        if self._key is not None and not self._key.done():
            self._key.cancel()
        await self._lane.close()

    def encode(
        self,
        *,
        hello: lane_pb2.LaneHello | None = None,
        step: lane_pb2.Step | None = None,
        result: lane_pb2.StepDone | None = None,
        payload: lane_pb2.StepPayload | None = None,
        failed: lane_pb2.StageFailed | None = None,
        exchange: bytes | None = None,
    ) -> bytes:
        """A message of this epoch as bytes. May be called from any thread."""
        message = lane_pb2.LaneMessage(
            epoch=self._epoch,
            hello=hello,
            step=step,
            result=result,
            payload=payload,
            failed=failed,
        )
        if exchange is not None:
            message.exchange = exchange
        return message.SerializeToString()

    async def _hello(self) -> bytes:
        proof = stage_proof(await self._epoch_key(), self._epoch, self._stage)
        return self.encode(hello=lane_pb2.LaneHello(stage_index=self._stage, proof=proof))

    def _check_certificate(self, stage: int | None, certificate: Mapping[str, Any] | None) -> None:
        try:
            require_node(certificate, self._nodes[self._previous if stage is None else stage])
        except RemoteNeighbourError as error:
            raise RemoteAuthenticationError(str(error)) from error

    async def _check_hello(
        self, stage: int | None, certificate: Mapping[str, Any] | None, hello: bytes
    ) -> int:
        del certificate  # checked before the hello came
        expected = self._previous if stage is None else stage
        try:
            message = self._decode(hello)
            if message.WhichOneof("message") != "hello":
                raise RemoteNeighbourError(f"stage {expected} did not say hello")  # noqa: TRY301  one way out
            require_proof(message.hello, await self._epoch_key(), self._epoch, expected)
        except RemoteNeighbourError as error:
            raise RemoteAuthenticationError(str(error)) from error
        return expected

    async def _epoch_key(self) -> bytes:
        if self._key is None:
            raise LocalStartError("the control lane is not bound")
        return await asyncio.shield(self._key)

    def _decode(self, body: bytes) -> lane_pb2.LaneMessage:
        try:
            message = lane_pb2.LaneMessage.FromString(body)
        except DecodeError as error:
            raise RemoteNeighbourError(f"it sent {len(body)} bytes that are no message") from error
        if message.epoch != self._epoch:
            raise RemoteNeighbourError(f"it sent a message of epoch {_text(message)}, not of this one")
        return message

    def _take(self, stage: int, body: bytes) -> None:
        try:
            message = self._decode(body)
        except RemoteNeighbourError as error:
            self._lose(f"the control lane to stage {stage} broke: {error}")
        else:
            self._on_message(stage, message)

    def _lose(self, reason: str) -> None:
        if not self._told:
            self._told = True
            self._on_lost(reason)


def _text(message: lane_pb2.LaneMessage) -> str:
    epoch = message.epoch
    return f"{epoch.generation}.{epoch.term}.{epoch.seq}"
