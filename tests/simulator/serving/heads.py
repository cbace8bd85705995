"""Heads: workers of a committed plan that run requests, and the streams in which they tell the tokens.

A stream is one of gRPC over TCP: in order, and broken where the network is. What is lost is sent again and is
late; behind a cut nothing comes any more, and the reader's patience with silence ends the run. A head whose
process is killed breaks its streams; one without power, or asleep, says nothing.
"""

from typing import TYPE_CHECKING

from macmesh_daemon.cluster.messages import WorkerState
from macmesh_daemon.requests import Finish
from macmesh_daemon.requests import effects as fx
from macmesh_daemon.requests import events as ev
from simulator.node import SimNode, Worker

from .desk import Live
from .tokens import STOP, Model

if TYPE_CHECKING:
    from .serving import Serving

SILENCE_SECONDS = 5.0
"""Longest silence of a head that is believed; the daemon's own is longer, which only makes runs wait longer."""
_RESENT_SECONDS = 0.25
_LATE_SECONDS = 2.0
_LOOK_SECONDS = 0.2
_PEERS_LOST_SECONDS = 2.0


class Run:
    """One run of a request, at its API node and at its head.

    Attributes:
        live: Of whom.
        effect: What was asked.
        head: The node that is asked.
        is_followed: Whether the API node still listens.
        is_told: Whether its last token has reached the API node.
        is_over: Whether the head has ended it, or knows nothing of it.
        is_silent: Whether nothing of the head comes any more.
    """

    __slots__ = (
        "boots",
        "effect",
        "generated",
        "head",
        "head_boots",
        "is_followed",
        "is_over",
        "is_silent",
        "is_told",
        "live",
        "model",
        "next_arrival",
        "number",
        "pace",
        "stalled_since",
        "worker",
    )

    def __init__(self, live: Live, effect: fx.Run, head: SimNode, pace: float) -> None:
        self.live = live
        self.effect = effect
        self.number = effect.number
        self.head = head
        self.boots = live.node.boots
        self.head_boots = head.boots
        self.pace = pace
        self.worker: Worker | None = None
        self.model: Model | None = None
        self.generated: list[int] = []
        self.next_arrival = 0.0
        self.stalled_since: float | None = None
        self.is_followed = True
        self.is_told = self.is_over = self.is_silent = False


class Heads:
    """All runs of all heads."""

    def __init__(self, serving: "Serving") -> None:
        self._serving = serving
        self._world = serving.world
        self._rng = serving.rng
        #: What runs at each node.
        self.running: dict[str, dict[Run, None]] = {}

    # -- from the API node ----------------------------------------------------------------------------

    def start(self, live: Live, effect: fx.Run) -> Run:
        """Ask a head for a run."""
        world = self._world
        head = world.nodes[effect.head_node_id]
        run = Run(live, effect, head, self._serving.pace())
        network = world.network
        is_own = head is live.node
        if not is_own and (live.node.node_id, head.node_id) in network.cut:
            run.is_silent = True
        else:
            self._at_head(run, 0.0 if is_own else self._delay(), self._begin)
        world.later(SILENCE_SECONDS, self._listen, run)
        return run

    def cancel(self, run: Run) -> None:
        """The API node leaves a run: its head notices, sooner or later."""
        run.is_followed = False
        if not run.is_over:
            link = (run.live.node.node_id, run.head.node_id)
            seconds = SILENCE_SECONDS if link in self._world.network.cut else self._delay()
            if self._serving.stale and self._rng.random() < self._serving.stale:
                seconds += self._rng.random() * _LATE_SECONDS
            self._at_head(run, seconds, self._end)

    def _at_head(self, run: Run, seconds: float, what: object) -> None:
        self._world.later(seconds, self._do_at_head, run, what)

    def _do_at_head(self, run: Run, what: "object") -> None:
        head = run.head
        if head.machine is None or head.boots != run.head_boots:
            if not run.is_over:
                run.is_over = True
                self._refuse(run)
        elif head.away == "frozen":
            self._serving.wait_for(head, self._do_at_head, run, what)
        elif head.away == "asleep":
            run.is_silent = True
        else:
            what(run)  # type: ignore[operator]

    def _refuse(self, run: Run) -> None:
        """Nobody listens there: the machine says so, unless it has no power."""
        if run.head.is_off:
            run.is_silent = True
        else:
            self._tell(run, ev.RunFailed(run.number, "PEER_UNREACHABLE", f"{run.head.node_id} refuses"))

    # -- at the head ----------------------------------------------------------------------------------

    def _begin(self, run: Run) -> None:
        head, epoch = run.head, run.effect.epoch
        worker = head.worker
        if run.is_over or not run.is_followed:
            return
        if worker is None or worker.epoch != epoch:
            self._fail(run, "EPOCH_CHANGED", f"{head.node_id} runs no worker of {epoch}")
            return
        if worker.state is not WorkerState.READY:
            self._fail(run, "NOT_READY", f"the worker of {head.node_id} is {worker.state.value}")
            return
        busy = self._serving.busy
        if busy and self._rng.random() < busy:
            if self._rng.random() < 0.5:
                self._fail(run, "RESOURCE_EXHAUSTED", "no room")
                return
            self._tell(run, ev.Queued(run.number, 1, 0.1))
        run.worker = worker
        run.model = Model(worker.digest, run.live.wish, run.effect.prompt_token_ids)
        run.generated = list(run.effect.generated_token_ids)
        self.running.setdefault(head.node_id, {})[run] = None
        self._world.later(run.pace * self._rng.uniform(1.0, 4.0), self._generate, run)

    def _generate(self, run: Run) -> None:
        if run.is_over:
            return
        if run.head.away is not None:
            self._world.later(_LOOK_SECONDS, self._generate, run)
            return
        lost = self._lost_stage(run)
        if lost:
            if run.stalled_since is None:
                run.stalled_since = self._world.now
            limit = run.stalled_since + self._rng.uniform(0.0, _PEERS_LOST_SECONDS)
            if self._world.now >= limit:
                self._fail(run, *lost)
            else:
                self._world.later(_LOOK_SECONDS, self._generate, run)
            return
        run.stalled_since = None
        assert run.model is not None
        token = run.model.next(run.generated)
        index = len(run.generated)
        run.generated.append(token)
        finish = None
        if token == STOP:
            finish = Finish.STOP
        elif index + 1 >= run.effect.max_tokens:
            finish = Finish.LENGTH
        if finish is not None:
            self._end(run)
        self._tell(run, ev.Token(run.number, index, token, -0.5, finish))
        if finish is None:
            self._world.later(run.pace, self._generate, run)

    def _lost_stage(self, run: Run) -> tuple[str, str] | None:
        """Why the stages behind the head do not answer; None where they do."""
        worker = run.worker
        assert worker is not None
        cut = self._world.network.cut
        for node_id in worker.node_ids:
            if node_id == run.head.node_id:
                continue
            node = self._world.nodes[node_id]
            other = node.worker
            if other is None or other.epoch != worker.epoch:
                return "WORKER_FAILED", f"the stage of {node_id} is lost"
            if node.away is not None or (cut and (run.head.node_id, node_id) in cut):
                return "PEER_UNREACHABLE", f"the stage of {node_id} does not answer"
        return None

    def _fail(self, run: Run, reason: str, message: str) -> None:
        self._end(run)
        self._tell(run, ev.RunFailed(run.number, reason, message))

    def _end(self, run: Run) -> None:
        run.is_over = True
        self.running.get(run.head.node_id, {}).pop(run, None)

    # -- back to the API node -------------------------------------------------------------------------

    def _tell(self, run: Run, event: ev.Event) -> None:
        """Send something along a run's stream."""
        if run.is_silent:
            return
        world, network = self._world, self._world.network
        seconds = 0.0
        copies = 1
        if run.head is not run.live.node:
            if (run.head.node_id, run.live.node.node_id) in network.cut:
                run.is_silent = True
                return
            seconds = self._delay()
            breaks = max(network.reset / 10, self._serving.stale / 30)
            if breaks and run.is_followed and self._rng.random() < breaks:
                self._break(run)
            if network.duplicate and self._rng.random() < network.duplicate:
                copies = 2
        if self._serving.stale and not run.is_followed:
            seconds += self._rng.random() * _LATE_SECONDS  # harder than gRPC, which drops it
        run.next_arrival = max(run.next_arrival, world.now + seconds)
        for _ in range(copies):
            world.later(run.next_arrival - world.now, self._arrive, run, event)

    def _break(self, run: Run) -> None:
        """The connection of a run is reset: its API node knows at once, its head sooner or later."""
        event = ev.RunFailed(run.number, "PEER_UNREACHABLE", "the connection was reset")
        self._world.later(self._delay(), self._arrive, run, event)
        run.is_followed = False
        seconds = self._rng.random() * _LATE_SECONDS if self._serving.stale else 0.0
        self._at_head(run, seconds, self._end)

    def _delay(self) -> float:
        network = self._world.network
        seconds = network.delay(self._rng)
        while network.loss and self._rng.random() < network.loss:
            seconds += _RESENT_SECONDS
        return seconds

    def _arrive(self, run: Run, event: ev.Event) -> None:
        node = run.live.node
        if node.machine is None or node.boots != run.boots:
            return
        if node.away is not None:
            self._serving.wait_for(node, self._arrive, run, event)
            return
        # What a run tells that was given up may still come: its machine is to know better.
        if isinstance(event, ev.RunFailed) or (isinstance(event, ev.Token) and event.finish is not None):
            run.is_told = True
        self._serving.step(run.live, event)

    def _listen(self, run: Run) -> None:
        """Every now and then: is anything to be heard of the head?"""
        node, head = run.live.node, run.head
        if not run.is_followed or run.is_told or node.machine is None or node.boots != run.boots:
            return
        speaks = (
            not run.is_silent
            and head.machine is not None
            and head.boots == run.head_boots
            and head.away is None
            and (head.node_id, node.node_id) not in self._world.network.cut
        )
        if speaks or node.away is not None:
            self._world.later(SILENCE_SECONDS, self._listen, run)
            return
        run.is_silent = True
        event = ev.RunFailed(run.number, "PEER_UNREACHABLE", f"{head.node_id} is silent")
        self._arrive(run, event)
        if run.is_followed:
            self.cancel(run)

    # -- what happens to heads ------------------------------------------------------------------------

    def worker_gone(self, node: SimNode, worker: Worker | None, reason: str) -> None:
        """A worker ends: its runs do, too."""
        for run in [run for run in self.running.get(node.node_id, ()) if run.worker is worker]:
            self._fail(run, reason, f"the worker of {node.node_id} ended")

    def node_crashed(self, node: SimNode) -> None:
        """A head's daemon is gone; the system ends its connections, unless it has no power."""
        for run in self.running.pop(node.node_id, {}):
            run.is_over = True
            self._refuse(run)
