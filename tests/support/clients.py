"""Credentials of remote clients, issued by a running node."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc

from macmesh import Credentials
from macmesh.v1 import access_pb2, access_pb2_grpc
from macmesh_daemon.identity import make_certificate_request
from macmesh_daemon.identity.keys import new_private_key, private_key_to_pem

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

DEADLINE_SECONDS = 120.0


async def issue_client(socket_path: Path, role: str, addresses: Sequence[str]) -> Credentials:
    """Credentials for nodes at these addresses, from the node that holds the CA's key."""
    key_pem = private_key_to_pem(new_private_key())
    request = access_pb2.IssueClientRequest(
        name="t", role=role, request_der=make_certificate_request(key_pem)
    )
    async with grpc.aio.insecure_channel(f"unix:{socket_path}") as channel:
        stub: access_pb2_grpc.AccessServiceAsyncStub = access_pb2_grpc.AccessServiceStub(channel)
        issued = await stub.IssueClient(request, timeout=DEADLINE_SECONDS)
    return Credentials(issued.ca_pem, issued.certificate_pem, key_pem, addresses=tuple(addresses))
