"""A daemon on a machine that belongs to no cluster: it says so, and goes on by itself once it has joined."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from macmesh.channel_options import SERVER_OPTIONS
from macmesh.paths import socket_address
from macmesh.reasons import Reason
from macmesh.v1 import cluster_pb2
from macmesh_daemon.clock import SystemClock, sleep_or_event
from macmesh_daemon.identity import (
    LocalCertificateExpiredError,
    LocalIdentityError,
    LocalNoClusterError,
    load_credentials,
)
from macmesh_daemon.identity.credentials import CERT_FILE_NAME, CLUSTER_FILE_NAME
from macmesh_daemon.logs import get_logger
from macmesh_daemon.node.call_errors import CallError, abort
from macmesh_daemon.node.errors import LocalPortBusy
from macmesh_daemon.node.listening import prepare_socket_folder

if TYPE_CHECKING:
    from pathlib import Path

    from macmesh_daemon.clock import Clock
    from macmesh_daemon.config import Config
    from macmesh_daemon.identity import NodeCredentials

_log = get_logger(part="node")

#: How soon a membership is noticed that `daemonctl cluster init` or `join` has put into the data folder.
LOOK_SECONDS = 0.5
_STATUS_METHOD = "/macmesh.v1.ClusterService/GetStatus"
#: The serving state of a machine that belongs to no cluster.
UNJOINED = "unjoined"


async def wait_for_membership(
    config: Config, *, stop: asyncio.Event, node_id: str, clock: Clock | None = None
) -> NodeCredentials | None:
    """The node's credentials, at once where it has them; None where it was stopped before it got any.

    Meanwhile the Unix socket answers `status` with what to do.

    Raises:
        LocalCredentialsError: the files are broken, which waiting does not mend.
        LocalFolderNotPrivateError: somebody else could replace the socket.
        LocalPortBusy: the socket cannot be bound.
        OSError: the folder cannot be read.
    """
    try:
        return await asyncio.to_thread(load_credentials, config.data_dir)
    except (LocalNoClusterError, LocalCertificateExpiredError) as error:
        why: LocalIdentityError = error
    seen = await asyncio.to_thread(_fingerprint, config.data_dir)
    _log.warning("node waits for a cluster", problem=str(why))
    room = _WaitingRoom(config.resolved_socket_path(), node_id, why)
    await room.open()
    try:
        while not stop.is_set():
            if await sleep_or_event(clock or SystemClock(), LOOK_SECONDS, stop):
                break
            found = await asyncio.to_thread(_fingerprint, config.data_dir)
            if found == seen:
                continue
            seen = found
            try:
                credentials = await asyncio.to_thread(load_credentials, config.data_dir)
            except (LocalNoClusterError, LocalCertificateExpiredError) as error:
                room.why = error
                continue
            _log.info("node joined", cluster=credentials.cluster_prefix)
            return credentials
        return None
    finally:
        await room.close()


def _fingerprint(data_dir: Path) -> tuple[int, ...]:
    """Changes when a membership is written. Blocks."""
    stamps = []
    for name in (CLUSTER_FILE_NAME, CERT_FILE_NAME):
        try:
            found = (data_dir / name).stat()
        except FileNotFoundError:
            stamps.append(0)
        else:
            stamps.append(hash((found.st_mtime_ns, found.st_ino)))
    return tuple(stamps)


class _WaitingRoom(grpc.GenericRpcHandler):
    """Answers `status`, and everything else with the reason."""

    def __init__(self, path: Path, node_id: str, why: LocalIdentityError) -> None:
        self._path = path
        self._node_id = node_id
        self.why = why
        self._server = grpc.aio.server(options=SERVER_OPTIONS)
        self._server.add_generic_rpc_handlers((self,))

    async def open(self) -> None:
        await asyncio.to_thread(prepare_socket_folder, self._path)
        try:
            if self._server.add_insecure_port(socket_address(self._path)) == 0:
                raise LocalPortBusy(str(self._path), None)
        except RuntimeError as error:
            raise LocalPortBusy(str(self._path), error) from error
        self._path.chmod(0o600)
        await self._server.start()

    async def close(self) -> None:
        await self._server.stop(None)
        with contextlib.suppress(OSError):
            self._path.unlink()

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The handler of a call."""
        if handler_call_details.method == _STATUS_METHOD:
            return grpc.unary_unary_rpc_method_handler(
                self._status,
                request_deserializer=cluster_pb2.GetStatusRequest.FromString,
                response_serializer=cluster_pb2.GetStatusResponse.SerializeToString,
            )
        return grpc.unary_unary_rpc_method_handler(self._not_joined)

    async def _status(
        self, request: cluster_pb2.GetStatusRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> cluster_pb2.GetStatusResponse:
        del request, context
        return cluster_pb2.GetStatusResponse(
            node_id=self._node_id, serving_state=UNJOINED, health=[str(self.why)]
        )

    async def _not_joined(self, request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        del request
        await abort(context, CallError(Reason.NOT_JOINED, str(self.why)))
