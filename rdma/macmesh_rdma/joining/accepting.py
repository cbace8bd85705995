"""The side of a bring-up that is dialled: strangers, and peers of higher rank."""

import contextlib
import dataclasses
import os
import socket
import stat
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, cast

from macmesh_rdma.errors import (
    LocalResourceError,
    RemoteAuthenticationError,
    RemoteCorruptError,
    RemoteMismatchError,
)
from macmesh_rdma.joining import conversation as talk
from macmesh_rdma.joining.conversation import Talk
from macmesh_rdma.joining.handshake import AcceptorHandshake
from macmesh_rdma.joining.introduction import Introduction, Purpose
from macmesh_rdma.joining.joining_peer import JoiningPeer, close_all
from macmesh_rdma.joining.peer_links import ShmLane, tune_tcp
from macmesh_rdma.joining.plan import Plan
from macmesh_rdma.joining.reactor import Conversation, LateError, Reactor, Wait
from macmesh_rdma.shared_memory import check_shared_memory

if TYPE_CHECKING:
    from macmesh_rdma.options import Provider

STRANGER_SECONDS = 2.0
"""How long a connection may take to prove itself."""
MOST_STRANGERS = 32
"""Unproved connections at a time; one more turns the oldest away."""


class Acceptor:
    """Welcomes the peers that dial, and turns strangers away.

    Args:
        plan: ours.
        peers: what there is of each; filled here.
        reactor: runs the conversations.
        on_stranger: told why a connection was turned away.
    """

    def __init__(
        self,
        plan: Plan,
        peers: Mapping[int, JoiningPeer],
        reactor: Reactor,
        on_stranger: Callable[[str], None],
    ) -> None:
        self._plan = plan
        self._peers = peers
        self._reactor = reactor
        self._on_stranger = on_stranger
        self._strangers: dict[Conversation, float] = {}

    def accept(self, listening: socket.socket) -> Talk[None]:
        """Takes every connection that comes; ends only with the reactor."""
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
                self._on_stranger(f"turned away: more than {MOST_STRANGERS} unproved connections")
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
            self._on_stranger(str(error))
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

    def _judge(self, said: Introduction, connection: socket.socket) -> str:
        """Why a proved dialler is turned away; empty: it is welcome and what it brings is kept."""
        peer = self._peers.get(said.source)
        if peer is None or said.source < self._plan.rank:
            return f"rank {said.source} has no reason to dial rank {self._plan.rank}"
        if said.purpose is not Purpose.SIDE:
            return self._judge_link(peer, said, connection)
        if peer.side is not None:
            return f"rank {said.source} is connected already"
        peer.side = connection
        return ""

    def _judge_link(self, peer: JoiningPeer, said: Introduction, connection: socket.socket) -> str:
        if peer.side is None or peer.provider is not None or said.lane not in self._plan.lanes:
            return f"no link of lane {said.lane} is expected from rank {said.source} now"
        if said.purpose is Purpose.SHM:
            if said.lane in peer.shm or connection.family != socket.AF_UNIX:
                return f"lane {said.lane} has shared memory already, or no Unix socket"
            return ""
        if said.purpose is not self._plan.link_purpose:
            return f"a socket for {said.purpose.name.lower()} is not expected from rank {said.source}"
        if (said.lane, said.stripe) not in self._plan.sockets or (said.lane, said.stripe) in peer.tcp:
            return f"socket {said.stripe} of lane {said.lane} is connected already, or too many"
        if connection.family != socket.AF_UNIX:
            tune_tcp(connection)
        peer.tcp[said.lane, said.stripe] = connection
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
                close_all(descriptors)
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
        record = yield from peer.receive_record()
        told, reason = record.get("provider"), record.get("reason", "")
        if told == "shm":
            complete = sorted(peer.shm) == list(plan.lanes)
            peer.drop_tcp()
        elif told in ("tcp", "verbs"):
            complete = set(peer.tcp) == set(plan.sockets) and (told == "verbs") == (plan.provider == "verbs")
            peer.drop_shm()
        else:
            raise RemoteCorruptError(f"rank {number} said {sorted(record)} instead of its links", peer=number)
        if not complete or plan.provider not in ("auto", told):
            raise RemoteMismatchError(
                f"rank {number} says that its {told} links stand, but they do not", peer=number
            )
        peer.reason = reason
        peer.provider = cast("Provider", told)
        yield from peer.wait_until_ready()


class _TurnedAwayError(Exception):
    """A connection that does no harm and is only told of."""
