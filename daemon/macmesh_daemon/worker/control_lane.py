"""The control lane: small messages between the workers of a plan, over TCP with mutual TLS.

Every stage connects to the next one, and the tail to the head, so a plan of two stages has two connections.
Both ends of a connection prove with the first message that they are the stage they should be, in this epoch.
From then on a lost connection, a message of another epoch and anything that cannot be read mean that the plan
has failed.
"""

import asyncio
import contextlib
import ssl
from collections.abc import Callable, Mapping

from macmesh.v1 import lane_pb2, peer_pb2
from macmesh_daemon.supervisor.errors import RemoteFrameError
from macmesh_daemon.supervisor.frames import encode_frame, read_frame
from macmesh_daemon.worker.errors import LocalStartError, RemoteNeighbourError
from macmesh_daemon.worker.identity import require_node, require_proof, stage_proof, tls_contexts

HANDSHAKE_DEADLINE_SECONDS = 10.0
HELLO_DEADLINE_SECONDS = 30.0
"""Includes the wait for the epoch's key, which a neighbour may be given later than we are."""
CLOSE_DEADLINE_SECONDS = 1.0
CONNECT_RETRY_SECONDS = 0.1


class ControlLane:
    """One stage's connections to the stages beside it.

    Args:
        start: epoch, plan, stage and identity of this worker.
        on_message: is given every message after the hellos, with the stage that sent it.
        on_lost: is told once when a neighbour is lost or breaks the protocol.
        on_stranger: is told why a connection was turned away; strangers do no harm.
    """

    def __init__(
        self,
        start: lane_pb2.StartStage,
        *,
        on_message: Callable[[int, lane_pb2.LaneMessage], None],
        on_lost: Callable[[str], None],
        on_stranger: Callable[[str], None],
    ) -> None:
        self._epoch = start.epoch
        self._stage = start.stage_index
        self._nodes = [stage.node_id for stage in start.deployment.stages]
        self._bind_host = start.bind_host
        self._on_message = on_message
        self._on_lost = on_lost
        self._on_stranger = on_stranger
        self._server_tls, self._client_tls = tls_contexts(start)
        self._server: asyncio.Server | None = None
        self._group: asyncio.TaskGroup | None = None
        self._key: asyncio.Future[bytes] | None = None
        self._accepted = asyncio.Event()
        self._incoming: asyncio.StreamWriter | None = None
        self._outgoing: asyncio.StreamWriter | None = None
        self._closing = False
        last = len(self._nodes) - 1
        self._next = self._stage + 1 if self._stage < last else 0
        self._previous = self._stage - 1 if self._stage > 0 else last

    async def bind(self, group: asyncio.TaskGroup) -> str:
        """Listens on a free port of the bind host; returns host:port.

        Args:
            group: runs the readers of the connections; they end with `close`.

        Raises:
            LocalStartError: the host cannot be bound.
        """
        self._group = group
        self._key = asyncio.get_running_loop().create_future()
        try:
            self._server = await asyncio.start_server(
                self._accept,
                self._bind_host,
                0,
                ssl=self._server_tls,
                ssl_handshake_timeout=HANDSHAKE_DEADLINE_SECONDS,
            )
        except OSError as error:
            raise LocalStartError(
                f"the control lane cannot listen on {self._bind_host!r}: {error}"
            ) from error
        port = self._server.sockets[0].getsockname()[1]
        return f"[{self._bind_host}]:{port}" if ":" in self._bind_host else f"{self._bind_host}:{port}"

    async def join(self, peers: peer_pb2.SetPeersRequest) -> None:
        """Connects to the next stage and waits for the one before. Set a deadline around it.

        Raises:
            RemoteNeighbourError: the next stage is not who it should be.
        """
        if self._key is None or self._group is None:
            raise LocalStartError("the control lane must be bound before it can join")
        if not self._key.done():
            self._key.set_result(peers.epoch_key)
        address = {peer.stage_index: peer.control_address for peer in peers.peers}[self._next]
        reader, writer = await self._connect(address)
        await self._exchange_hellos(reader, writer, self._next, we_speak_first=True)
        self._outgoing = writer
        self._group.create_task(self._read(reader, self._next), name=f"lane-to-{self._next}")
        await self._accepted.wait()

    def send_down(self, frame: bytes) -> None:
        """Sends an encoded message to the next stage; from the tail to the head."""
        self._write(self._outgoing, frame)

    async def tell_failure(self, failure: lane_pb2.StageFailed) -> None:
        """Tells all neighbours that the plan has failed, as far as they can still be reached."""
        self._closing = True
        frame = self.encode(failed=failure)
        for writer in (self._incoming, self._outgoing):
            self._write(writer, frame)
            if writer is not None:
                with contextlib.suppress(OSError):
                    async with asyncio.timeout(CLOSE_DEADLINE_SECONDS):
                        await writer.drain()

    async def close(self) -> None:
        """Ends all connections and stops listening."""
        self._closing = True
        if self._key is not None and not self._key.done():
            self._key.cancel()
        if self._server is not None:
            self._server.close()
        for writer in (self._incoming, self._outgoing):
            if writer is not None:
                # TLS would wait for the other side's farewell; it may be gone.
                writer.transport.abort()

    def encode(
        self,
        *,
        hello: lane_pb2.LaneHello | None = None,
        step: lane_pb2.StepHeader | None = None,
        result: lane_pb2.StepResult | None = None,
        release: lane_pb2.ReleaseSlot | None = None,
        failed: lane_pb2.StageFailed | None = None,
    ) -> bytes:
        """A message of this epoch as bytes. May be called from any thread."""
        return encode_frame(
            lane_pb2.LaneMessage(
                epoch=self._epoch,
                hello=hello,
                step=step,
                result=result,
                release=release,
                failed=failed,
            )
        )

    async def _connect(self, address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, _, port = address.rpartition(":")
        while True:
            try:
                return await asyncio.open_connection(
                    host.strip("[]"),
                    int(port),
                    ssl=self._client_tls,
                    server_hostname="",
                    ssl_handshake_timeout=HANDSHAKE_DEADLINE_SECONDS,
                )
            except ConnectionRefusedError:
                # It has reported this address, so it listens or is gone; the caller's deadline decides which.
                await asyncio.sleep(CONNECT_RETRY_SECONDS)
            except ssl.SSLError as error:
                raise RemoteNeighbourError(
                    f"stage {self._next} at {address} is not of this cluster: {error.reason}"
                ) from error
            except OSError as error:
                raise RemoteNeighbourError(
                    f"stage {self._next} at {address} cannot be reached: {error}"
                ) from error

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._group is not None and not self._closing:
            self._group.create_task(self._welcome(reader, writer), name="lane-incoming")
        else:
            writer.transport.abort()

    async def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._exchange_hellos(reader, writer, self._previous, we_speak_first=False)
            self._require_first_connection()
        except RemoteNeighbourError as error:
            writer.transport.abort()
            if not self._closing:
                self._on_stranger(str(error))
            return
        except asyncio.CancelledError:
            writer.transport.abort()
            if not self._closing:
                raise
            return
        self._incoming = writer
        self._accepted.set()
        await self._read(reader, self._previous)

    async def _exchange_hellos(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        stage: int,
        *,
        we_speak_first: bool,
    ) -> None:
        certificate: Mapping[str, object] | None = writer.get_extra_info("peercert")
        try:
            require_node(certificate, self._nodes[stage])
            async with asyncio.timeout(HELLO_DEADLINE_SECONDS):
                if we_speak_first:
                    await self._say_hello(writer)
                hello = self._hello_in(await read_frame(reader, lane_pb2.LaneMessage), stage)
                require_proof(hello, await self._epoch_key(), self._epoch, stage)
                if not we_speak_first:
                    await self._say_hello(writer)
        except RemoteNeighbourError:
            writer.transport.abort()
            raise
        except (OSError, RemoteFrameError) as error:
            writer.transport.abort()
            raise RemoteNeighbourError(f"stage {stage} did not say hello: {error!r}") from error

    async def _say_hello(self, writer: asyncio.StreamWriter) -> None:
        proof = stage_proof(await self._epoch_key(), self._epoch, self._stage)
        writer.write(self.encode(hello=lane_pb2.LaneHello(stage_index=self._stage, proof=proof)))
        await writer.drain()

    async def _epoch_key(self) -> bytes:
        if self._key is None:
            raise LocalStartError("the control lane is not bound")
        return await asyncio.shield(self._key)

    def _require_first_connection(self) -> None:
        if self._incoming is not None:
            raise RemoteNeighbourError(f"stage {self._previous} is connected already")

    def _hello_in(self, message: lane_pb2.LaneMessage | None, stage: int) -> lane_pb2.LaneHello:
        if message is None or message.WhichOneof("message") != "hello":
            raise RemoteNeighbourError(f"stage {stage} did not say hello")
        self._require_epoch(message, stage)
        return message.hello

    def _require_epoch(self, message: lane_pb2.LaneMessage, stage: int) -> None:
        if message.epoch != self._epoch:
            raise RemoteNeighbourError(
                f"stage {stage} sent a message of epoch {_text(message)}, not of this one"
            )

    async def _read(self, reader: asyncio.StreamReader, stage: int) -> None:
        try:
            while (message := await read_frame(reader, lane_pb2.LaneMessage)) is not None:
                self._require_epoch(message, stage)
                self._on_message(stage, message)
            reason = f"stage {stage} closed its control lane"
        except (OSError, RemoteFrameError, RemoteNeighbourError) as error:
            reason = f"the control lane to stage {stage} broke: {error}"
        if not self._closing:
            self._closing = True
            self._on_lost(reason)

    def _write(self, writer: asyncio.StreamWriter | None, frame: bytes) -> None:
        if writer is not None and not writer.transport.is_closing():
            writer.write(frame)


def _text(message: lane_pb2.LaneMessage) -> str:
    epoch = message.epoch
    return f"{epoch.generation}.{epoch.term}.{epoch.seq}"
