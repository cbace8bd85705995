"""One machine alone, driven by hand: for tests that say exactly what comes in and what must come out."""

import random
from typing import TypeVar

from macmesh_daemon.cluster import effects as fx
from macmesh_daemon.cluster import events as ev
from macmesh_daemon.cluster.machine import ClusterMachine
from macmesh_daemon.cluster.messages import (
    ClusterDocument,
    HeartbeatRequest,
    Member,
    Policy,
    Request,
    RequestVoteRequest,
    Response,
)
from macmesh_daemon.cluster.settings import ClusterSettings
from macmesh_daemon.cluster.state import PersistentState
from simulator.parts import facts_of

E = TypeVar("E")


def document(names: str = "abc", *, term: int = 1, seq: int = 1) -> ClusterDocument:
    members = tuple(Member(n, (f"{n}:7000",), facts_of(n), voter=True) for n in names)
    return ClusterDocument(1, term, seq, members, policy=Policy("a", int(len(names) % 2 == 0)))


def stored(names: str = "abc", *, term: int = 1) -> PersistentState:
    """A member that stored the document of its term's coordinator."""
    return PersistentState(generation=1, term=term, document=document(names, term=term))


def vote(
    term: int, *, pre_vote: bool = False, version: tuple[int, int, int] = (1, 1, 1)
) -> RequestVoteRequest:
    return RequestVoteRequest(pre_vote, 1, term, *version)


def beat(term: int = 1, doc: ClusterDocument | None = None) -> HeartbeatRequest:
    return HeartbeatRequest(1, term, 1, doc)


class Solo:
    """The node "b", or another."""

    def __init__(
        self,
        state: PersistentState | None = None,
        *,
        node_id: str = "b",
        founder: bool = False,
        expect: int = 1,
        now: float = 100.0,
        settings: ClusterSettings | None = None,
    ) -> None:
        self.node_id = node_id
        self.now = now
        self.state = state or PersistentState()
        self.settings = settings or ClusterSettings()
        self.machine = ClusterMachine(
            node_id=node_id,
            boot_nonce=7,
            facts=facts_of(node_id),
            addresses=(f"{node_id}:7000",),
            persistent=self.state,
            settings=self.settings,
            rng=random.Random(1),  # noqa: S311  replay, not secrets
            key_source=lambda: bytes(32),
            now=now,
            founder=founder,
            bootstrap_expect=expect,
        )
        self._request_id = 0

    def step(self, event: ev.Event, *, after: float = 0.0) -> list[fx.Effect]:
        self.now += after
        effects = self.machine.step(event, self.now)
        for effect in effects:
            if isinstance(effect, fx.Persist):
                self.state = effect.state
        return effects

    def ask(self, sender: str, request: Request, *, after: float = 0.0) -> list[fx.Effect]:
        self._request_id += 1
        return self.step(ev.RequestReceived(self._request_id, sender, request), after=after)

    def answer(self, sender: str, request: Request, *, after: float = 0.0) -> Response:
        """Ask and give the reply, which must come at once."""
        (reply,) = only(self.ask(sender, request, after=after), fx.Reply)
        return reply.message

    def tick(self) -> list[fx.Effect]:
        """Let the machine's deadline come."""
        deadline = self.machine.next_deadline()
        assert deadline is not None
        self.now = max(deadline, self.now)
        return self.step(ev.Tick())

    def reboot(self) -> "Solo":
        """The same node, started again from what is durable."""
        return Solo(self.state, node_id=self.node_id, now=self.now + 1)


def only(effects: list[fx.Effect], kind: type[E]) -> list[E]:
    return [effect for effect in effects if isinstance(effect, kind)]


def kinds(effects: list[fx.Effect]) -> list[str]:
    """Names of the effects without announcements."""
    return [type(effect).__name__ for effect in effects if not isinstance(effect, fx.Announce)]
