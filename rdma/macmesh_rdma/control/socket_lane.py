"""The control lane over TCP with mutual TLS."""

import asyncio
import ssl

from macmesh_rdma.addresses import split_address
from macmesh_rdma.control.connection import Connection
from macmesh_rdma.control.lane import ControlEvents, ControlLane, ControlOptions, Handshake
from macmesh_rdma.errors import (
    LocalAddressError,
    LocalLaneStateError,
    RemoteAuthenticationError,
    RemotePeerLostError,
    RemoteTimeoutError,
    RemoteTransportError,
)


class SocketControlLane(ControlLane):
    """See `ControlLane`.

    Args:
        server_tls: for those who connect to us; must ask for a certificate.
        client_tls: for those to whom we connect; must show one.
        handshake: who we are, and who may be at the other end.
        events: what is told.
        options: bounds.
    """

    def __init__(
        self,
        *,
        server_tls: ssl.SSLContext,
        client_tls: ssl.SSLContext,
        handshake: Handshake,
        events: ControlEvents,
        options: ControlOptions | None = None,
    ) -> None:
        self._server_tls = server_tls
        self._client_tls = client_tls
        self._handshake = handshake
        self._events = events
        self._options = options or ControlOptions()
        self._server: asyncio.Server | None = None
        self._group: asyncio.TaskGroup | None = None
        self._outgoing: dict[int, Connection] = {}
        self._incoming: dict[int, Connection] = {}
        self._callers: set[Connection] = set()
        self._arriving: set[int] = set()
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._ended = ""
        self._closed = False

    async def bind(self, host: str, group: asyncio.TaskGroup) -> str:
        """See `ControlLane.bind`."""
        self._group = group
        try:
            self._server = await asyncio.start_server(
                self._accept,
                host,
                0,
                ssl=self._server_tls,
                ssl_handshake_timeout=self._options.handshake_deadline_seconds,
            )
        except OSError as error:
            raise LocalAddressError(f"the control lane cannot listen on {host!r}: {error}") from error
        port = self._server.sockets[0].getsockname()[1]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def connect(self, rank: int, address: str) -> None:
        """See `ControlLane.connect`."""
        group = self._require_open()
        if rank in self._outgoing:
            raise LocalLaneStateError(f"rank {rank} is connected already")
        connection = await self._dial(rank, address)
        try:
            self._handshake.check_certificate(rank, connection.certificate)
            async with asyncio.timeout(self._options.hello_deadline_seconds):
                await connection.say_hello(await self._handshake.hello())
                hello = await connection.read_hello()
                await self._handshake.check_hello(rank, connection.certificate, hello)
            self._require_open()
        except TimeoutError as error:
            connection.abort()
            raise RemoteTimeoutError(
                f"rank {rank} at {address} said no hello within {self._options.hello_deadline_seconds:g} s"
            ) from error
        except RemotePeerLostError as error:
            connection.abort()
            raise RemotePeerLostError(f"rank {rank} at {address} did not say hello: {error}") from error
        except BaseException:
            connection.abort()
            raise
        self._outgoing[rank] = connection
        group.create_task(self._serve(rank, connection), name=f"control-to-{rank}")

    async def wait_for(self, rank: int) -> None:
        """See `ControlLane.wait_for`."""
        self._require_open()
        if rank not in self._incoming:
            arrival = self._waiting.setdefault(rank, asyncio.get_running_loop().create_future())
            await asyncio.shield(arrival)
            self._require_open()

    def send_now(self, rank: int, message: bytes) -> None:
        """See `ControlLane.send_now`."""
        self._connection_to(rank).send_now(message)

    async def send(self, rank: int, message: bytes) -> None:
        """See `ControlLane.send`."""
        await self._connection_to(rank).send(message)

    async def flush(self, rank: int) -> None:
        """See `ControlLane.flush`."""
        await self._connection_to(rank).flush()

    async def say_last(self, message: bytes, timeout_seconds: float) -> None:
        """See `ControlLane.say_last`."""
        self._end("the last words were said")
        async with asyncio.TaskGroup() as group:
            for connection in (*self._incoming.values(), *self._outgoing.values()):
                group.create_task(connection.say_last(message, timeout_seconds), name="control-last-words")
        await self.close()

    async def close(self) -> None:
        """See `ControlLane.close`."""
        self._end("it is closed")
        self._closed = True
        if self._server is not None:
            self._server.close()
        for connection in (*self._callers, *self._incoming.values(), *self._outgoing.values()):
            connection.abort()

    def _require_open(self) -> asyncio.TaskGroup:
        if self._ended or self._group is None:
            raise LocalLaneStateError(
                f"the control lane has ended: {self._ended}" if self._ended else "bind first"
            )
        return self._group

    def _connection_to(self, rank: int) -> Connection:
        self._require_open()
        connection = self._outgoing.get(rank) or self._incoming.get(rank)
        if connection is None:
            raise LocalLaneStateError(f"there is no connection to rank {rank}")
        return connection

    async def _dial(self, rank: int, address: str) -> Connection:
        host, port = split_address(address)
        while True:
            try:
                reader, writer = await asyncio.open_connection(
                    host,
                    port,
                    ssl=self._client_tls,
                    server_hostname="",
                    ssl_handshake_timeout=self._options.handshake_deadline_seconds,
                )
            except ConnectionRefusedError:
                # It has told this address, so it listens or is gone; the caller's deadline decides which.
                await asyncio.sleep(self._options.connect_retry_seconds)
            except ssl.SSLError as error:
                raise RemoteAuthenticationError(
                    f"rank {rank} at {address} is not of this cluster: {error.reason}"
                ) from error
            except OSError as error:
                raise RemotePeerLostError(f"rank {rank} at {address} cannot be reached: {error}") from error
            else:
                return Connection(reader, writer, self._options)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._ended or self._group is None:
            writer.transport.abort()
        elif len(self._callers) >= self._options.max_callers:
            writer.transport.abort()
            self._events.stranger(f"{len(self._callers)} connections are in their handshake already")
        else:
            connection = Connection(reader, writer, self._options)
            self._callers.add(connection)
            self._group.create_task(self._welcome(connection), name="control-caller")

    async def _welcome(self, connection: Connection) -> None:
        try:
            rank = await self._identify(connection)
        except (RemoteTransportError, TimeoutError) as error:
            connection.abort()
            if not self._ended:
                reason = "it said no hello in time" if isinstance(error, TimeoutError) else str(error)
                self._events.stranger(reason)
            return
        except asyncio.CancelledError:
            # The hello waits for what `close` has given up, or the whole group ends.
            connection.abort()
            if self._ended:
                return
            raise
        finally:
            self._callers.discard(connection)
        self._incoming[rank] = connection
        if rank in self._waiting:
            self._waiting.pop(rank).set_result(None)
        await self._serve(rank, connection)

    async def _identify(self, connection: Connection) -> int:
        handshake = self._handshake
        handshake.check_certificate(None, connection.certificate)
        async with asyncio.timeout(self._options.hello_deadline_seconds):
            hello = await connection.read_hello()
            rank = await handshake.check_hello(None, connection.certificate, hello)
            if rank in self._incoming or rank in self._arriving:
                raise RemoteAuthenticationError(f"rank {rank} is connected already")
            self._arriving.add(rank)
            try:
                await connection.say_hello(await handshake.hello())
            finally:
                self._arriving.discard(rank)
        return rank

    async def _serve(self, rank: int, connection: Connection) -> None:
        try:
            await connection.run(lambda message: self._take(rank, message))
        except RemoteTransportError as error:
            self._lose(rank, str(error))

    def _take(self, rank: int, message: bytes) -> None:
        # Not where the lane has only failed: another rank may tell why.
        if not self._closed:
            self._events.message(rank, message)

    def _lose(self, rank: int, reason: str) -> None:
        if not self._ended:
            self._end(f"rank {rank} was lost: {reason}")
            self._events.lost(rank, reason)

    def _end(self, reason: str) -> None:
        if not self._ended:
            self._ended = reason
            for arrival in self._waiting.values():
                arrival.set_result(None)
            self._waiting.clear()
