"""The interceptor that every call passes: who calls, may they, were they shut out, and how many calls at once."""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

import grpc
import grpc.aio
from cryptography import x509

from macmesh.reasons import Reason
from macmesh_daemon.identity import Caller, RemoteUntrustedError, Role, caller_of_certificate
from macmesh_daemon.logs import get_logger
from macmesh_daemon.node.authorisation import may_call
from macmesh_daemon.node.call_errors import CallError, abort

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

_log = get_logger(part="gate")

#: Calls of one remote client at once.
CLIENT_CALLS: Final = 16
#: Calls of one node at once. A head gets one stream for each request of an API node, and a heartbeat must
#: never wait behind them, so this is far above what a node does in earnest.
NODE_CALLS: Final = 256
#: Certificates whose holders are remembered, so that a heartbeat costs no parsing.
_REMEMBERED: Final = 256

Context = grpc.aio.ServicerContext[Any, Any]


class Gate(grpc.aio.ServerInterceptor):
    """Lets a call through to its service, or ends it with the reason.

    Args:
        local: The door is the Unix socket: whoever can open it owns the node.
        is_denied: Whether the cluster shut an id out.
    """

    def __init__(self, *, local: bool, is_denied: Callable[[str], bool]) -> None:
        self._local = local
        self._is_denied = is_denied
        self._known: OrderedDict[bytes, Caller] = OrderedDict()
        self._running: dict[str, set[asyncio.Timeout]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Put the checks in front of the call's handler."""
        handler: Any = await continuation(handler_call_details)
        if handler is None:
            return None
        method = str(handler_call_details.method)
        codecs = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        if handler.unary_unary is not None:
            guarded = grpc.unary_unary_rpc_method_handler(self._unary(handler.unary_unary, method), **codecs)
        elif handler.unary_stream is not None:
            guarded = grpc.unary_stream_rpc_method_handler(
                self._streaming(handler.unary_stream, method), **codecs
            )
        else:
            # No service of macmesh has one; a new one must be thought about here first.
            guarded = grpc.unary_unary_rpc_method_handler(_refuse_streaming_requests, **codecs)
        return guarded

    def shut_out(self, caller_id: str) -> int:
        """End the calls of somebody who was evicted; returns how many."""
        scopes = self._running.get(caller_id, set())
        for scope in scopes:
            scope.reschedule(asyncio.get_running_loop().time())
        return len(scopes)

    def callers(self) -> frozenset[str]:
        """Ids of those whose calls run now."""
        return frozenset(self._running)

    def _unary(self, behaviour: Any, method: str) -> Any:
        async def call(request: Any, context: Context) -> Any:
            caller = await self._admit(context, method)
            try:
                async with self._counted(caller):
                    return await behaviour(request, context)
            except _CutError:
                await abort(context, _EVICTED)

        return call

    def _streaming(self, behaviour: Any, method: str) -> Any:
        # A coroutine that writes, not a generator: so that an eviction can interrupt a write, too.
        async def call(request: Any, context: Context) -> None:
            caller = await self._admit(context, method)
            try:
                async with self._counted(caller):
                    running = behaviour(request, context)
                    if not hasattr(running, "__aiter__"):
                        await running  # a servicer that writes by itself, as that of grpc.health does
                        return
                    async with contextlib.aclosing(running) as responses:
                        async for response in responses:
                            await context.write(response)
            except _CutError:
                await abort(context, _EVICTED)

        return call

    async def _admit(self, context: Context, method: str) -> Caller:
        try:
            caller = self._caller(context)
        except RemoteUntrustedError as error:
            await abort(context, CallError(Reason.NOT_A_MEMBER, str(error)))
        if caller.caller_id and self._is_denied(caller.caller_id):
            await abort(context, _EVICTED)
        if not may_call(caller.role, method):
            _log.warning("call refused", method=method, role=caller.role.value, caller=caller.caller_id)
            await abort(
                context,
                CallError(
                    Reason.FORBIDDEN,
                    f"a caller with the role {caller.role.value} may not call {method.rpartition('/')[2]}",
                    {"role": caller.role.value},
                ),
            )
        limit = NODE_CALLS if caller.role is Role.NODE else CLIENT_CALLS
        if caller.caller_id and len(self._running.get(caller.caller_id, ())) >= limit:
            await abort(
                context,
                CallError(
                    Reason.RESOURCE_EXHAUSTED,
                    f"{limit} calls of this caller run already: end one, or wait",
                    {"limit": limit},
                ),
            )
        return caller

    def _caller(self, context: Context) -> Caller:
        if self._local:
            return Caller(Role.LOCAL)
        pem = next(iter(context.auth_context().get("x509_pem_cert") or ()), None)
        if pem is None:
            raise RemoteUntrustedError("the caller showed no certificate")
        data = pem if isinstance(pem, bytes) else str(pem).encode("ascii")
        known = self._known.get(data)
        if known is None:
            try:
                certificate = x509.load_pem_x509_certificate(data)
            except ValueError as error:
                raise RemoteUntrustedError(f"the caller's certificate cannot be read: {error}") from error
            known = self._known[data] = caller_of_certificate(certificate)
            while len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return known

    @contextlib.asynccontextmanager
    async def _counted(self, caller: Caller) -> AsyncIterator[None]:
        """Count the call among its caller's, and end it with `_CutError` once the caller is shut out."""
        if not caller.caller_id:
            yield
            return
        scope = asyncio.timeout(None)
        try:
            async with scope:
                with self._listed(caller.caller_id, scope):
                    yield
        except TimeoutError:
            if scope.expired():
                raise _CutError from None
            raise

    @contextlib.contextmanager
    def _listed(self, caller_id: str, scope: asyncio.Timeout) -> Iterator[None]:
        scopes = self._running.setdefault(caller_id, set())
        scopes.add(scope)
        try:
            yield
        finally:
            scopes.discard(scope)
            if not scopes:
                self._running.pop(caller_id, None)


class _CutError(Exception):
    """The caller was shut out while the call ran."""


_EVICTED = CallError(
    Reason.EVICTED, "the cluster has shut this caller out: its certificate is of no use any more"
)


async def _refuse_streaming_requests(request: Any, context: Context) -> Any:
    del request
    await abort(context, CallError(Reason.INTERNAL, "calls that stream requests have no rule yet"))
