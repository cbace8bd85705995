"""Renews this node's certificate before it ends, over the connections that it has anyway."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import grpc

from macmesh.v1 import join_pb2, join_pb2_grpc
from macmesh_daemon.identity import IdentityError, make_certificate_request, replace_certificate
from macmesh_daemon.identity.certificates import end_of_ca
from macmesh_daemon.identity.renewal import renewal_is_due, warning_of
from macmesh_daemon.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from macmesh.v1.join_pb2_grpc import TrustServiceAsyncStub
    from macmesh_daemon.clock import Clock
    from macmesh_daemon.node.issuer import Issuer
    from macmesh_daemon.node.live_credentials import LiveCredentials
    from macmesh_daemon.node.peers import PeerPool

_log = get_logger(part="renewal")

#: How often the certificate's age is looked at, and a failed renewal tried again.
LOOK_SECONDS = 3600.0
RENEW_DEADLINE_SECONDS = 10.0


class Renewer:
    """Looks at the certificate once an hour; where a third of its validity is left, gets a new one.

    Signs it here where the CA key is here; else asks the members in turn until one signs. What fails is tried
    again an hour later, for as long as it takes.
    """

    def __init__(
        self,
        *,
        data_dir: Path,
        credentials: LiveCredentials,
        issuer: Issuer,
        peers: PeerPool,
        members: Callable[[], Iterable[str]],
        clock: Clock,
        wall_seconds: Callable[[], float],
    ) -> None:
        self._folder = data_dir
        self._credentials = credentials
        self._issuer = issuer
        self._peers = peers
        self._members = members
        self._clock = clock
        self._wall_seconds = wall_seconds
        #: Renewals since the start.
        self.renewals = 0

    async def run(self) -> None:
        """Renew in time until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                try:
                    renewed = await self.renew_if_due()
                except (IdentityError, OSError) as error:
                    renewed = False
                    _log.error("certificate not renewed", error=str(error))
                if renewed:
                    # Old calls may take a day to end; the next renewal does not wait for them.
                    tasks.create_task(self._peers.renew(), name="connections with the renewed certificate")
                await self._clock.sleep(LOOK_SECONDS)

    async def renew_if_due(self) -> bool:
        """Look once; whether a new certificate is in use now."""
        credentials = self._credentials.current
        now = datetime.fromtimestamp(self._wall_seconds(), UTC)
        if not renewal_is_due(credentials.expires_at, now, ca_ends_at=end_of_ca(credentials.ca_pem)):
            return False
        request_der = make_certificate_request(credentials.key_pem)
        certificate = await self._signed(request_der)
        if certificate is not None:
            try:
                renewed = await asyncio.to_thread(
                    replace_certificate,
                    self._folder,
                    certificate,
                    machine=credentials.hardware_id,
                    now=now,
                )
            except (IdentityError, OSError) as error:
                _log.error("renewed certificate not usable", error=str(error))
            else:
                self._credentials.replace(renewed)
                self.renewals += 1
                _log.info("certificate renewed", ends=renewed.expires_at.isoformat())
                return True
        if (warning := warning_of(credentials.expires_at, now)) is not None:
            _log.error("certificate not renewed", problem=warning)
        return False

    async def _signed(self, request_der: bytes) -> bytes | None:
        node_id = self._credentials.current.node_id
        if await self._issuer.can_sign():
            try:
                return await self._issuer.renew(node_id, request_der)
            except IdentityError as error:
                _log.error("certificate not signed here", error=str(error))
        request = join_pb2.RenewCertificateRequest(request_der=request_der)
        for member in self._members():
            channel = self._peers.channel(member)
            if channel is None:
                continue
            stub: TrustServiceAsyncStub = join_pb2_grpc.TrustServiceStub(channel)
            try:
                response = await stub.RenewCertificate(request, timeout=RENEW_DEADLINE_SECONDS)
            except grpc.aio.AioRpcError as error:
                _log.info("certificate not renewed by peer", peer=member, code=error.code().name)
                continue
            return response.certificate_pem
        return None
