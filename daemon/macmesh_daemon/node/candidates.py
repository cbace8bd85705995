"""Verifies candidates: dials what discovery found and keeps what proves to be a node of this cluster.

Candidates come from an open network, so everything here is bounded: what is remembered, what is dialled at
once, and how often one address is dialled, whatever name it comes under.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc

from macmesh.reasons import Reason
from macmesh_daemon.cluster.events import CandidateVerified
from macmesh_daemon.config import split_address
from macmesh_daemon.identity import IdentityError
from macmesh_daemon.logs import get_logger
from macmesh_daemon.node.call_errors import from_rpc_error
from macmesh_daemon.node.codec import from_proto
from macmesh_daemon.node.tls import probe_node_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from macmesh.v1 import peer_pb2
    from macmesh_daemon.clock import Clock
    from macmesh_daemon.discovery import Candidate
    from macmesh_daemon.node.live_credentials import LiveCredentials
    from macmesh_daemon.node.peers import PeerPool

_log = get_logger(part="candidates")

#: A handshake and a Hello on a local network take milliseconds; a Mac that is waking takes longer.
DIAL_DEADLINE_SECONDS = 3.0
#: An address that failed is not dialled again sooner than this, doubling up to the maximum.
BACKOFF_SECONDS = 1.0
MAX_BACKOFF_SECONDS = 15.0
#: A verified candidate is greeted again after this, so that changed facts and addresses are learned.
REFRESH_SECONDS = 10.0
#: Strangers' candidates that are dialled or wait for it; beyond, they are passed over and come again.
MAX_STRANGERS = 16
#: The same for candidates of the configuration and of the last run, which no flood can crowd out.
MAX_KNOWN = 64
#: Addresses whose failures are remembered; the one not tried for longest is forgotten first.
MAX_ADDRESSES = 1024


@dataclass(slots=True)
class _Record:
    not_before: float = 0.0
    backoff_seconds: float = BACKOFF_SECONDS
    complained: bool = False


class CandidateDialer:
    """Dials candidates, at most once at a time each, with bounded back-off per address."""

    def __init__(
        self,
        *,
        node_id: str,
        credentials: LiveCredentials,
        peers: PeerPool,
        clock: Clock,
        hello: Callable[[str], peer_pb2.HelloRequest],
        notify: Callable[[CandidateVerified], None],
        is_denied: Callable[[str], bool],
        tasks: asyncio.TaskGroup,
    ) -> None:
        self._node_id = node_id
        self._credentials = credentials
        self._peers = peers
        self._clock = clock
        self._hello = hello
        self._notify = notify
        self._is_denied = is_denied
        self._tasks = tasks
        self._records: OrderedDict[str, _Record] = OrderedDict()
        self._dialling: set[str] = set()
        self._running = {"mdns": 0, "known": 0}
        #: Candidates passed over because too many were being dialled.
        self.passed_over = 0
        #: A member of this cluster, which its certificate proved, said that this node was shut out.
        self.told_evicted = False

    def offer(self, candidate: Candidate) -> None:
        """Dial the candidate's addresses, but for those that are being dialled or failed lately."""
        if candidate.node_id == self._node_id:
            return
        if candidate.node_id is not None and self._is_denied(candidate.node_id):
            return
        now = self._clock.now()
        due = tuple(a for a in candidate.addresses if self._is_due(a, now))
        if not due:
            return
        pool, limit = ("mdns", MAX_STRANGERS) if candidate.source == "mdns" else ("known", MAX_KNOWN)
        if self._running[pool] >= limit:
            self.passed_over += 1
            return
        self._running[pool] += 1
        self._dialling.update(due)
        self._tasks.create_task(self._dial(candidate, due, pool), name=f"dial {due[0]}")

    def greet_again(self, node_ids: Iterable[str]) -> None:
        """Say Hello to these nodes now, and try every address again: this node moved, or was away."""
        for record in self._records.values():
            record.not_before, record.backoff_seconds = 0.0, BACKOFF_SECONDS
        for node_id in node_ids:
            if not self._is_denied(node_id):
                self._tasks.create_task(self._greet_known(node_id), name=f"greet {node_id[:8]}")

    async def _greet_known(self, node_id: str) -> None:
        try:
            await self._greet(node_id, self._peers.addresses(node_id), "peer")
        except grpc.aio.AioRpcError as error:
            _log.info("node not greeted", peer=node_id, error=_brief(error))

    def remembered(self) -> int:
        """How many addresses are remembered."""
        return len(self._records)

    def _is_due(self, address: str, now: float) -> bool:
        record = self._records.get(address)
        return address not in self._dialling and (record is None or now >= record.not_before)

    def _record(self, address: str) -> _Record:
        record = self._records.setdefault(address, _Record())
        self._records.move_to_end(address)
        while len(self._records) > MAX_ADDRESSES:
            self._records.popitem(last=False)
        return record

    async def _dial(self, candidate: Candidate, due: tuple[str, ...], pool: str) -> None:
        try:
            async with asyncio.timeout(DIAL_DEADLINE_SECONDS):
                node_id, answered = await self._identify(candidate, due)
            if node_id == self._node_id:
                self._rest(due, MAX_BACKOFF_SECONDS)
                return
            if self._is_denied(node_id):
                self._rest(due, MAX_BACKOFF_SECONDS)
                return
            await self._greet(node_id, answered, candidate.source)
            self.told_evicted = False
            self._rest(candidate.addresses, REFRESH_SECONDS)
        except (IdentityError, TimeoutError, ValueError, grpc.aio.AioRpcError) as error:
            self._failed(candidate, due, error)
        finally:
            self._dialling.difference_update(due)
            self._running[pool] -= 1

    def _rest(self, addresses: tuple[str, ...], seconds: float) -> None:
        """The addresses are fine; do not dial them again for a while."""
        for address in addresses:
            record = self._record(address)
            record.not_before = self._clock.now() + seconds
            record.backoff_seconds, record.complained = BACKOFF_SECONDS, False

    def _failed(self, candidate: Candidate, due: tuple[str, ...], error: Exception) -> None:
        new_trouble = False
        if isinstance(error, grpc.aio.AioRpcError) and from_rpc_error(error).reason is Reason.EVICTED:
            self.told_evicted = True
        for address in due:
            record = self._record(address)
            record.not_before = self._clock.now() + record.backoff_seconds
            record.backoff_seconds = min(record.backoff_seconds * 2, MAX_BACKOFF_SECONDS)
            new_trouble |= not record.complained
            record.complained = True
        if new_trouble:
            _log.info("candidate refused", addresses=due, source=candidate.source, error=_brief(error))

    async def _identify(self, candidate: Candidate, due: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
        """The node id behind the first address that proves one, and the addresses to use, that one first."""
        failure: Exception = TimeoutError("no address answered")
        for address in due:
            try:
                host, port = split_address(address)
                node_id = await probe_node_id(
                    host, port, self._credentials.current, deadline_seconds=DIAL_DEADLINE_SECONDS / 2
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
        if self._peers.is_news(node_id, response.boot_nonce, response.addresses):
            self._peers.learn(node_id, (*addresses, *response.addresses))
        self._notify(
            CandidateVerified(
                node_id=node_id,
                addresses=self._peers.addresses(node_id),
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
