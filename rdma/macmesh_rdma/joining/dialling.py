"""The side of a bring-up that dials: peers of lower rank."""

import contextlib
import socket
import time
from collections.abc import Mapping

from macmesh_rdma.errors import (
    LocalAddressError,
    LocalProviderError,
    LocalResourceError,
    RemoteAuthenticationError,
    RemoteMismatchError,
    RemotePeerLostError,
)
from macmesh_rdma.joining import conversation as talk
from macmesh_rdma.joining.conversation import NotListeningError, Talk
from macmesh_rdma.joining.endpoint import Endpoint
from macmesh_rdma.joining.handshake import DialerHandshake
from macmesh_rdma.joining.introduction import Introduction, Purpose
from macmesh_rdma.joining.joining_peer import JoiningPeer, close_all
from macmesh_rdma.joining.peer_links import ShmLane, tune_tcp
from macmesh_rdma.joining.plan import Plan
from macmesh_rdma.joining.reactor import Wait
from macmesh_rdma.options import Provider
from macmesh_rdma.shared_memory import create_shared_memory

RETRY_SECONDS = 0.02
NOBODY_SECONDS = 0.5
"""How long a peer may be not listening before it counts as gone. It has listened, for we have its address."""


class Dialler:
    """Connects to the peers that we dial, and decides with each of them what carries the links.

    Args:
        plan: ours.
        peers: what there is of each; filled here.
    """

    def __init__(self, plan: Plan, peers: Mapping[int, JoiningPeer]) -> None:
        self._plan = plan
        self._peers = peers

    def dial(self, number: int) -> Talk[None]:
        """Opens the side socket and the links, says what they are, and waits until the peer is ready."""
        peer = self._peers[number]
        provider, reason = yield from self._open_side(number)
        if provider == "shm":
            provider, reason = yield from self._share_memory(number, reason)
        if provider != "shm":
            yield from self._open_sockets(number)
        if peer.side is None:
            raise AssertionError
        record = talk.encode_record({"provider": provider, "reason": reason})
        try:
            yield from talk.send_all(peer.side, record)
        except ConnectionError as error:
            raise peer.lost() from error
        peer.reason = reason
        peer.provider = provider
        yield from peer.wait_until_ready()

    def _open_side(self, number: int) -> Talk[tuple[Provider, str]]:
        """Opens the side socket; returns what the links are to be, and why."""
        theirs = self._plan.endpoints[number]
        reason = "asked for"
        if self._plan.provider in ("auto", "shm"):
            try:
                reason = yield from self._dial_same_machine(
                    number, theirs, self._plan.endpoints[self._plan.rank]
                )
            except _NoSharedMemoryError as error:
                reason = self._fall_back(number, str(error))
            else:
                return "shm", reason
        self._peers[number].side = yield from self._dial(number, theirs.host_and_port, Purpose.SIDE)
        return "verbs" if self._plan.provider == "verbs" else "tcp", reason

    def _share_memory(self, number: int, reason: str) -> Talk[tuple[Provider, str]]:
        """Makes the links of shared memory; returns what they are to be after all, and why."""
        peer = self._peers[number]
        try:
            for lane in self._plan.lanes:
                peer.shm[lane] = yield from self._make_shared_memory(
                    number, self._plan.endpoints[number].unix_path, lane
                )
        except _NoSharedMemoryError as error:
            peer.drop_shm()
            return "tcp", self._fall_back(number, str(error))
        return "shm", reason

    def _open_sockets(self, number: int) -> Talk[None]:
        address = self._plan.endpoints[number].host_and_port
        for lane, stripe in self._plan.sockets:
            sock = yield from self._dial(number, address, self._plan.link_purpose, lane, stripe)
            self._peers[number].tcp[lane, stripe] = sock

    def _fall_back(self, number: int, why: str) -> str:
        if self._plan.provider == "shm":
            raise LocalProviderError(
                f"shared memory was asked for, but with rank {number}: {why}", peer=number
            )
        return f"not shm: {why}"

    def _dial_same_machine(self, number: int, theirs: Endpoint, ours: Endpoint) -> Talk[str]:
        """Opens the side socket over the Unix socket, which shows that shared memory may work."""
        peer = self._peers[number]
        if not theirs.host_id or theirs.host_id != ours.host_id:
            raise _NoSharedMemoryError("they are on different machines")
        if not theirs.unix_path:
            raise _NoSharedMemoryError(f"rank {number} has no Unix socket")
        try:
            peer.side = yield from self._dial(number, theirs.unix_path, Purpose.SIDE)
        except (RemotePeerLostError, RemoteAuthenticationError, LocalAddressError) as error:
            # Such as in another container.
            raise _NoSharedMemoryError(f"its Unix socket cannot be reached: {error}") from error
        return "same machine" if self._plan.provider == "auto" else "asked for"

    def _make_shared_memory(self, number: int, path: str, lane: int) -> Talk[ShmLane]:
        size = self._plan.shm_bytes
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
            try:
                memories = []
                for _ in range(2):
                    memories.append(create_shared_memory(size))
                    ours.callback(close_all, [memories[-1]])
                bells = []
                for _ in range(2):
                    own, other = socket.socketpair()
                    own.settimeout(0)
                    other.settimeout(0)
                    ours.callback(own.close)
                    theirs.callback(other.close)
                    bells.append((own, other))
            except LocalResourceError as error:
                raise _NoSharedMemoryError(str(error)) from error
            except OSError as error:
                raise talk.local_or_lost(error, None, "making doorbells") from error
            carrier = yield from self._dial(number, path, Purpose.SHM, lane)
            theirs.callback(carrier.close)
            try:
                passed = [*memories, bells[0][1].fileno(), bells[1][1].fileno()]
                yield from talk.send_descriptors(carrier, passed)
                answer = yield from talk.receive_record(carrier, number)
            except (EOFError, OSError) as error:
                raise _NoSharedMemoryError(f"rank {number} did not take its descriptors: {error}") from error
            if "taken" not in answer:
                raise _NoSharedMemoryError(f"rank {number} refused it: {answer.get('refused', 'no reason')}")
            ours.pop_all()
            return ShmLane(memories[0], memories[1], bells[0][0].detach(), bells[1][0].detach())

    def _dial(
        self, number: int, address: tuple[str, int] | str, purpose: Purpose, lane: int = 0, stripe: int = 0
    ) -> Talk[socket.socket]:
        """A proved connection; tries again while the peer may still be busy with something older."""
        peer = self._peers[number]
        nobody_since: float | None = None
        while True:
            own = self._plan.introduction(number, purpose, lane, stripe)
            handshake = DialerHandshake(self._plan.key, own)
            try:
                with contextlib.ExitStack() as undo:
                    sock = undo.enter_context(_socket(address, number))
                    yield from talk.connect(sock, address)
                    nobody_since = None
                    yield from talk.shake_hands(sock, handshake)
                    undo.pop_all()
                    return sock
            except NotListeningError as error:
                peer.trouble = f"nobody listens at {address}: {error}"
                nobody_since = nobody_since or time.monotonic()
                if error.for_ever or time.monotonic() - nobody_since > NOBODY_SECONDS:
                    raise RemotePeerLostError(f"rank {number} is gone: {peer.trouble}", peer=number) from None
            except (EOFError, ConnectionError):
                peer.trouble = "it closed our connection before it had proved itself"
            except (RemoteAuthenticationError, RemoteMismatchError) as error:
                if not _may_follow(handshake, own):
                    raise
                peer.trouble = str(error)
            except OSError as error:
                raise talk.local_or_lost(error, number, f"rank {number} at {address}") from error
            yield Wait(until=time.monotonic() + RETRY_SECONDS)


class _NoSharedMemoryError(Exception):
    """Why a pair cannot use shared memory."""


def _may_follow(handshake: DialerHandshake, own: Introduction) -> bool:
    """Whether the peer may only be late: busy with an older epoch, or with another group of this one."""
    if handshake.peer is not None:
        other = (handshake.peer.name, handshake.peer.epoch) != (own.name, own.epoch)
        return other and handshake.peer.epoch <= own.epoch
    return handshake.claimed is not None and handshake.claimed.epoch < own.epoch


def _socket(address: tuple[str, int] | str, number: int) -> socket.socket:
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    if not isinstance(address, str) and ":" in address[0]:
        family = socket.AF_INET6
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise talk.local_or_lost(error, number, f"dialling rank {number}") from error
    sock.settimeout(0)
    if family != socket.AF_UNIX:
        tune_tcp(sock)
    return sock
