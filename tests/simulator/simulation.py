"""Time, nodes and the execution of what they decide."""

import contextlib
import heapq
import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from macmesh_daemon.cluster import effects as fx
from macmesh_daemon.cluster import events as ev
from macmesh_daemon.cluster.machine import ClusterMachine
from macmesh_daemon.cluster.messages import Deployment, NodeFacts
from macmesh_daemon.cluster.settings import ClusterSettings

from .checker import Checker
from .drive import PROTOCOL, DriveFullError, TornStateError
from .network import Call, Network
from .node import SimNode
from .parts import facts_of, names_of, seeded, split
from .serving import Serving
from .trace import Story
from .workers import Workers

_NEVER = float("inf")
_CHANGES = {
    ev.LoadWanted,
    ev.UnloadWanted,
    ev.EvictWanted,
    ev.DrainWanted,
    ev.UndrainWanted,
    ev.RecoverWanted,
}
_MOST_EVENTS_AT_ONCE = 20_000


class LivelockError(AssertionError):
    """Things happen without end while no time goes by."""


@dataclass
class Faults:
    """What nodes do wrong, as probabilities."""

    crash_in_step: float = 0.0
    power_loss: float = 0.0
    nack: float = 0.0
    worker_crash: float = 0.0
    worker_hang: float = 0.0
    planner_refusal: float = 0.0


class Simulation:
    """The machinery of `World`: see there."""

    def __init__(
        self,
        seed: object,
        count: int,
        *,
        expect: int | None = None,
        settings: ClusterSettings | None = None,
        facts: dict[str, NodeFacts] | None = None,
        down: str = "",
        compute: Callable[[fx.ComputePlan], Deployment | None] | None = None,
        star: bool = False,
        clock_offsets: dict[str, float] | None = None,
        story_lines: int | None = 400,
    ) -> None:
        self.rng = seeded(seed)
        self.now = 0.0
        self.events = 0
        self.steps = 0
        self._stands_since = 0
        self.faults = Faults()
        self.network = Network()
        self.checker = Checker()
        self.settings = settings or ClusterSettings()
        self.expect = count if expect is None else expect
        self.tale = Story(story_lines)
        self._tells = story_lines != 0
        self.announced: list[tuple[float, str, fx.Announce]] = []
        self.log: list[tuple[float, str, fx.Effect]] = []
        self.keep_log = False
        self.hold_prepare_checks: set[str] = set()
        self.keep_compute = False
        self.held_computes: list[tuple[SimNode, fx.ComputePlan]] = []
        self.traps: list[Callable[[SimNode, fx.Effect], bool]] = []
        self.clones: dict[str, SimNode] = {}
        self.workers = Workers(self)
        self.serving = Serving(self, seed)
        self._star = star
        self._compute = compute or (lambda ask: split(ask.wanted, [m.node_id for m in ask.members]))
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        #: The ends of calls that all take equally long: in order as they are, and most come to nothing.
        self._limits: deque[tuple[float, int, Call]] = deque()
        self._usual_limit: float | None = None
        self._order = itertools.count()
        self._request_ids = itertools.count()
        #: The requests that were not answered yet: the call of each, and when it arrived.
        self.taken: dict[int, tuple[Call, float]] = {}
        self._executors: dict[type, Callable[[SimNode, Any], None]] = {
            fx.Persist: self._persist,
            fx.Send: self._send,
            fx.Reply: self._reply,
            fx.ComputePlan: self._plan,
            fx.CheckPrepare: self._check_prepare,
            fx.StartWorker: self.workers.start,
            fx.StopWorker: self.workers.stop,
            fx.ReleaseWorker: self.workers.release,
            fx.GivePeers: self.workers.give_peers,
            fx.ChangeAccepted: self._outcome,
            fx.ChangeDone: self._outcome,
            fx.ChangeRejected: self._outcome,
            fx.LeaveFinished: self._left,
            fx.Announce: self._announce,
        }
        self.nodes = {
            name: SimNode(name, (facts or {}).get(name) or facts_of(name), founder=i == 0)
            for i, name in enumerate(names_of(count))
        }
        for node in self.nodes.values():
            node.clock.jump((clock_offsets or {}).get(node.node_id, 0.0))
            if node.node_id not in down:
                self.boot(node)

    # -- time -----------------------------------------------------------------------------------------

    def later(self, seconds: float, action: Callable[..., None], *args: Any) -> None:
        """Do something after a while."""
        heapq.heappush(self._heap, (self.now + seconds, next(self._order), action, args))

    def _limit(self, call: Call, seconds: float) -> None:
        """Let a call fail after a while, unless it was answered by then."""
        if self._usual_limit is None:
            self._usual_limit = seconds
        if seconds == self._usual_limit:
            self._limits.append((self.now + seconds, next(self._order), call))
        else:
            self.later(seconds, call.fail)

    def run(self, seconds: float) -> None:
        """Let time go by."""
        end = self.now + seconds
        self._run_to(end, _NEVER)
        self.now = end

    def _run_to(self, end: float, steps: float) -> bool:
        """Let things happen until the machines have made so many steps; False where no more is due by ``end``."""
        limits, heap, pop = self._limits, self._heap, heapq.heappop
        args: tuple[Any, ...]
        while self.steps < steps:
            at = heap[0][0] if heap else _NEVER
            if limits and limits[0][0] <= at:
                limit_at, order, call = limits[0]
                if call.is_done:
                    limits.popleft()
                    continue
                is_limit = limit_at < at or order < heap[0][1]
            else:
                is_limit = False
            if is_limit:
                at = limit_at
            if at > end:
                return False
            if is_limit:
                limits.popleft()
                action, args = call.fail, ()
            else:
                _, _, action, args = pop(heap)
            if at > self.now:
                self.now = at
                self._stands_since = self.events
            elif self.events - self._stands_since > _MOST_EVENTS_AT_ONCE:
                raise LivelockError(f"{_MOST_EVENTS_AT_ONCE} events and no time went by")
            self.events += 1
            action(*args)
        return True

    # -- lives of nodes -------------------------------------------------------------------------------

    def all_nodes(self) -> list[SimNode]:
        """Every node, clones included."""
        return [*self.nodes.values(), *self.clones.values()]

    def boot(self, node: SimNode | str) -> None:
        """Start a daemon from its drive, and let all nodes that are up meet it. A torn state is refused."""
        node = self._node(node)
        assert node.machine is None
        try:
            self.checker.on_boot(node, node.drive.state)
            state = node.drive.load()
        except TornStateError:
            self.tale.tell(self.now, node.node_id, "refuses to start: its state file is torn")
            return
        node.boots += 1
        node.is_off = False
        node.open_requests = {}
        node.away = None
        node.busy_until = 0.0
        node.queue.clear()
        rng = seeded(self.rng.getrandbits(32))
        keys = seeded(self.rng.getrandbits(32))
        node.nonce = self.rng.getrandbits(63)
        node.is_leaving = node.has_left = False
        node.machine = ClusterMachine(
            node_id=node.node_id,
            boot_nonce=node.nonce,
            facts=node.facts,
            addresses=(f"{node.node_id}:7000",),
            persistent=state,
            settings=self.settings,
            rng=rng,
            key_source=lambda: keys.randbytes(32),
            now=node.clock.local(self.now),
            founder=node.founder,
            bootstrap_expect=self.expect,
        )
        node.next_tick = None
        self.tale.tell(self.now, node.node_id, "boot")
        self.step(node, ev.Tick())
        others = self.all_nodes()
        if self._star and not node.founder:
            others = [other for other in others if other.founder]
        for other in others:
            if other.node_id != node.node_id and other.machine is not None:
                self.introduce(node, other)
                self.introduce(other, node)

    def _meet(self, one: SimNode, other: SimNode) -> bool:
        return not self._star or one.founder or other.founder

    def crash(self, node: SimNode | str, *, power: bool = False) -> None:
        """Kill a daemon, or the machine's power; the worker ends with it."""
        node = self._node(node)
        if node.machine is not None:
            self.tale.tell(self.now, node.node_id, "power loss" if power else "crash")
            node.machine = None
            node.worker = node.resting = None
            if not power:
                self._reset_connections(node)
            node.open_requests = {}
            node.open_changes = set()
        node.is_off |= power
        if self.nodes.get(node.node_id) is node:
            self.serving.node_crashed(node)
        if power:
            node.drive.lose_power(self.rng)

    def _reset_connections(self, node: SimNode) -> None:
        """The system of a machine ends the connections of a process that was killed."""
        taken = [one for i in node.open_requests if (one := self.taken.pop(i, None)) is not None]
        for call, _ in taken:
            call.break_off("lost")
        if node.node_id in self.clones:
            return  # another machine's connections under the same name stand
        for other in self.all_nodes():
            if other.machine is not None and self.network.passes(node.node_id, other.node_id, self.rng):
                lost = ev.ConnectionLost(node.node_id)
                self.later(self.network.delay(self.rng), self._lose_connection, other, other.boots, lost)

    def _lose_connection(self, node: SimNode, boots: int, lost: ev.ConnectionLost) -> None:
        if node.away != "asleep":
            self._give_to_life(node, boots, lost)

    def introduce(self, one: SimNode, other: SimNode) -> None:
        """Tell ``one`` of ``other``, as a Hello does."""
        if (one.node_id, other.node_id) in self.network.cut or other.machine is None:
            return
        hello = ev.CandidateVerified(
            other.node_id,
            (f"{other.node_id}:7000",),
            other.facts,
            other.nonce,
            "mdns",
            other.up._context.state.document is not None,
        )
        self.later(self.rng.random() * 0.2, self._give_to_life, one, one.boots, hello)

    def introduce_all(self) -> None:
        """Let everybody meet everybody, as a network does that has come back."""
        for a in self.all_nodes():
            for b in self.all_nodes():
                if a.node_id != b.node_id and a.machine is not None and self._meet(a, b):
                    self.introduce(a, b)

    # -- events in ------------------------------------------------------------------------------------

    def give(self, node: SimNode, event: ev.Event) -> None:
        """Let an event reach a node as soon as that looks at it."""
        if node.machine is None:
            return
        if node.away is not None:
            node.queue.append(event)
        elif node.slowness or self.now < node.busy_until:
            node.busy_until = max(self.now, node.busy_until) + node.slowness
            self.later(node.busy_until - self.now, self._step_of_life, node, node.boots, event)
        else:
            self.step(node, event)

    def give_later(self, node: SimNode, seconds: float, event: ev.Event) -> None:
        """Let an event reach this life of a node after a while."""
        self.later(seconds, self._give_to_life, node, node.boots, event)

    def _give_to_life(self, node: SimNode, boots: int, event: ev.Event) -> None:
        if node.boots == boots:
            self.give(node, event)

    def _step_of_life(self, node: SimNode, boots: int, event: ev.Event) -> None:
        if node.boots == boots:
            if node.away is not None:
                node.queue.append(event)
            else:
                self.step(node, event)

    def come_back(self, node: SimNode, *, told: bool = True) -> None:
        """End a node's sleep or freeze: first it notices, then comes what waited."""
        if node.away is None:
            return
        away, node.away = node.away, None
        self.tale.tell(self.now, node.node_id, f"is back, was {away}")
        waiting, node.queue = node.queue, deque()
        if told:
            self.step(node, ev.LocalHealth(1 if away == "frozen" else 0, slept=True))
            if away == "frozen":
                self.give_later(node, 5.0, ev.LocalHealth(0))
        for event in waiting:
            self.give(node, event)
        if node.machine is not None:
            self._arm(node, node.machine)
        if self.nodes.get(node.node_id) is node:
            self.serving.node_back(node)

    def step(self, node: SimNode, event: ev.Event) -> None:  # noqa: C901  every rule of a step
        """Give a machine an event and do what it decides; perhaps crash in the middle of that."""
        machine = node.machine
        if machine is None:
            return
        self.steps += 1
        if type(event) in _CHANGES:
            node.open_changes.add(event.change_id)  # type: ignore[union-attr]
        if self._tells and type(event) is not ev.Tick:
            self.tale.tell(self.now, node.node_id, "<-", event)
        effects = machine.step(event, node.clock.local(self.now))
        if machine._coordinator is not None:
            self.checker.on_step(node, machine)
        rng, faults = self.rng, self.faults
        survive = len(effects)
        if survive and faults.crash_in_step and rng.random() < faults.crash_in_step:
            survive = rng.randrange(survive + 1)
            self._execute_all(node, effects[:survive])
            if node.machine is machine:
                if survive < len(effects) and isinstance(broken := effects[survive], fx.Persist):
                    self.checker.on_persist(node, broken.state)
                    with contextlib.suppress(DriveFullError):  # it crashes all the same
                        node.drive.write(broken.state, rng.randrange(len(PROTOCOL) + 1))
                self.crash(node, power=rng.random() < faults.power_loss)
            return
        if effects:
            self._execute_all(node, effects)
        if node.machine is machine:
            self._arm(node, machine)
            if node.desk is not None and node.desk.live:
                self.serving.look(node)

    def _execute_all(self, node: SimNode, effects: list[fx.Effect]) -> None:
        machine = node.machine
        for effect in effects:
            if self.traps:
                for trap in self.traps:
                    if trap(node, effect):
                        self.traps.remove(trap)
                        break
            if node.machine is not machine:
                return
            if self._tells:
                self.tale.tell(self.now, node.node_id, "->", effect)
            if self.keep_log:
                self.log.append((self.now, node.node_id, effect))
            self._executors[type(effect)](node, effect)

    def _arm(self, node: SimNode, machine: ClusterMachine) -> None:
        """Wake the machine at its deadline."""
        deadline = machine.next_deadline()
        if deadline is None:
            return
        at, tick = node.clock.real(deadline), node.next_tick
        if tick is not None and tick <= at:
            return
        at = max(self.now, at)
        if tick is not None and tick <= at:
            return
        node.next_tick = at
        self.later(at - self.now, self._tick, node, node.boots, at)

    def _tick(self, node: SimNode, boots: int, at: float) -> None:
        if node.boots == boots and node.next_tick == at:
            node.next_tick = None
            self.give(node, ev.Tick())

    # -- effects out ----------------------------------------------------------------------------------

    def _persist(self, node: SimNode, effect: fx.Persist) -> None:
        self.checker.on_persist(node, effect.state)
        try:
            node.drive.write(effect.state)
        except DriveFullError:
            self.tale.tell(self.now, node.node_id, "ends: its drive is full")
            self.crash(node)
            return
        if node.machine is not None:
            self.checker.on_step(node, node.machine)

    def _send(self, node: SimNode, effect: fx.Send) -> None:
        self.checker.on_send(node, effect)
        call = Call(self, node, effect)
        network, rng = self.network, self.rng
        self._limit(call, effect.deadline_seconds)
        for _ in range(network.copies(rng)):
            if network.passes(node.node_id, effect.peer, rng):
                if (node.node_id, effect.peer) in network.rejected:
                    self.later(network.delay(rng), call.break_off, "refused")
                    continue
                if network.reset and rng.random() < network.reset:
                    kind: ev.FailureKind = rng.choice(("refused", "lost"))
                    self.later(network.delay(rng), call.break_off, kind)
                    if kind == "refused":
                        continue
                self.later(network.delay(rng), call.deliver)

    def take_request(self, call: Call) -> None:
        """A request arrives."""
        send = call.send
        target = self.nodes.get(send.peer)
        clone = self.clones.get(send.peer)
        if clone is not None and self.rng.random() < 0.5:
            target = clone
        if target is None or target.is_off or target.away == "asleep":
            return
        if target.machine is None:
            call.break_off("refused")
            return
        request_id = next(self._request_ids)
        self.taken[request_id] = (call, self.now)
        sender = call.node.node_id
        target.open_requests[request_id] = sender
        self.checker.on_request(target, request_id, sender)
        self.give(target, ev.RequestReceived(request_id, sender, send.message))

    def _reply(self, node: SimNode, effect: fx.Reply) -> None:
        self.checker.on_reply(node, effect)
        call, _ = self.taken.pop(effect.request_id)
        del node.open_requests[effect.request_id]
        call.answer(effect)

    def send_reply(self, call: Call, reply: fx.Reply) -> None:
        """A reply leaves."""
        network, rng = self.network, self.rng
        if network.passes(call.send.peer, call.node.node_id, rng):
            for _ in range(network.copies(rng)):
                self.later(network.delay(rng), call.arrive, reply)

    def _plan(self, node: SimNode, ask: fx.ComputePlan) -> None:
        if self.keep_compute:
            self.held_computes.append((node, ask))
        else:
            self.compute(node, ask)

    def compute(self, node: SimNode, ask: fx.ComputePlan) -> None:
        """Answer a ComputePlan."""
        deployment = self._compute(ask)
        if self.faults.planner_refusal and self.rng.random() < self.faults.planner_refusal:
            deployment = None
        answer: ev.Event = ev.PlanComputed(ask.request_id, deployment)
        if deployment is None:
            answer = ev.PlanRefused(
                ask.request_id, "TOO_SMALL", f'{{"message": "{len(ask.members)} nodes are too few"}}'
            )
        self.give_later(node, self.rng.uniform(0.01, 0.3), answer)

    def _check_prepare(self, node: SimNode, effect: fx.CheckPrepare) -> None:
        assert effect.plan.epoch is not None
        if node.node_id not in self.hold_prepare_checks:
            ok = not self.faults.nack or self.rng.random() >= self.faults.nack
            checked = ev.PrepareChecked(effect.plan.epoch, ok, "" if ok else "does not fit")
            self.give_later(node, self.rng.uniform(0.0, 0.05), checked)

    def _outcome(self, node: SimNode, effect: fx.ChangeAccepted | fx.ChangeDone | fx.ChangeRejected) -> None:
        self.checker.on_outcome(node, effect)
        node.outcomes.append(effect)
        if not isinstance(effect, fx.ChangeAccepted):
            node.open_changes.discard(effect.change_id)

    def _left(self, node: SimNode, effect: fx.LeaveFinished) -> None:  # noqa: ARG002  one signature for all
        node.has_left = True

    def _announce(self, node: SimNode, effect: fx.Announce) -> None:
        self.announced.append((self.now, node.node_id, effect))

    def _node(self, node: SimNode | str) -> SimNode:
        return self.nodes[node] if isinstance(node, str) else node
