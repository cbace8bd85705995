"""Connects the ranks of a group to each other, in the calling thread.

The higher rank of a pair dials. It opens the side socket first, over the Unix socket where both are on one machine and
may use shared memory; then it opens the links, falls back from ``shm`` to ``tcp`` where that is allowed and needed, and
tells the other side on the side socket what it has made and why. When a rank has all its peers, it says so to each of
them, and is done when all of them have said so too: so nobody starts before its neighbours are complete. Whoever gives
up says why to all it has reached.

A rank may still be busy with an older group when a peer dials for the next; the dialler then tries again.
"""

import contextlib
import dataclasses
import os
import socket
import stat
import threading
import time
from collections.abc import Collection, Sequence
from typing import Literal

from macmesh_rdma.errors import (
    LocalAddressError,
    LocalInterruptedError,
    LocalOptionError,
    LocalProviderError,
    LocalResourceError,
    RemoteAbortedError,
    RemoteAuthenticationError,
    RemoteCorruptError,
    RemoteMismatchError,
    RemotePeerLostError,
    RemoteTimeoutError,
    TransportError,
)
from macmesh_rdma.joining import conversation as talk
from macmesh_rdma.joining.conversation import NotListeningError, Talk
from macmesh_rdma.joining.endpoint import Endpoint
from macmesh_rdma.joining.handshake import (
    LEAST_KEY_BYTES,
    NONCE_BYTES,
    AcceptorHandshake,
    DialerHandshake,
    EpochNumbers,
    Introduction,
    Purpose,
)
from macmesh_rdma.joining.listener import Listener
from macmesh_rdma.joining.peer_links import PeerLinks, ShmLane, TcpLane, tune_tcp
from macmesh_rdma.joining.reactor import Conversation, LateError, Reactor, Wait
from macmesh_rdma.options import LinkOptions, Provider
from macmesh_rdma.shared_memory import check_shared_memory, create_shared_memory

Topology = Literal["mesh", "pipeline"]
ProviderChoice = Literal["auto", "shm", "tcp"]

STRANGER_SECONDS = 2.0
"""How long a connection may take to prove itself."""
MOST_STRANGERS = 32
"""Unproved connections at a time; one more turns the oldest away."""
RETRY_SECONDS = 0.02
NOBODY_SECONDS = 0.5
"""How long a peer may be not listening before it counts as gone. It has listened, for we have its address."""
STOP_POLL_SECONDS = 0.05


def neighbours(rank: int, size: int, topology: Topology) -> tuple[int, ...]:
    """The ranks that one is connected to: all of them, or those beside it in the pipeline (tail to head too)."""
    if topology == "mesh":
        return tuple(peer for peer in range(size) if peer != rank)
    return tuple(sorted({(rank - 1) % size, (rank + 1) % size} - {rank}))


def connect_peers(
    listener: Listener,
    rank: int,
    endpoints: Sequence[Endpoint],
    *,
    key: bytes,
    epoch: EpochNumbers,
    name: str,
    topology: Topology = "mesh",
    lanes: Collection[int] = (0, 1),
    options: LinkOptions | None = None,
    provider: ProviderChoice = "auto",
    timeout_seconds: float = 10.0,
    stop: threading.Event | None = None,
) -> dict[int, PeerLinks]:
    """Connects this rank to its neighbours; every rank of the group must call it at about the same time.

    Args:
        listener: our own; its endpoint is ``endpoints[rank]``.
        rank: ours.
        endpoints: of every rank.
        key: of the epoch; at least 16 bytes.
        epoch: of the plan.
        name: of the group; groups of one epoch need different ones.
        topology: who is connected to whom.
        lanes: which links each pair has: 0 point to point, 1 collectives.
        options: of the links; all ranks must have the same.
        provider: what carries the links; "auto": ``shm`` between ranks of one machine where it works, else ``tcp``.
        timeout_seconds: for everything.
        stop: ends it when set, as closing the listener does.

    Returns:
        By peer, descriptors that are the caller's to close.

    Raises:
        LocalOptionError: an argument makes no sense.
        LocalResourceError: out of descriptors, or of shared memory that was asked for.
        LocalProviderError: ``shm`` was asked for and cannot be.
        LocalInterruptedError: stopped, or the listener is closed.
        RemotePeerLostError: a peer has gone, or gave up (then RemoteAbortedError).
        RemoteAuthenticationError: a peer does not hold the key.
        RemoteMismatchError: a peer is of another group, rank, epoch or other options.
        RemoteTimeoutError: not all were there in time; the message names them.
    """
    if not 0 <= rank < len(endpoints):
        raise LocalOptionError(f"rank {rank} is none of a group of {len(endpoints)}")
    if provider not in ("auto", "shm", "tcp"):
        raise LocalOptionError(f"{provider!r} is no provider of links; there are 'auto', 'shm' and 'tcp'")
    if len(key) < LEAST_KEY_BYTES:
        raise LocalOptionError(f"an epoch's key has at least {LEAST_KEY_BYTES} bytes, not {len(key)}")
    options = options or LinkOptions()
    plan = _Plan(
        rank=rank,
        endpoints=tuple(endpoints),
        key=key,
        own=Introduction(
            name=name,
            epoch=epoch,
            source=rank,
            target=rank,
            size=len(endpoints),
            purpose=Purpose.SIDE,
            lane=0,
            stripe=0,
            digest=options.digest(provider),
            nonce=bytes(NONCE_BYTES),
        ),
        peers=neighbours(rank, len(endpoints), topology),
        lanes=tuple(sorted(set(lanes))),
        stripes=options.sockets_per_link,
        shm_bytes=options.shm_bytes,
        provider=provider,
    )
    deadline = time.monotonic() + timeout_seconds
    with listener.connecting() as (listening, wake):
        bringup = _Bringup(plan, listener, listening)
        try:
            bringup.run(deadline, timeout_seconds, wake, stop)
            return bringup.take()
        except TransportError as error:
            bringup.give_up(str(error))
            error.epoch = error.epoch or plan.own.epoch_text
            raise
        except OSError as error:
            bringup.give_up(str(error))
            raise talk.local_or_lost(error, None, "connecting the group") from error
        finally:
            bringup.close()


@dataclasses.dataclass(frozen=True)
class _Plan:
    rank: int
    endpoints: tuple[Endpoint, ...]
    key: bytes
    own: Introduction
    peers: tuple[int, ...]
    lanes: tuple[int, ...]
    stripes: int
    shm_bytes: int
    provider: ProviderChoice

    def introduction(self, peer: int, purpose: Purpose, lane: int = 0, stripe: int = 0) -> Introduction:
        return dataclasses.replace(
            self.own, target=peer, purpose=purpose, lane=lane, stripe=stripe, nonce=os.urandom(NONCE_BYTES)
        )


class _Peer:
    """What is there of one peer so far; owns it."""

    def __init__(self) -> None:
        self.side: socket.socket | None = None
        self.tcp: dict[tuple[int, int], socket.socket] = {}
        self.shm: dict[int, ShmLane] = {}
        self.provider: Provider | None = None
        self.reason = ""
        self.announced = False
        self.ready = False
        self.trouble = ""

    def holds(self, connection: socket.socket) -> bool:
        return connection is self.side or connection in self.tcp.values()

    def drop_shm(self) -> None:
        for lane in self.shm.values():
            _close(lane.descriptors())
        self.shm.clear()

    def drop_tcp(self) -> None:
        for sock in self.tcp.values():
            sock.close()
        self.tcp.clear()

    def close(self) -> None:
        self.drop_shm()
        self.drop_tcp()
        if self.side is not None:
            self.side.close()


class _Bringup:
    def __init__(self, plan: _Plan, listener: Listener, listening: list[socket.socket]) -> None:
        self._plan = plan
        self._listener = listener
        self._listening = listening
        self._reactor = Reactor()
        self._peers = {peer: _Peer() for peer in plan.peers}
        self._strangers: dict[Conversation, float] = {}

    def run(
        self, deadline: float, timeout_seconds: float, wake: socket.socket, stop: threading.Event | None
    ) -> None:
        self._reactor.watch(wake)
        for listening in self._listening:
            self._reactor.spawn(self._accept(listening))
        for peer in self._plan.peers:
            if peer < self._plan.rank:
                self._reactor.spawn(self._dial_peer(peer))
        while not all(peer.announced and peer.ready for peer in self._peers.values()):
            self._listener.require_open()
            if stop is not None and stop.is_set():
                raise LocalInterruptedError("told to stop connecting")
            now = time.monotonic()
            if now >= deadline:
                raise self._too_late(timeout_seconds)
            self._reactor.turn(deadline if stop is None else min(deadline, now + STOP_POLL_SECONDS))
            self._announce()

    def take(self) -> dict[int, PeerLinks]:
        """Gives everything to the caller."""
        taken: dict[int, PeerLinks] = {}
        for number, peer in self._peers.items():
            lanes: dict[int, TcpLane | ShmLane] = {}
            if peer.provider == "shm":
                lanes.update(peer.shm)
            else:
                for lane in self._plan.lanes:
                    sockets = [peer.tcp[lane, stripe].detach() for stripe in range(self._plan.stripes)]
                    lanes[lane] = TcpLane(sockets)
            if peer.side is None or peer.provider is None:
                raise AssertionError
            taken[number] = PeerLinks(number, peer.provider, peer.reason, peer.side.detach(), lanes)
            peer.side = None
            peer.shm = {}
            peer.tcp = {}
        return taken

    def give_up(self, reason: str) -> None:
        """Tells the peers that still listen to this protocol."""
        record = talk.encode_record({"gave_up": reason})
        for peer in self._peers.values():
            if peer.side is not None and not peer.announced:
                with contextlib.suppress(OSError):
                    peer.side.send(record)

    def close(self) -> None:
        self._reactor.close()
        for peer in self._peers.values():
            peer.close()

    def _too_late(self, timeout_seconds: float) -> RemoteTimeoutError:
        late = [number for number, peer in self._peers.items() if not peer.ready]
        what = []
        for number in late:
            peer = self._peers[number]
            state = "never connected" if peer.side is None else "did not become ready"
            if peer.provider is None and peer.side is not None:
                state = "did not finish its links"
            what.append(f"rank {number} {state}" + (f" ({peer.trouble})" if peer.trouble else ""))
        return RemoteTimeoutError(
            f"group {self._plan.own.name!r} of epoch {self._plan.own.epoch_text} was not connected within "
            f"{timeout_seconds:g} s: {'; '.join(what)}",
            peer=late[0] if len(late) == 1 else None,
        )

    def _announce(self) -> None:
        if any(peer.provider is None for peer in self._peers.values()):
            return
        for number, peer in self._peers.items():
            if not peer.announced and peer.side is not None:
                peer.announced = True
                try:
                    # A few bytes on an idle socket always fit.
                    peer.side.send(talk.encode_record({"ready": ""}))
                except OSError as error:
                    raise talk.local_or_lost(error, number, f"rank {number} has gone") from error

    def _finish(self, number: int) -> Talk[None]:
        """Waits for the peer's word that it is ready, or that it gives up."""
        peer = self._peers[number]
        record = yield from self._side_record(number)
        if "ready" not in record:
            raise RemoteCorruptError(f"rank {number} said {sorted(record)} instead of ready", peer=number)
        peer.ready = True

    def _side_record(self, number: int) -> Talk[dict[str, str]]:
        side = self._peers[number].side
        if side is None:
            raise AssertionError
        try:
            record = yield from talk.receive_record(side, number)
        except (EOFError, ConnectionError) as error:
            raise RemotePeerLostError(
                f"rank {number} went while the group was connected", peer=number
            ) from error
        if "gave_up" in record:
            raise RemoteAbortedError(f"rank {number} gave up: {record['gave_up']}", peer=number)
        return record

    # The accepting side.

    def _accept(self, listening: socket.socket) -> Talk[None]:
        while True:
            yield Wait(listening)
            try:
                connection, _ = listening.accept()
            except (BlockingIOError, ConnectionError):
                continue
            connection.settimeout(0)
            if len(self._strangers) >= MOST_STRANGERS:
                oldest = min(self._strangers, key=self._strangers.__getitem__)
                del self._strangers[oldest]
                self._reactor.drop(oldest)
                self._listener.on_stranger(f"turned away: more than {MOST_STRANGERS} unproved connections")
            # The generator is needed inside itself, to be told apart.
            box: list[Conversation] = []
            welcome = self._welcome(connection, box)
            box.append(welcome)
            self._strangers[welcome] = time.monotonic()
            self._reactor.spawn(welcome)

    def _welcome(self, connection: socket.socket, box: list[Conversation]) -> Talk[None]:
        try:
            number, purpose = yield from self._limited(self._receive_hello(connection))
            self._strangers.pop(box[0], None)
            if purpose is Purpose.SHM:
                yield from self._take_shared_memory(connection, number[0], number[1])
            elif purpose is Purpose.SIDE:
                yield from self._serve_side(number[0])
        except _TurnedAwayError as error:
            self._listener.on_stranger(str(error))
        finally:
            self._strangers.pop(box[0], None)
            if not any(peer.holds(connection) for peer in self._peers.values()):
                connection.close()

    def _limited(self, conversation: Talk[talk.T]) -> Talk[talk.T]:
        """The conversation, with the deadline of strangers."""
        until = time.monotonic() + STRANGER_SECONDS
        try:
            wait = next(conversation)
            while True:
                try:
                    yield dataclasses.replace(wait, until=until)
                except LateError:
                    conversation.close()
                    raise _TurnedAwayError(
                        f"a connection did not prove itself within {STRANGER_SECONDS:g} s"
                    ) from None
                wait = next(conversation)
        except StopIteration as stop:
            value: talk.T = stop.value
            return value

    def _receive_hello(self, connection: socket.socket) -> Talk[tuple[tuple[int, int], Purpose]]:
        """Shakes hands, and keeps a side socket or one of a link before its dialler can know."""
        plan = self._plan

        def introduce(claimed: Introduction) -> Introduction:
            return plan.introduction(claimed.source, claimed.purpose, claimed.lane, claimed.stripe)

        handshake = AcceptorHandshake(plan.key, introduce, lambda said: self._judge(said, connection))
        try:
            yield from talk.shake_hands(connection, handshake)
        except (EOFError, OSError) as error:
            # One that has proved itself is kept: its loss shows there.
            if not handshake.finished:
                raise _TurnedAwayError(
                    f"a connection closed before it proved itself ({str(error) or 'end'})"
                ) from None
        except RemoteAuthenticationError as error:
            raise _TurnedAwayError(str(error)) from error
        except RemoteMismatchError as error:
            if self._is_fatal(handshake):
                raise
            raise _TurnedAwayError(str(error)) from error
        said = handshake.peer
        if said is None:
            raise AssertionError
        return (said.source, said.lane), said.purpose

    def _is_fatal(self, handshake: AcceptorHandshake) -> bool:
        """Whether what a proved peer said means that this group cannot be."""
        said, own = handshake.peer, self._plan.own
        # Who is of another group will try again or give up by itself. A rank that is there already keeps its place.
        if said is None or (said.name, said.epoch) != (own.name, own.epoch):
            return False
        return said.size != own.size or said.digest != own.digest or said.target != own.source

    def _judge(self, said: Introduction, connection: socket.socket) -> str:  # noqa: PLR0911  one reason each
        """Why a proved dialler is turned away; empty: it is welcome and what it brings is kept."""
        peer = self._peers.get(said.source)
        if peer is None or said.source < self._plan.rank:
            return f"rank {said.source} has no reason to dial rank {self._plan.rank}"
        if said.purpose is Purpose.SIDE:
            if peer.side is not None:
                return f"rank {said.source} is connected already"
            peer.side = connection
            return ""
        if peer.side is None or peer.provider is not None or said.lane not in self._plan.lanes:
            return f"no link of lane {said.lane} is expected from rank {said.source} now"
        if said.purpose is Purpose.TCP:
            if said.stripe >= self._plan.stripes or (said.lane, said.stripe) in peer.tcp:
                return f"socket {said.stripe} of lane {said.lane} is connected already, or too many"
            if connection.family != socket.AF_UNIX:
                tune_tcp(connection)
            peer.tcp[said.lane, said.stripe] = connection
        elif said.lane in peer.shm or connection.family != socket.AF_UNIX:
            return f"lane {said.lane} has shared memory already, or no Unix socket"
        return ""

    def _take_shared_memory(self, connection: socket.socket, number: int, lane: int) -> Talk[None]:
        peer = self._peers[number]
        try:
            descriptors = yield from talk.receive_descriptors(connection, 4)
            try:
                for memory in descriptors[:2]:
                    check_shared_memory(memory, self._plan.shm_bytes)
                for bell in descriptors[2:]:
                    if not stat.S_ISSOCK(os.fstat(bell).st_mode):
                        raise RemoteMismatchError(  # noqa: TRY301  one way out for all faults
                            f"rank {number} passed a doorbell that is no socket"
                        )
            except BaseException:
                _close(descriptors)
                raise
        except (EOFError, ConnectionError):
            return  # its side socket tells
        except (LocalResourceError, RemoteMismatchError) as error:
            answer = {"refused": str(error)}
        else:
            # The dialler's memory to send from is ours to receive from.
            peer.shm[lane] = ShmLane(descriptors[1], descriptors[0], descriptors[3], descriptors[2])
            answer = {"taken": ""}
        with contextlib.suppress(OSError):
            yield from talk.send_all(connection, talk.encode_record(answer))

    def _serve_side(self, number: int) -> Talk[None]:
        peer, plan = self._peers[number], self._plan
        record = yield from self._side_record(number)
        told, reason = record.get("provider"), record.get("reason", "")
        if told == "shm":
            complete = sorted(peer.shm) == list(plan.lanes)
            peer.drop_tcp()
        elif told == "tcp":
            complete = len(peer.tcp) == len(plan.lanes) * plan.stripes
            peer.drop_shm()
        else:
            raise RemoteCorruptError(f"rank {number} said {sorted(record)} instead of its links", peer=number)
        if not complete or plan.provider not in ("auto", told):
            raise RemoteMismatchError(
                f"rank {number} says that its {told} links stand, but they do not", peer=number
            )
        peer.reason = reason
        peer.provider = "shm" if told == "shm" else "tcp"
        yield from self._finish(number)

    # The dialling side.

    def _dial_peer(self, number: int) -> Talk[None]:  # noqa: C901  one sequence of steps, told in order
        peer, plan = self._peers[number], self._plan
        theirs, ours = plan.endpoints[number], plan.endpoints[plan.rank]
        reason = "asked for"
        use_shm = plan.provider != "tcp"
        if use_shm:
            try:
                reason = yield from self._dial_same_machine(number, theirs, ours)
            except _NoSharedMemoryError as error:
                use_shm = False
                reason = self._fall_back(number, str(error))
        if peer.side is None:
            peer.side = yield from self._dial(number, theirs.host_and_port, Purpose.SIDE)
        if use_shm:
            try:
                for lane in plan.lanes:
                    peer.shm[lane] = yield from self._make_shared_memory(number, theirs.unix_path, lane)
            except _NoSharedMemoryError as error:
                use_shm = False
                peer.drop_shm()
                reason = self._fall_back(number, str(error))
        if not use_shm:
            for lane in plan.lanes:
                for stripe in range(plan.stripes):
                    link = yield from self._dial(number, theirs.host_and_port, Purpose.TCP, lane, stripe)
                    peer.tcp[lane, stripe] = link
        told: Provider = "shm" if use_shm else "tcp"
        record = talk.encode_record({"provider": told, "reason": reason})
        try:
            yield from talk.send_all(peer.side, record)
        except ConnectionError as error:
            raise RemotePeerLostError(
                f"rank {number} went while the group was connected", peer=number
            ) from error
        peer.reason = reason
        peer.provider = told
        yield from self._finish(number)

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
                    ours.callback(_close, [memories[-1]])
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


class _TurnedAwayError(Exception):
    """A connection that does no harm and is only told of."""


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


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)
