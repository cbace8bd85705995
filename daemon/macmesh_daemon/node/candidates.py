"""Verifies candidates: dials what discovery found and keeps what proves to be a node of this cluster."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc

from macmesh_daemon.cluster.events import CandidateVerified
from macmesh_daemon.config import split_address
from macmesh_daemon.identity import IdentityError
from macmesh_daemon.logs import get_logger
from macmesh_daemon.node.codec import from_proto
from macmesh_daemon.node.tls import probe_node_id

if TYPE_CHECKING:
    from collections.abc import Callable

    from macmesh.v1 import peer_pb2
    from macmesh_daemon.clock import Clock
    from macmesh_daemon.discovery import Candidate
    from macmesh_daemon.identity import NodeCredentials
    from macmesh_daemon.node.peers import PeerPool

_log = get_logger(part="candidates")

#: A handshake and a Hello on a local network take milliseconds; a Mac that is waking takes longer.
DIAL_DEADLINE_SECONDS = 3.0
#: A candidate that failed is not dialled again sooner than this, doubling up to the maximum.
BACKOFF_SECONDS = 1.0
MAX_BACKOFF_SECONDS = 15.0
#: A verified candidate is greeted again after this, so that changed facts and addresses are learned.
REFRESH_SECONDS = 10.0
#: Dials in flight at most; candidates come from an open network.
MAX_DIALS = 16


@dataclass(slots=True)
class _Known:
    not_before: float = 0.0
    backoff_seconds: float = BACKOFF_SECONDS
    dialling: bool = False
    complained: bool = False


class CandidateDialer:
    """Dials candidates, at most once at a time each, with bounded back-off."""

    def __init__(
        self,
        *,
        node_id: str,
        credentials: NodeCredentials,
        peers: PeerPool,
        clock: Clock,
        hello: Callable[[str], peer_pb2.HelloRequest],
        notify: Callable[[CandidateVerified], None],
        tasks: asyncio.TaskGroup,
    ) -> None:
        self._node_id = node_id
        self._credentials = credentials
        self._peers = peers
        self._clock = clock
        self._hello = hello
        self._notify = notify
        self._tasks = tasks
        self._known: dict[tuple[str, ...], _Known] = {}
        self._dials = asyncio.Semaphore(MAX_DIALS)

    def offer(self, candidate: Candidate) -> None:
        """Dial the candidate unless it is this node, is being dialled, or was dialled lately."""
        if candidate.node_id == self._node_id or not candidate.addresses:
            return
        known = self._known.setdefault(tuple(sorted(candidate.addresses)), _Known())
        if known.dialling or self._clock.now() < known.not_before:
            return
        known.dialling = True
        self._tasks.create_task(self._dial(candidate, known), name=f"dial {candidate.addresses[0]}")

    async def _dial(self, candidate: Candidate, known: _Known) -> None:
        try:
            async with self._dials:
                async with asyncio.timeout(DIAL_DEADLINE_SECONDS):
                    node_id, answered = await self._identify(candidate)
                if node_id == self._node_id:
                    known.not_before = self._clock.now() + MAX_BACKOFF_SECONDS
                    return
                await self._greet(node_id, answered, candidate.source)
            known.backoff_seconds = BACKOFF_SECONDS
            known.not_before = self._clock.now() + REFRESH_SECONDS
            known.complained = False
        except (IdentityError, TimeoutError, ValueError, grpc.aio.AioRpcError) as error:
            known.not_before = self._clock.now() + known.backoff_seconds
            known.backoff_seconds = min(known.backoff_seconds * 2, MAX_BACKOFF_SECONDS)
            if not known.complained:
                known.complained = True
                _log.info(
                    "candidate refused",
                    addresses=candidate.addresses,
                    source=candidate.source,
                    error=_brief(error),
                )
        finally:
            known.dialling = False

    async def _identify(self, candidate: Candidate) -> tuple[str, tuple[str, ...]]:
        """The node id behind the first address that proves one, and the addresses to use, that one first."""
        failure: Exception = TimeoutError("no address answered")
        for address in candidate.addresses:
            try:
                host, port = split_address(address)
                node_id = await probe_node_id(
                    host, port, self._credentials, deadline_seconds=DIAL_DEADLINE_SECONDS / 2
                )
            except (IdentityError, ValueError) as error:
                failure = error
                continue
            return node_id, (address, *(a for a in candidate.addresses if a != address))
        raise failure

    async def _greet(self, node_id: str, addresses: tuple[str, ...], source: str) -> None:
        self._peers.learn(node_id, addresses)
        stub = self._peers.stub(node_id)
        if stub is None:
            return
        response = await stub.Hello(self._hello(source), timeout=DIAL_DEADLINE_SECONDS, wait_for_ready=True)
        self._notify(
            CandidateVerified(
                node_id=node_id,
                addresses=addresses,
                facts=from_proto(response.facts),
                boot_nonce=response.boot_nonce,
                discovery=source,
                has_cluster=response.has_cluster,
            )
        )


def _brief(error: BaseException) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return f"{type(error).__name__}: {error}"
