"""A deterministic cluster of machines: what tests do to it and ask of it."""

import itertools
from collections.abc import Callable
from typing import Any

from macmesh_daemon.cluster import effects as fx
from macmesh_daemon.cluster import events as ev
from macmesh_daemon.cluster.messages import WantedModel

from .checker import InvariantBrokenError
from .network import Network
from .node import SimNode
from .simulation import Faults, Simulation

ANSWER_SECONDS = 2.0
"""A healthy node answers within this of a request's arrival: at once, or after it has checked a plan (here at most
0.05 s), stopped a worker (0.3 s), or settled that a quorum is left without a member that goes (a few heartbeats)."""


class World(Simulation):
    """Machines, network, drives, clocks, workers and a planner; everything random comes from the seed.

    After every step of every machine the `Checker` looks for a broken invariant and raises
    `InvariantBrokenError`; `story` tells how it came to that.

    Args:
        seed: Of everything random.
        count: Nodes; the first founds the cluster.
        expect: `bootstrap_expect`; all of them where None.
        facts: Facts of nodes that are not like the others.
        down: Nodes that are not started yet.
        compute: The planner: a deployment, or None to refuse.
        star: Whether only the founder and the others meet each other; else everybody meets everybody.
        clock_offsets: How far ahead of the real time nodes' clocks are.
        story_lines: How much of the story is kept; all where None.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._change_ids = itertools.count()
        self.healed = 0
        super().__init__(*args, **kwargs)

    # -- what is done to it ---------------------------------------------------------------------------

    def cut(self, *groups: str) -> None:
        """Let only nodes of the same group reach each other; a group is a string of one-letter names."""
        self.network.cut = {
            (a, b)
            for a in self.nodes
            for b in self.nodes
            if a != b and not any(a in group and b in group for group in groups)
        }

    def reset(self, source: SimNode | str, target: SimNode | str) -> None:
        """Lose a node's connection to another, which refuses the one that is tried at once in its place."""
        source, target = self._node(source), self._node(target)
        pair = (source.node_id, target.node_id)
        self.network.rejected.add(pair)
        self.give(source, ev.ConnectionLost(target.node_id))
        self.network.rejected.discard(pair)

    def heal(self) -> None:
        """End all faults, bring everybody back and start every node that is down."""
        self.healed += 1
        self.faults = Faults()
        self.network = Network()
        for twin in self.clones.values():
            self.crash(twin)
        self.clones.clear()
        for node in self.nodes.values():
            node.slowness = 0.0
            node.drive.is_full = False
            node.clock.run_at(1.0, self.now)
            self.come_back(node)
            if node.is_leaving:
                self.crash(node)
            if node.machine is None and not node.is_gone:
                self.boot(node)
        self.introduce_all()

    def sleep(self, node: SimNode | str, *, frozen: bool = False) -> None:
        """Let a machine fall asleep (what comes in is lost), or stop its daemon (what comes in waits)."""
        node = self._node(node)
        if node.machine is not None and node.away is None:
            node.away = "frozen" if frozen else "asleep"
            self.tale.tell(self.now, node.node_id, node.away)

    def load(self, wanted: WantedModel | None, node: SimNode | str | None = None) -> int:
        """Ask the coordinator, or a given node, for a change."""
        target = self._node(node) if node is not None else self.coordinator()
        assert target is not None
        return self.ask(
            target,
            lambda change_id: ev.LoadWanted(change_id, wanted) if wanted else ev.UnloadWanted(change_id),
        )

    def ask(self, node: SimNode | str, make: Callable[[int], ev.Event]) -> int:
        """Ask a node for any other change: ``make`` gets the change's id and gives the event."""
        change_id = next(self._change_ids)
        self.give(self._node(node), make(change_id))
        return change_id

    def evict(self, node_id: str, by: SimNode | str | None = None) -> int:
        """Ask the coordinator, or a given node, to evict a node."""
        target = by if by is not None else self.coordinator()
        assert target is not None
        return self.ask(target, lambda change_id: ev.EvictWanted(change_id, node_id))

    def drain(self, node_id: str, *, force: bool = False, leave: bool = False, undo: bool = False) -> int:
        """Ask the coordinator to drain a node, or to have it serve again."""
        target = self.coordinator()
        assert target is not None
        if undo:
            self.checker.undrained.add(node_id)
            return self.ask(target, lambda change_id: ev.UndrainWanted(change_id, node_id))
        return self.ask(target, lambda change_id: ev.DrainWanted(change_id, node_id, force, leave))

    def recover(self, node: SimNode | str) -> int:
        """Force a new generation from this node."""
        return self.ask(node, ev.RecoverWanted)

    def leave(self, node: SimNode | str) -> None:
        """Let a node say goodbye and go down."""
        node = self._node(node)
        node.is_leaving = True
        self.give(node, ev.LeaveWanted("goes down"))

    def clone(self, node: SimNode | str) -> SimNode:
        """Start a copy of a node, drive and all, as another machine under the same identity."""
        node = self._node(node)
        twin = SimNode(node.node_id, node.facts, founder=node.founder)
        twin.drive = node.drive.copy()
        self.clones[node.node_id] = twin
        self.tale.tell(self.now, node.node_id, "is cloned")
        self.boot(twin)
        return twin

    def kill_worker(self, node: SimNode | str) -> None:
        """Let a worker end with an error."""
        self.workers.kill(self._node(node))

    def run_until(self, condition: Callable[[], bool], limit_seconds: float) -> float:
        """Let time go by until the condition holds; the seconds that took.

        Raises:
            AssertionError: It did not hold within the limit; carries the story.
        """
        begin = self.now
        end = begin + limit_seconds
        while not condition():
            if not self._run_to(end, self.steps + 1):
                raise AssertionError(f"not within {limit_seconds} s\n" + self.story)
        return self.now - begin

    # -- what it is asked -----------------------------------------------------------------------------

    def expected(self) -> list[SimNode]:
        """The nodes that are to be members in the end: all but those evicted or without a whole drive."""
        leader = self.coordinator()
        document = leader.up._context.state.document if leader is not None else None
        denied = document.denied_node_ids if document is not None else ()
        return [n for n in self.nodes.values() if not n.is_gone and n.node_id not in denied]

    def coordinator(self) -> SimNode | None:
        """The coordinator of the highest term among the nodes that are up."""
        leader: SimNode | None = None
        best = (-1, -1)
        for node in self.nodes.values():
            if node.machine is not None and node.machine._coordinator is not None:
                ballot = node.machine._context.state.ballot
                if ballot > best:
                    best, leader = ballot, node
        return leader

    def agreed(self) -> bool:
        """Whether one coordinator leads every node and all have committed the same document."""
        leader = self.coordinator()
        if leader is None or leader.away is not None:
            return False
        document = leader.up._context.state.document
        assert document is not None
        expected = [node for node in self.expected() if not node.drive.is_torn]
        lost = {node.node_id for node in self.nodes.values() if node.drive.is_torn or node.is_gone}
        if {m.node_id for m in document.members} - lost != {n.node_id for n in expected}:
            return False
        return all(
            n.machine is not None
            and n.machine._election.coordinator_id == leader.node_id
            and n.machine._context.state.commit_version == document.version
            for n in expected
        )

    def all_alive(self) -> bool:
        """Whether the nodes agree and the coordinator takes every one for alive."""
        if not self.agreed():
            return False
        leader = self.coordinator()
        assert leader is not None
        coordinator = leader.up._coordinator
        assert coordinator is not None
        return all(
            coordinator.liveness(node.node_id) == "alive"
            for node in self.expected()
            if not node.drive.is_torn
        )

    def ready(self) -> bool:
        """Whether the nodes agree and the committed plan serves."""
        leader = self.coordinator()
        if leader is None or leader.up._coordinator is None or not leader.up._coordinator.rollout.is_ready:
            return False  # the cheap question first
        if not self.agreed():
            return False
        return leader.up._coordinator.serving_state == "ready"

    def known_by_majority(self) -> str:
        """The coordinator that more than half of the nodes that are up follow, itself included; "" where none is."""
        leader = self.coordinator()
        if leader is None:
            return ""
        up = [node.machine for node in self.expected() if node.machine is not None]
        followers = sum(machine._election.coordinator_id == leader.node_id for machine in up)
        return leader.node_id if 2 * followers > len(up) else ""

    def insist(self, wanted: WantedModel | None, limit_seconds: float = 30) -> fx.ChangeDone:
        """Ask until a coordinator has done it, as a client would."""
        asked: list[tuple[SimNode, int, int]] = []

        def is_done() -> bool:
            leader = self.coordinator()
            if leader is None:
                return False
            if asked:
                node, boots, change_id = asked[-1]
                mine = [o for o in node.outcomes if o.change_id == change_id]
                if mine and isinstance(mine[-1], fx.ChangeDone):
                    return True
                if (
                    node is leader
                    and node.boots == boots
                    and not any(isinstance(o, fx.ChangeRejected) for o in mine)
                ):
                    return False
            asked.append((leader, leader.boots, self.load(wanted, leader)))
            return False

        self.run_until(is_done, limit_seconds)
        node, _, change_id = asked[-1]
        return next(o for o in node.outcomes if o.change_id == change_id and isinstance(o, fx.ChangeDone))

    def start(self, wanted: WantedModel | None = None) -> None:
        """Run until the cluster stands, and with a model until it serves."""
        self.run_until(self.agreed, 20)
        if wanted is not None:
            self.load(wanted)
            self.run_until(self.ready, 20)

    def announcements(self, event: str) -> list[fx.Announce]:
        """Every announcement of that name so far."""
        return [said for _, _, said in self.announced if said.event == event]

    @property
    def story(self) -> str:
        """The last events and effects, one a line."""
        return str(self.tale)

    def check_nothing_is_left_open(self) -> None:
        """Raise where a request or a change was taken and never ended.

        Raises:
            InvariantBrokenError: Names them.
        """
        self.check_requests_are_answered()
        for node in self.nodes.values():
            if node.open_changes:
                raise InvariantBrokenError(f"{node.node_id} never ended changes {node.open_changes}")

    def check_requests_are_answered(self) -> None:
        """Raise where a request that has come is not answered within `ANSWER_SECONDS` of its arrival.

        A cluster is never at rest: a plan may be in the middle of its PREPARE at any moment, and a request that
        was under way since before everything healed comes whenever it likes. So what is open now gets that time.

        Raises:
            InvariantBrokenError: Names the request.
        """
        taken = [(self.taken[i][1], i, node) for node in self.nodes.values() for i in node.open_requests]
        for at, request_id, node in sorted(taken, key=lambda one: one[:2]):
            while request_id in node.open_requests:
                if not self._run_to(at + ANSWER_SECONDS, self.steps + 1):
                    raise InvariantBrokenError(f"{node.node_id} never answered request {request_id}")
