"""The connection of the async client: its channels, and how calls are made on them."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from macmesh._addresses import AddressBook
from macmesh._rpc_errors import translate
from macmesh._targets import Target, check_owner, parse_target
from macmesh.credentials import Credentials
from macmesh.errors import LocalClosedError, MacmeshError
from macmesh.timeouts import Timeouts, grpc_timeout
from macmesh.v1 import cluster_pb2_grpc, inference_pb2_grpc

if TYPE_CHECKING:
    import asyncio

R = TypeVar("R", bound=Message)


class AsyncConnection:
    """What `macmesh.AsyncClient` is made on; its arguments and errors are told there."""

    def __init__(
        self,
        target: str | Path | None = None,
        *,
        credentials: Credentials | Path | str | None = None,
        timeouts: Timeouts | None = None,
    ) -> None:
        self._target = parse_target(target, credentials)
        check_owner(self._target)
        self._timeouts = timeouts or Timeouts()
        self._channel: grpc.aio.Channel | None = None
        self._closed = False
        self._book = AddressBook(self._target)
        # Of other nodes, where a generation went on.
        self._others: dict[str, grpc.aio.Channel] = {}
        self._looking: asyncio.Task[None] | None = None

    @property
    def target(self) -> str:
        """Where this client connects to."""
        return str(self._target)

    async def close(self) -> None:
        """Cancel what runs and disconnect. Calling it again does nothing."""
        self._closed = True
        if self._looking is not None:
            self._looking.cancel()
        own, self._channel = self._channel, None
        others, self._others = self._others, {}
        for channel in (*([own] if own is not None else []), *others.values()):
            await channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _open(self) -> grpc.aio.Channel:
        """The channel, made inside the running loop."""
        if self._closed:
            raise LocalClosedError("this client was closed")
        if self._channel is None:
            self._channel = _channel(self._target)
        return self._channel

    def _cluster(self) -> "cluster_pb2_grpc.ClusterServiceAsyncStub":
        return cluster_pb2_grpc.ClusterServiceStub(self._open())

    def _inference(self) -> "inference_pb2_grpc.InferenceServiceAsyncStub":
        return inference_pb2_grpc.InferenceServiceStub(self._open())

    def _failed(
        self, error: grpc.RpcError, name: str, seconds: float | None, node: Target | None = None
    ) -> MacmeshError:
        if self._closed:
            return LocalClosedError(f"{name}: this client was closed")
        return translate(error, node or self._target, name, seconds)

    async def _unary(
        self,
        name: str,
        method: Callable[..., Awaitable[R]],
        request: Message,
        timeout_seconds: float | None,
        default_seconds: float,
    ) -> R:
        seconds = grpc_timeout(default_seconds if timeout_seconds is None else timeout_seconds)
        try:
            return await method(request, timeout=seconds)
        except grpc.RpcError as error:
            raise self._failed(error, name, seconds) from error

    def _start(
        self,
        name: str,
        method: Callable[..., Any],
        request: Message,
        *,
        convert: Callable[[Any], Any],
        first_seconds: float,
        total_seconds: float = float("inf"),
        idle_seconds: float = float("inf"),
    ) -> dict[str, Any]:
        """Start a streaming call; the arguments of its `AsyncStream`."""
        total = grpc_timeout(total_seconds)
        return {
            "call": method(request, timeout=total),
            "name": name,
            "convert": convert,
            "failed": lambda error: self._failed(error, name, total),
            "first_seconds": first_seconds,
            "idle_seconds": idle_seconds,
        }

    def _channel_to(self, target: Target) -> grpc.aio.Channel:
        if target.address == self._target.address or self._closed:
            return self._open()
        channel = self._others.get(target.address)
        if channel is None:
            channel = self._others[target.address] = _channel(target)
        return channel


def _channel(target: Target) -> grpc.aio.Channel:
    tls, options = target.tls(), target.options()
    if tls is None:
        return grpc.aio.insecure_channel(target.address, options)
    return grpc.aio.secure_channel(target.address, tls, options)
