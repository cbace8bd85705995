"""The join door: a TLS port for machines that hold a token and no certificate yet.

It is open only while a token lives. gRPC is not used here: its client cannot connect before it trusts a CA,
and its server takes every handshake that comes. This one takes at most so many, and looks at one message.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING

from macmesh.v1 import join_pb2
from macmesh_daemon.config import split_address
from macmesh_daemon.discovery import join_address
from macmesh_daemon.identity import LocalIdentityError, RemoteJoinRefusedError, RemoteUntrustedError
from macmesh_daemon.identity.limits import BucketPerAddress, FailureLimiter, TokenBucket, address_key
from macmesh_daemon.logs import get_logger
from macmesh_daemon.node.errors import LocalPortBusy
from macmesh_daemon.node.join_wire import frame, read_message

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from macmesh_daemon.clock import Clock
    from macmesh_daemon.node.issuer import Issuer
    from macmesh_daemon.node.live_credentials import LiveCredentials

_log = get_logger(part="join door")

#: How long a live token can stay unnoticed when the wall clock jumps.
_LOOK_SECONDS = 1.0
#: Refusals that count as a failed try of the caller's address.
_GUESSES = frozenset({"TOKEN_REFUSED", "TOKEN_SPENT"})


@dataclass(frozen=True, slots=True)
class DoorLimits:
    """What strangers may cost."""

    #: Handshakes of everybody together: a millisecond or two of processor time each.
    handshakes_per_second: float = 20.0
    #: Handshakes of one address: a join takes two.
    handshakes_per_address_per_second: float = 5.0
    #: Connections taken off the queue at all; the rest wait in the kernel, which drops what does not fit.
    accepts_per_second: float = 200.0
    #: Connections at once.
    connections: int = 32
    #: From the accept to the last byte.
    connection_deadline_seconds: float = 10.0
    handshake_deadline_seconds: float = 5.0


class JoinDoor:
    """Opens while a token lives, admits who brings one, and is shut otherwise.

    Args:
        host: IP address to listen on.
        port: TCP port; 0 takes a free one.
        credentials: Whose certificate is shown.
        issuer: Judges tokens and signs.
        known_nodes: Members and their addresses, told to whoever was admitted.
        clock: For the limits.
        wall_seconds: Seconds since 1970, for the tokens' ends.
        tell_port: Called with the port when the door opens, and 0 when it is shut.
        limits: What strangers may cost.
    """

    def __init__(
        self,
        *,
        host: str,
        port: int,
        credentials: LiveCredentials,
        issuer: Issuer,
        known_nodes: Callable[[], Iterable[tuple[str, tuple[str, ...]]]],
        clock: Clock,
        wall_seconds: Callable[[], float],
        tell_port: Callable[[int], None],
        limits: DoorLimits | None = None,
    ) -> None:
        self._host, self._wanted_port = host, port
        self._credentials = credentials
        self._issuer = issuer
        self._known_nodes = known_nodes
        self._clock = clock
        self._wall_seconds = wall_seconds
        self._tell_port = tell_port
        self._limits = limits or DoorLimits()
        self._failures = FailureLimiter()
        self._everybody = TokenBucket(
            self._limits.handshakes_per_second, burst=self._limits.handshakes_per_second
        )
        self._each = BucketPerAddress(
            self._limits.handshakes_per_address_per_second,
            burst=2 * self._limits.handshakes_per_address_per_second,
        )
        self._problem: str | None = None
        #: The port while the door is open; 0 while it is shut.
        self.port = 0
        #: Connections turned away before their handshake, since the start.
        self.turned_away = 0
        self._opened = asyncio.Event()

    def health(self) -> tuple[str, ...]:
        """What a person should know."""
        return () if self._problem is None else (self._problem,)

    async def opened(self) -> int:
        """Wait until the door is open; its port. The caller sets the deadline."""
        await self._opened.wait()
        return self.port

    async def run(self) -> None:
        """Open and shut the door until cancelled."""
        while True:
            self._issuer.changed.clear()
            if await self._live_until() is None:
                await self._issuer.changed.wait()
                continue
            try:
                listener = await asyncio.to_thread(_listen, self._host, self._wanted_port)
                context = await asyncio.to_thread(self._tls)
            except (LocalPortBusy, OSError) as error:
                self._problem = f"machines cannot join: {error}"
                _log.warning("join door cannot open", error=str(error))
                await self._clock.sleep(_LOOK_SECONDS)
                continue
            self._problem = None
            try:
                await self._open(listener, context)
            finally:
                listener.close()
                self.port = 0
                self._opened.clear()
                self._tell_port(0)
                _log.info("join door shut")

    async def _live_until(self) -> float | None:
        try:
            return (await self._issuer.tokens()).live_until(self._wall_seconds())
        except LocalIdentityError as error:
            self._problem = f"machines cannot join: {error}"
            return None

    async def _open(self, listener: socket.socket, context: ssl.SSLContext) -> None:
        self.port = listener.getsockname()[1]
        self._opened.set()
        self._tell_port(self.port)
        _log.info("join door open", port=self.port)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._watch_tokens(), name="join door tokens")
                tasks.create_task(self._accept(listener, context, tasks), name="join door accept")
        except* (_NoTokenLives, OSError) as group:
            if (trouble := group.subgroup(OSError)) is not None:
                _log.warning("join door failed", error=str(trouble.exceptions[0]))
                await self._clock.sleep(_LOOK_SECONDS)

    async def _watch_tokens(self) -> None:
        while await self._live_until() is not None:
            await self._clock.sleep(_LOOK_SECONDS)
        raise _NoTokenLives

    async def _accept(
        self, listener: socket.socket, context: ssl.SSLContext, tasks: asyncio.TaskGroup
    ) -> None:
        loop = asyncio.get_running_loop()
        places = asyncio.Semaphore(self._limits.connections)
        credentials = self._credentials.current
        while True:
            connection, address = await loop.sock_accept(listener)
            if self._credentials.current is not credentials:
                credentials = self._credentials.current
                context = await asyncio.to_thread(self._tls)
            key = address_key(str(address[0]))
            now = self._clock.now()
            if places.locked() or not (self._each.take(key, now) and self._everybody.take(now)):
                self.turned_away += 1
                connection.close()
                # Nobody is served faster than this, so a flood costs the loop no more.
                await self._clock.sleep(1.0 / self._limits.accepts_per_second)
                continue
            await places.acquire()
            task = tasks.create_task(self._serve(connection, key, context), name="join door caller")
            task.add_done_callback(lambda _task: places.release())

    async def _serve(self, connection: socket.socket, key: str, context: ssl.SSLContext) -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=2**16, loop=loop)
        transport: asyncio.BaseTransport | None = None
        try:
            async with asyncio.timeout(self._limits.connection_deadline_seconds):
                transport, protocol = await loop.connect_accepted_socket(
                    lambda: asyncio.StreamReaderProtocol(reader, loop=loop),
                    connection,
                    ssl=context,
                    ssl_handshake_timeout=self._limits.handshake_deadline_seconds,
                    ssl_shutdown_timeout=1.0,
                )
                writer = asyncio.StreamWriter(transport, protocol, reader, loop)
                request = await read_message(reader, join_pb2.JoinRequest)
                writer.write(frame(await self._answer(request, key)))
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except Exception as error:  # noqa: BLE001  whatever strangers do, the door stays
            _log.debug("join door caller gone", error=type(error).__name__)
        finally:
            if transport is None:
                connection.close()
            elif isinstance(transport, asyncio.Transport):
                transport.abort()

    async def _answer(self, request: join_pb2.JoinRequest, key: str) -> join_pb2.JoinResponse:
        match request.WhichOneof("ask"):
            case "cluster_ca":
                return join_pb2.JoinResponse(
                    cluster_ca=join_pb2.ClusterCaResponse(ca_pem=self._credentials.current.ca_pem)
                )
            case "admit":
                return await self._admit(request.admit, key)
            case _:
                return _refusal("BAD_REQUEST", "the request asks nothing that this version knows")

    async def _admit(self, request: join_pb2.AdmitRequest, key: str) -> join_pb2.JoinResponse:
        wait_seconds = self._failures.wait_seconds(key, self._clock.now())
        if wait_seconds > 0:
            return _refusal(
                "TOO_MANY_TRIES", f"too many wrong tokens: wait {wait_seconds:.0f} s", wait_seconds
            )
        try:
            node_id, certificate = await self._issuer.admit(
                request.token_id, request.secret, request.request_der
            )
        except RemoteJoinRefusedError as error:
            if error.reason in _GUESSES:
                self._failures.failed(key, self._clock.now())
            _log.warning("join refused", reason=error.reason, address=key)
            return _refusal(error.reason, str(error), error.retry_after_seconds)
        except RemoteUntrustedError as error:
            self._failures.failed(key, self._clock.now())
            return _refusal("BAD_REQUEST", str(error))
        except (LocalIdentityError, OSError) as error:
            _log.error("join failed", error=str(error))
            return _refusal("NOT_READY", "this node cannot admit anybody now; its log says why")
        _log.info("node admitted", peer=node_id, address=key, token=request.token_id)
        return join_pb2.JoinResponse(
            admitted=join_pb2.AdmitResponse(
                certificate_pem=certificate,
                nodes=[
                    join_pb2.KnownNode(node_id=known_id, addresses=addresses)
                    for known_id, addresses in self._known_nodes()
                ],
            )
        )

    def _tls(self) -> ssl.SSLContext:
        credentials = self._credentials.current
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.num_tickets = 0
        context.load_cert_chain(credentials.cert_path, credentials.key_path)
        return context


class _NoTokenLives(Exception):  # noqa: N818  shuts the door, not an error
    pass


def _refusal(reason: str, message: str, retry_after_seconds: float = 0.0) -> join_pb2.JoinResponse:
    refused = join_pb2.JoinRefusal(reason=reason, message=message, retry_after_seconds=retry_after_seconds)
    return join_pb2.JoinResponse(refused=refused)


def _listen(host: str, port: int) -> socket.socket:
    """A non-blocking listening socket.

    Raises:
        LocalPortBusy: The port is taken.
    """
    bare, _ = split_address(join_address(host, port or 1))
    family = socket.AF_INET6 if ":" in bare else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((bare, port))
        listener.listen(16)
        listener.settimeout(0)
    except OSError as error:
        listener.close()
        raise LocalPortBusy(join_address(host, port), error) from error
    return listener
