"""The simulated network: who reaches whom, what gets lost, doubled or late."""

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from macmesh_daemon.cluster import effects as fx
from macmesh_daemon.cluster import events as ev

if TYPE_CHECKING:
    from .node import SimNode
    from .simulation import Simulation


@dataclass
class Network:
    """What the network does wrong.

    Attributes:
        loss: Probability that a message is lost.
        duplicate: Probability that it comes twice.
        tail: Probability that it is late: messages overtake each other.
        tail_seconds: How late at most.
        delay_seconds: How long a message takes at most that is not late.
        reset: Probability that a connection is reset for nothing: the call is refused, or lost on its way.
        cut: (source, target) pairs that nothing passes.
        rejected: (source, target) pairs between which a packet filter answers every call with a reset.
    """

    loss: float = 0.0
    duplicate: float = 0.0
    tail: float = 0.0
    tail_seconds: float = 3.0
    delay_seconds: float = 0.01
    reset: float = 0.0
    cut: set[tuple[str, str]] = field(default_factory=set)
    rejected: set[tuple[str, str]] = field(default_factory=set)

    def passes(self, source: str, target: str, rng: random.Random) -> bool:
        """Whether a message arrives."""
        return (source, target) not in self.cut and not (self.loss and rng.random() < self.loss)

    def copies(self, rng: random.Random) -> int:
        """How often it arrives."""
        return 2 if self.duplicate and rng.random() < self.duplicate else 1

    def delay(self, rng: random.Random) -> float:
        """Seconds until it arrives."""
        if self.tail and rng.random() < self.tail:
            return 0.1 + rng.random() * self.tail_seconds
        return 0.0005 + rng.random() * self.delay_seconds

    def cut_between(self, one: str, other: str) -> None:
        """Let nothing pass between two nodes."""
        self.cut |= {(one, other), (other, one)}

    def mend_between(self, one: str, other: str) -> None:
        """Let everything pass between two nodes."""
        self.cut -= {(one, other), (other, one)}


class Call:
    """One call over the simulated network, from one life of a node."""

    __slots__ = ("_boots", "_sent_at", "_simulation", "is_done", "node", "send")

    def __init__(self, simulation: "Simulation", node: "SimNode", send: fx.Send) -> None:
        self.node = node
        self.send = send
        self._simulation = simulation
        self._boots = node.boots
        self._sent_at = simulation.now
        self.is_done = False

    def deliver(self) -> None:
        """The request arrives."""
        self._simulation.take_request(self)

    def answer(self, reply: fx.Reply) -> None:
        """The callee answers."""
        self._simulation.send_reply(self, reply)

    def arrive(self, reply: fx.Reply) -> None:
        """The reply arrives. A transport drops what comes after the deadline; here it may come: harder."""
        simulation = self._simulation
        if self.node.boots == self._boots and self.node.away != "asleep":
            self.is_done = True
            elapsed_ms = (simulation.now - self._sent_at) * 1000
            simulation.give(self.node, ev.ResponseReceived(self.send.peer, reply.message, elapsed_ms))

    def break_off(self, kind: ev.FailureKind) -> None:
        """The callee's machine says that nobody is there, or the connection ends; unless nothing passes."""
        simulation = self._simulation
        if simulation.network.passes(self.send.peer, self.node.node_id, simulation.rng):
            simulation.later(simulation.network.delay(simulation.rng), self.fail, kind)

    def fail(self, kind: ev.FailureKind = "deadline") -> None:
        """The deadline has come, or word that there will be no answer."""
        if not self.is_done and self.node.boots == self._boots:
            if kind != "deadline" and self.node.away == "asleep":
                return  # it hears nothing; its own deadline will come
            self.is_done = True
            self._simulation.give(self.node, ev.RequestFailed(self.send.peer, self.send.message, kind))
