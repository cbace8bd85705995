"""A deterministic cluster of machines: seeded network, disks, workers and planner, checked after every step.

`World(seed, ...)` builds it, `chaos` hurts it, `heal` stops that, `run` moves virtual time.
Everything random comes from the seed, so a failing seed replays exactly. After every step of every machine
the `Checker` looks for a broken invariant and raises `InvariantBrokenError`; `World.story` tells how.
"""

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from daemon.cluster.checker import Checker, InvariantBrokenError
from daemon.cluster.sim_parts import Faults, SimNode, Worker, facts_of, split
from macmesh_daemon.cluster import effects as fx
from macmesh_daemon.cluster import events as ev
from macmesh_daemon.cluster.machine import ClusterMachine
from macmesh_daemon.cluster.messages import (
    Deployment,
    Epoch,
    NodeFacts,
    WantedModel,
    WorkerReport,
    WorkerState,
)
from macmesh_daemon.cluster.settings import ClusterSettings


class World:
    """Machines, network and time.

    Args:
        seed: Of everything random.
        count: Nodes; the first founds the cluster.
        expect: `bootstrap_expect`; all of them where None.
        facts: Facts of nodes that are not like the others.
        down: Nodes that are not started yet.
        compute: The planner: a deployment, or None to refuse.
    """

    def __init__(
        self,
        seed: int,
        count: int,
        *,
        expect: int | None = None,
        settings: ClusterSettings | None = None,
        facts: dict[str, NodeFacts] | None = None,
        down: str = "",
        compute: Callable[[fx.ComputePlan], Deployment | None] | None = None,
    ) -> None:
        self.rng = random.Random(seed)  # noqa: S311  replay, not secrets
        self.now = 0.0
        self.faults = Faults()
        self.checker = Checker()
        self.settings = settings or ClusterSettings()
        self.expect = count if expect is None else expect
        self.steps = 0
        self._story: deque[tuple[float, str, str, object]] = deque(maxlen=400)
        self.announced: list[tuple[float, str, fx.Announce]] = []
        self.log: list[tuple[float, str, fx.Effect]] = []
        self.keep_log = False
        self.hold_prepare_checks: set[str] = set()
        self.keep_compute = False
        self.held_computes: list[tuple[SimNode, fx.ComputePlan]] = []
        self._compute = compute or (lambda ask: split(ask.wanted, [m.node_id for m in ask.members]))
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._request_ids = itertools.count()
        self._change_ids = itertools.count()
        self._replies: dict[int, Callable[[fx.Reply], None]] = {}
        names = [chr(ord("a") + i) if count <= 26 else f"n{i:03}" for i in range(count)]
        self.nodes = {
            name: SimNode(name, (facts or {}).get(name) or facts_of(name), founder=i == 0)
            for i, name in enumerate(names)
        }
        for node in self.nodes.values():
            if node.node_id not in down:
                self.boot(node)

    # -- what tests do --------------------------------------------------------------------------------

    def boot(self, node: SimNode | str) -> None:
        """Start a daemon from its disk, and let all nodes that are up meet it."""
        node = self._node(node)
        assert node.machine is None
        node.boots += 1
        node.open_requests = set()
        node.has_left = False
        seed = self.rng.getrandbits(32)
        keys = random.Random(seed)  # noqa: S311  same
        node.nonce = self.rng.getrandbits(63)
        node.machine = ClusterMachine(
            node_id=node.node_id,
            boot_nonce=node.nonce,
            facts=node.facts,
            addresses=(f"{node.node_id}:7000",),
            persistent=node.disk,
            settings=self.settings,
            rng=random.Random(seed),  # noqa: S311  same
            key_source=lambda: keys.randbytes(32),
            now=self.now,
            founder=node.founder,
            bootstrap_expect=self.expect,
        )
        node.next_tick = None
        self._tell(node, "boot")
        self.step(node, ev.Tick())
        for other in self.nodes.values():
            if other is not node and other.machine is not None:
                self._introduce(node, other)
                self._introduce(other, node)

    def crash(self, node: SimNode | str) -> None:
        """Kill a daemon; its worker ends with it."""
        node = self._node(node)
        if node.machine is not None:
            self._tell(node, "crash")
            node.machine = None
            node.worker = None
            node.open_requests = set()

    def cut(self, *groups: str) -> None:
        """Let only nodes of the same group reach each other; a group is a string of one-letter names."""
        self.faults.cut = {
            (a, b)
            for a in self.nodes
            for b in self.nodes
            if a != b and not any(a in group and b in group for group in groups)
        }

    def heal(self) -> None:
        """End all faults and start every node that is down."""
        self.faults = Faults()
        for node in self.nodes.values():
            if node.machine is None:
                self.boot(node)
        for a in self.nodes.values():
            for b in self.nodes.values():
                if a is not b:
                    self._introduce(a, b)

    def load(self, wanted: WantedModel | None, node: SimNode | str | None = None) -> int:
        """Ask the coordinator, or a given node, for a change."""
        target = self._node(node) if node is not None else self.coordinator()
        assert target is not None
        change_id = next(self._change_ids)
        self.step(target, ev.LoadWanted(change_id, wanted) if wanted else ev.UnloadWanted(change_id))
        return change_id

    def kill_worker(self, node: SimNode | str) -> None:
        """Let a worker end with an error."""
        node = self._node(node)
        if node.worker is not None:
            worker, node.worker = node.worker, None
            report = WorkerReport(worker.epoch, worker.stage_index, WorkerState.FAILED, error="killed")
            self.step(node, ev.WorkerReported(report))

    def run(self, seconds: float) -> None:
        """Let time go by."""
        end = self.now + seconds
        while self._next_time() <= end:
            self._run_next()
        self.now = end

    def run_until(self, condition: Callable[[], bool], limit_seconds: float) -> float:
        """Let time go by until the condition holds; the seconds that took.

        Raises:
            AssertionError: It did not hold within the limit; carries the story.
        """
        begin = self.now
        while not condition():
            if self._next_time() > begin + limit_seconds:
                raise AssertionError(f"not within {limit_seconds} s\n" + self.story)
            self._run_next()
        return self.now - begin

    def coordinator(self) -> SimNode | None:
        """The coordinator of the highest term among the nodes that are up."""
        leading = [n for n in self.nodes.values() if n.machine and n.machine._coordinator]
        return max(leading, key=lambda n: n.up.view.term, default=None)

    def agreed(self) -> bool:
        """Whether one coordinator leads every node and all have committed the same document."""
        leader = self.coordinator()
        if leader is None:
            return False
        document = leader.up._context.state.document
        assert document is not None
        return len(document.members) == len(self.nodes) and all(
            n.machine is not None
            and n.machine._election.coordinator_id == leader.node_id
            and n.machine._context.state.commit_version == document.version
            for n in self.nodes.values()
        )

    def ready(self) -> bool:
        """Whether the nodes agree and the committed plan serves."""
        leader = self.coordinator()
        if leader is None or not self.agreed():
            return False
        coordinator = leader.up._coordinator
        return coordinator is not None and coordinator.serving_state == "ready"

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

    # -- the machinery --------------------------------------------------------------------------------

    def step(self, node: SimNode, event: ev.Event) -> None:
        """Give a machine an event and do what it decides; perhaps crash in the middle of that."""
        if node.machine is None:
            return
        self.steps += 1
        if not isinstance(event, ev.Tick):
            self._tell(node, "<-", event)
        machine = node.machine
        effects = machine.step(event, self.now)
        survive = len(effects)
        self.checker.on_step(node, machine)
        for effect in effects[:survive]:
            self._execute(node, effect)
            if isinstance(effect, fx.Persist):
                self.checker.on_step(node, machine)
        if survive == len(effects):
            self._arm(node)
        else:
            self.crash(node)

    def _execute(self, node: SimNode, effect: fx.Effect) -> None:  # noqa: C901, PLR0912  one arm for each effect
        self._tell(node, "->", effect)
        if self.keep_log:
            self.log.append((self.now, node.node_id, effect))
        match effect:
            case fx.Persist():
                self.checker.on_persist(node, effect.state)
                node.disk = effect.state
            case fx.Send():
                self._send(node, effect)
            case fx.Reply():
                if effect.request_id not in node.open_requests:
                    raise InvariantBrokenError(f"{node.node_id}: second reply to request {effect.request_id}")
                node.open_requests.discard(effect.request_id)
                self._replies.pop(effect.request_id)(effect)
            case fx.ComputePlan():
                if self.keep_compute:
                    self.held_computes.append((node, effect))
                else:
                    self.compute(node, effect)
            case fx.CheckPrepare():
                assert effect.plan.epoch is not None
                if node.node_id not in self.hold_prepare_checks:
                    ok = self.rng.random() >= self.faults.nack
                    checked = ev.PrepareChecked(effect.plan.epoch, ok, "" if ok else "does not fit")
                    self._later_step(node, self.rng.uniform(0.0, 0.05), checked)
            case fx.StartWorker():
                self.checker.on_start_worker(node, effect.epoch)
                ids = tuple(stage.node_id for stage in effect.deployment.stages)
                node.worker = Worker(effect.epoch, effect.stage_index, ids)
                self._work(node, node.worker)
            case fx.StopWorker():
                self._stop_worker(node, effect.epoch)
            case fx.GivePeers():
                self._give_peers(node, effect)
            case fx.LeaveFinished():
                node.has_left = True
            case fx.ChangeAccepted() | fx.ChangeDone() | fx.ChangeRejected():
                node.outcomes.append(effect)
            case fx.Announce():
                self.announced.append((self.now, node.node_id, effect))

    def compute(self, node: SimNode, ask: fx.ComputePlan) -> None:
        """Answer a ComputePlan."""
        deployment = self._compute(ask)
        answer: ev.Event = ev.PlanComputed(ask.request_id, deployment)
        if deployment is None:
            answer = ev.PlanRefused(ask.request_id, "TOO_SMALL", f'{{"nodes": {len(ask.members)}}}')
        self._later_step(node, self.rng.uniform(0.01, 0.3), answer)

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        """Do something after a while."""
        heapq.heappush(self._heap, (self.now + seconds, next(self._order), action))

    def _later_step(self, node: SimNode, seconds: float, event: ev.Event) -> None:
        boots = node.boots
        self.later(seconds, lambda: self.step(node, event) if node.boots == boots else None)

    def _next_time(self) -> float:
        return self._heap[0][0] if self._heap else float("inf")

    def _run_next(self) -> None:
        at, _, action = heapq.heappop(self._heap)
        self.now = max(self.now, at)
        action()

    def _node(self, node: SimNode | str) -> SimNode:
        return self.nodes[node] if isinstance(node, str) else node

    def _tell(self, node: SimNode, what: str, value: object = "") -> None:
        self._story.append((self.now, node.node_id, what, value))

    @property
    def story(self) -> str:
        """The last events and effects, one a line."""
        return "\n".join(f"{at:9.4f} {name} {what} {value}" for at, name, what, value in self._story)

    def _arm(self, node: SimNode) -> None:
        """Wake the machine at its deadline."""
        deadline = node.up.next_deadline()
        if deadline is None or (node.next_tick is not None and node.next_tick <= deadline):
            return
        node.next_tick = deadline
        boots = node.boots

        def tick() -> None:
            if node.boots == boots and node.machine is not None and node.next_tick == deadline:
                node.next_tick = None
                self.step(node, ev.Tick())

        self.later(max(0.0, deadline - self.now), tick)

    def _introduce(self, one: SimNode, other: SimNode) -> None:
        """Tell ``one`` of ``other``, as a Hello does."""
        if (one.node_id, other.node_id) in self.faults.cut:
            return
        hello = ev.CandidateVerified(
            other.node_id,
            (f"{other.node_id}:7000",),
            other.facts,
            other.nonce,
            "mdns",
            other.disk.document is not None,
        )
        self._later_step(one, self.rng.uniform(0.0, 0.2), hello)

    def _delay(self) -> float:
        if self.faults.slow and self.rng.random() < self.faults.slow:
            return self.rng.uniform(0.1, 3.0)
        return self.rng.uniform(0.0005, 0.01)

    def _passes(self, source: str, target: str) -> bool:
        return (source, target) not in self.faults.cut and self.rng.random() >= self.faults.loss

    def _copies(self) -> int:
        return 2 if self.faults.duplicate and self.rng.random() < self.faults.duplicate else 1

    def _send(self, node: SimNode, call: fx.Send) -> None:
        sent = _Call(self, node, call)
        self.later(call.deadline_seconds, sent.fail)
        for _ in range(self._copies()):
            if self._passes(node.node_id, call.peer):
                self.later(self._delay(), sent.deliver)

    def take_request(self, call: "_Call") -> None:
        """A request arrives."""
        target = self.nodes[call.send.peer]
        if target.machine is None:
            return
        request_id = next(self._request_ids)
        self._replies[request_id] = call.answer
        target.open_requests.add(request_id)
        self.step(target, ev.RequestReceived(request_id, call.node.node_id, call.send.message))

    def send_reply(self, call: "_Call", reply: fx.Reply) -> None:
        """A reply leaves."""
        if self._passes(call.send.peer, call.node.node_id):
            for _ in range(self._copies()):
                self.later(self._delay(), lambda: call.arrive(reply))

    # -- workers --------------------------------------------------------------------------------------

    def _report(self, node: SimNode, worker: Worker, state: WorkerState) -> None:
        if node.worker is not worker:
            return
        worker.state = state
        address = f"{node.node_id}:{worker.epoch.seq + 9000}"
        report = WorkerReport(worker.epoch, worker.stage_index, state, 10, 10, address, address)
        self.step(node, ev.WorkerReported(report))

    def _work(self, node: SimNode, worker: Worker) -> None:
        def load() -> None:
            if node.worker is not worker:
                return
            if self.rng.random() < self.faults.worker_crash:
                self.kill_worker(node)
            else:
                self._report(node, worker, WorkerState.LOADED)

        self.later(self.rng.uniform(0.0, 0.1), lambda: self._report(node, worker, WorkerState.LOADING))
        self.later(self.rng.uniform(0.1, 0.6), load)

    def _stop_worker(self, node: SimNode, epoch: Epoch) -> None:
        boots, worker = node.boots, node.worker

        def gone() -> None:
            if node.boots == boots:
                if node.worker is worker:
                    node.worker = None
                self.step(node, ev.WorkerStopped(epoch))

        self.later(self.rng.uniform(0.0, 0.3), gone)

    def _give_peers(self, node: SimNode, given: fx.GivePeers) -> None:
        worker = node.worker
        if worker is None or worker.epoch != given.request.epoch:
            return
        worker.key = given.request.epoch_key
        group = [self.nodes[n].worker for n in worker.node_ids]
        if all(w is not None and w.epoch == worker.epoch and w.key == worker.key for w in group):
            for name, member in zip(worker.node_ids, group, strict=True):
                assert member is not None
                ready = replace(member)  # a copy: the closure below must not see a later worker
                self.later(
                    self.rng.uniform(0.0, 0.05),
                    lambda name=name, member=member, ready=ready: self._become_ready(name, member, ready),  # type: ignore[misc]
                )

    def _become_ready(self, name: str, worker: Worker, then: Worker) -> None:
        if worker.key == then.key:
            self._report(self.nodes[name], worker, WorkerState.READY)


class _Call:
    """One call over the simulated network, from one life of a node."""

    def __init__(self, world: World, node: SimNode, send: fx.Send) -> None:
        self.node = node
        self.send = send
        self._world = world
        self._boots = node.boots
        self._sent_at = world.now
        self._is_done = False

    def deliver(self) -> None:
        self._world.take_request(self)

    def answer(self, reply: fx.Reply) -> None:
        self._world.send_reply(self, reply)

    def arrive(self, reply: fx.Reply) -> None:
        # A transport would drop what comes after the deadline; here it may still come, which is harder.
        if self.node.boots == self._boots:
            self._is_done = True
            elapsed_ms = (self._world.now - self._sent_at) * 1000
            self._world.step(self.node, ev.ResponseReceived(self.send.peer, reply.message, elapsed_ms))

    def fail(self) -> None:
        if self.node.boots == self._boots and not self._is_done:
            self._is_done = True
            failed = ev.RequestFailed(self.send.peer, self.send.message, "deadline")
            self._world.step(self.node, failed)
