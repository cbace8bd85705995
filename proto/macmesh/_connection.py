"""The connection of the sync client: its channels, and how calls are made on them."""

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
from google.protobuf.message import Message

from macmesh._addresses import AddressBook
from macmesh._rpc_errors import translate
from macmesh._targets import Target, check_owner, parse_target
from macmesh._watchdog import Watchdog
from macmesh.credentials import Credentials
from macmesh.errors import LocalClosedError, MacmeshError
from macmesh.timeouts import Timeouts, grpc_timeout
from macmesh.v1 import access_pb2_grpc, cluster_pb2_grpc, inference_pb2_grpc

R = TypeVar("R", bound=Message)


class Connection:
    """What `macmesh.Client` is made on; its arguments and errors are told there."""

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
        tls = self._target.tls()
        address, options = self._target.address, self._target.options()
        self._channel = (
            grpc.secure_channel(address, tls, options) if tls else grpc.insecure_channel(address, options)
        )
        self._cluster = cluster_pb2_grpc.ClusterServiceStub(self._channel)
        self._inference = inference_pb2_grpc.InferenceServiceStub(self._channel)
        self._access = access_pb2_grpc.AccessServiceStub(self._channel)
        self._watchdog = Watchdog()
        self._closed = False
        self._book = AddressBook(self._target)
        # Of other nodes, where a generation went on.
        self._others: dict[str, grpc.Channel] = {}

    @property
    def target(self) -> str:
        """Where this client connects to."""
        return str(self._target)

    def close(self) -> None:
        """Cancel what runs and disconnect. Calling it again does nothing."""
        self._closed = True
        self._watchdog.close()
        for channel in (self._channel, *self._others.values()):
            channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _failed(
        self, error: grpc.RpcError, name: str, seconds: float | None, node: Target | None = None
    ) -> MacmeshError:
        if self._closed:
            return LocalClosedError(f"{name}: this client was closed")
        return translate(error, node or self._target, name, seconds)

    def _check_open(self, name: str) -> None:
        if self._closed:
            raise LocalClosedError(f"{name}: this client was closed")

    def _unary(
        self,
        name: str,
        method: Callable[..., R],
        request: Message,
        timeout_seconds: float | None,
        default_seconds: float,
    ) -> R:
        self._check_open(name)
        seconds = grpc_timeout(default_seconds if timeout_seconds is None else timeout_seconds)
        try:
            return method(request, timeout=seconds)
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
        """Start a streaming call; the arguments of its `Stream`."""
        self._check_open(name)
        total = grpc_timeout(total_seconds)
        return {
            "call": method(request, timeout=total),
            "name": name,
            "convert": convert,
            "failed": lambda error: self._failed(error, name, total),
            "watchdog": self._watchdog,
            "first_seconds": first_seconds,
            "idle_seconds": idle_seconds,
        }

    def _channel_to(self, target: Target) -> grpc.Channel:
        if target.address == self._target.address:
            return self._channel
        channel = self._others.get(target.address)
        if channel is None:
            tls = target.tls()
            options = target.options()
            channel = self._others[target.address] = (
                grpc.secure_channel(target.address, tls, options)
                if tls
                else grpc.insecure_channel(target.address, options)
            )
        return channel
